"""Opening the control center from the command line."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from backends.client import AsyncKeeper, KeeperLink
from backends.readonly import ReadOnlyKeeper, forbids, unkept_updates
from tui.terminal import TerminalApp

if TYPE_CHECKING:
    from profiles.store import Store
    from tui.launching import LaunchIntent


def open_screen(store: Store, launch: LaunchIntent | None, simulate: str | None) -> int:
    """Run the control center until it is left, with a launch begun or over a simulated box; returns the exit code."""
    link: KeeperLink
    if simulate:
        from backends.simulation import SimulatedKeeper

        simulated = SimulatedKeeper(simulate)
        link = ReadOnlyKeeper(simulated) if forbids() else simulated
    else:
        link = ReadOnlyKeeper(AsyncKeeper(starts_keeper=False), unkept_updates) if forbids() else AsyncKeeper()
    return show(TerminalApp(link, store=store, launch=launch, simulated=bool(simulate)))


def show(app: TerminalApp) -> int:
    """Run an app until it is left; returns the exit code."""
    # What is there by now stays: going through it again and again would only stall the screen.
    gc.freeze()
    app.run()
    return app.return_code or 0
