"""The keeper's stream of updates, turned into messages for the app; it outlives every loss of the keeper."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

from textual.message import Message

from backends.client import KeeperLink
from backends.errors import GpuboxError, KeeperError
from backends.snapshots import (
    BoxUpdate,
    EventUpdate,
    Server,
    ServerRemoved,
    ServerUpdate,
    Snapshot,
    SnapshotUpdate,
    Update,
)
from tui.messages import Happened, KeeperLost, KeeperTrouble, SnapshotChanged

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0

NEWS_S = 0.1
"""States are posted no more often than this."""

FIGURES_S = 1.1
"""Servers' figures wait so long for the box's next reading, which comes each second: one frame shows them all."""


async def follow(
    link: KeeperLink,
    post: Callable[[Message], object],
    now: Callable[[], float],
    first_pause_s: float = FIRST_PAUSE_S,
) -> None:
    """Post what the keeper says until cancelled; after a loss ask again, each time after a longer pause."""
    pause_s = first_pause_s
    while True:
        problem: GpuboxError = KeeperError("the keeper closed its event stream")
        paced = Paced(post)
        try:
            async for update in link.updates():
                pause_s = first_pause_s
                if isinstance(update, EventUpdate):
                    paced.tell_waiting()
                    post(Happened(update.event))
                else:
                    paced.take(update)
        except GpuboxError as error:
            problem = error
        except OSError as error:
            problem = KeeperError(f"the keeper cannot be reached: {error}")
        finally:
            paced.tell_waiting()
        post(KeeperLost(KeeperTrouble(problem, now() + pause_s)))
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


class Paced:
    """Posts states as often as a person can read them: news soon, mere figures with the box's once-a-second reading.

    A state is posted at once where none was just now, so a single change never waits; the newest is never withheld
    for longer than FIGURES_S.
    """

    def __init__(self, post: Callable[[Message], object]) -> None:
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._snapshot: Snapshot | None = None
        self._posted_at = -math.inf
        self._due: asyncio.TimerHandle | None = None

    def take(self, update: Update) -> None:
        """Post the state after an update, now or a moment later, together with what comes until then."""
        before, self._snapshot = self._snapshot, applied(self._snapshot, update)
        if self._snapshot is None or self._snapshot is before:
            return
        at = self._posted_at + (FIGURES_S if _is_figures(before, update) else NEWS_S)
        if at <= self._loop.time():
            self._tell()
        elif self._due is None or at < self._due.when():
            self._forget_due()
            self._due = self._loop.call_at(at, self._tell)

    def tell_waiting(self) -> None:
        """Post a state that still waits."""
        if self._due is not None:
            self._tell()

    def _tell(self) -> None:
        self._forget_due()
        self._posted_at = self._loop.time()
        if self._snapshot is not None:
            self._post(SnapshotChanged(self._snapshot))

    def _forget_due(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


def _is_figures(before: Snapshot | None, update: Update) -> bool:
    """Tell whether an update of a server changes nothing but figures."""
    if before is None or not isinstance(update, ServerUpdate):
        return False
    old = next((server for server in before.servers if server.name == update.server.name), None)
    return old is not None and _news(old) == _news(update.server)


def _news(server: Server) -> tuple[object, ...]:
    stage = server.stage.name if server.stage is not None else None
    return server.state, stage, server.cause, server.card, server.launched_at, server.attempt


def applied(snapshot: Snapshot | None, update: Update) -> Snapshot | None:
    """Return the state after `update`, as a new value; None until the first SnapshotUpdate."""
    if isinstance(update, SnapshotUpdate):
        return update.snapshot
    if snapshot is None or isinstance(update, EventUpdate):
        return snapshot
    if isinstance(update, BoxUpdate):
        return replace(snapshot, box=update.box)
    if isinstance(update, ServerRemoved):
        return replace(snapshot, servers=tuple(s for s in snapshot.servers if s.name != update.name))
    if isinstance(update, ServerUpdate):
        return replace(snapshot, servers=_placed(snapshot.servers, update.server))
    return snapshot


def _placed(servers: tuple[Server, ...], newer: Server) -> tuple[Server, ...]:
    if any(s.name == newer.name for s in servers):
        return tuple(newer if s.name == newer.name else s for s in servers)
    return (*servers, newer)
