"""Make the README's picture: the app's own screenshot of a simulated box."""

from __future__ import annotations

import asyncio
from pathlib import Path

from backends.simulation import SimulatedKeeper
from tui.app import GpuboxApp

AT = 1795262400.0
SIZE = (120, 36)


async def main() -> None:
    """Write docs/gpubox.svg."""
    app = GpuboxApp(SimulatedKeeper("8xH200", clock=lambda: AT), simulated=True, clock=lambda: AT)
    async with app.run_test(size=SIZE) as pilot:
        while app.snapshot is None:
            await pilot.pause(0.05)
        await pilot.pause(0.5)
        Path(__file__).with_name("gpubox.svg").write_text(app.export_screenshot(title="gpubox"))


asyncio.run(main())
