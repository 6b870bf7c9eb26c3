"""Make the pictures of README and docs/screens.md: the app's own screenshots of a simulated box."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from textual.pilot import Pilot

from backends.simulation import SimulatedKeeper
from profiles.store import LIBRARY, Place, Store
from tui.app import GpuboxApp

AT = 1795262400.0
SIZE = (120, 36)
PICTURES: dict[str, tuple[str, ...]] = {
    "box": ("1",),
    "servers": ("2",),
    "start": ("2", "tab", "down", "down", "down", "enter"),
    "failed": ("2", "down", "down", "down", "down", "f"),
    "logs": ("3",),
    "chat": ("4",),
    "metrics": ("5",),
    "explain": ("5", "i"),
    "switcher": ("2", "S"),
    "runs": ("6",),
    "profiles": ("7", "down", "down", "down", "o"),
    "events": ("2", "e"),
    "keys": ("5", "question_mark"),
}
"""What each shows, and the keys that lead there."""


async def calm(pilot: Pilot[None]) -> None:
    """Wait until the screen stays as it is."""
    same, before = 0, ""
    while same < 8:
        await pilot.pause(0.05)
        now = "\n".join(strip.text for strip in pilot.app.screen._compositor.render_strips())
        same, before = (same + 1 if now == before else 0), now


async def main() -> None:
    """Write docs/gpubox.svg, and docs/pictures/NAME.svg for each screen."""
    here = Path(__file__).parent
    (here / "pictures").mkdir(exist_ok=True)
    for name, keys in PICTURES.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HOME"] = folder
            keeper = SimulatedKeeper("8xH200", clock=lambda: AT, folder=Path(folder))
            store = Store([Place("user", Path(folder) / "profiles"), Place("library", LIBRARY)])
            app = GpuboxApp(keeper, store=store, simulated=True, clock=lambda: AT)
            async with app.run_test(size=SIZE) as pilot:
                while app.snapshot is None:
                    await pilot.pause(0.05)
                for key in keys:
                    await pilot.press(key)
                    await calm(pilot)
                picture = app.export_screenshot(title="gpubox")
        (here / "pictures" / f"{name}.svg").write_text(picture)
        if name == "box":
            (here / "gpubox.svg").write_text(picture)


asyncio.run(main())
