"""Opening the control center from the command line."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable
from functools import cache
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

from backends.client import AsyncKeeper
from backends.link import KeeperLink
from backends.readonly import ReadOnlyKeeper, forbids, unkept_updates
from backends.settings import read_settings
from backends.snapshots import Update
from tui.terminal import TerminalApp

if TYPE_CHECKING:
    from profiles.store import Store
    from tui.launching import LaunchIntent


GARBAGE = (10_000, 10, 20)
"""When the collector looks (gc.set_threshold): often enough that one look takes few ms, not 14 times for a screen."""


class _Later:
    """Something that is made, which takes a while, when it is first used."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = cache(make)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make(), name)


class _EarlyKeeper(AsyncKeeper):
    """The keeper that somebody is starting already."""

    def __init__(self, starting: Thread) -> None:
        super().__init__()
        self._starting = starting

    async def updates(self) -> AsyncIterator[Update]:
        """See KeeperLink."""
        await asyncio.to_thread(self._starting.join)
        async for update in super().updates():
            yield update


def open_screen(
    store: Store | Callable[[], Store],
    launch: LaunchIntent | None,
    simulate: str | None,
    starting: Thread | None = None,
) -> int:
    """Run the control center until it is left, with a launch begun or over a simulated box; returns the exit code.

    A `store` that is to be called is opened when a screen first shows profiles: reading them takes pydantic, and 0.1 s.
    `starting` is a thread that sees to it that a keeper runs.
    """
    link: KeeperLink
    if simulate:
        from backends.simulation import SimulatedKeeper

        simulated = SimulatedKeeper(simulate)
        link = ReadOnlyKeeper(simulated) if forbids() else simulated
    elif forbids():
        link = ReadOnlyKeeper(AsyncKeeper(starts_keeper=False), unkept_updates)
    else:
        link = AsyncKeeper() if starting is None else _EarlyKeeper(starting)
    if sys.stdin.isatty():
        Thread(target=_end_with_terminal, args=(sys.stdin.fileno(),), daemon=True).start()
    opened = cast("Store", _Later(store)) if callable(store) else store
    return show(TerminalApp(link, store=opened, launch=launch, simulated=bool(simulate), settings=read_settings()))


def _end_with_terminal(terminal: int) -> None:
    """End once the terminal is gone: only its session's leader is told by the kernel, which may be `make`, waiting."""
    watch = select.poll()
    watch.register(terminal, 0)
    watch.poll()
    os.kill(os.getpid(), signal.SIGHUP)
    os._exit(128 + signal.SIGHUP)  # where that signal is ignored


def show(app: TerminalApp) -> int:
    """Run an app until it is left; returns the exit code."""
    # What is there by now stays: going through it again and again would only stall the screen.
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    gc.enable()
    app.run()
    return app.return_code or 0
