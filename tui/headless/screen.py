"""Opening the control center from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.client import AsyncKeeper
from tui.app import GpuboxApp

if TYPE_CHECKING:
    from profiles.store import Store
    from tui.launching import LaunchIntent


def open_screen(store: Store, launch: LaunchIntent | None, simulate: str | None) -> int:
    """Run the control center until it is left, with a launch begun or over a simulated box; returns the exit code."""
    if simulate:
        from backends.simulation import SimulatedKeeper

        app = GpuboxApp(SimulatedKeeper(simulate), store=store, launch=launch, simulated=True)
    else:
        app = GpuboxApp(AsyncKeeper(), store=store, launch=launch)
    app.run()
    return app.return_code or 0
