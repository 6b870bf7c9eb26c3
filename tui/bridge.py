"""The keeper's stream of updates, turned into messages for the app; it outlives every loss of the keeper."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

from textual.message import Message

from backends.errors import GpuboxError, KeeperError
from backends.link import KeeperLink
from backends.snapshots import (
    BoxUpdate,
    EventUpdate,
    Server,
    ServerRemoved,
    ServerUpdate,
    Snapshot,
    SnapshotUpdate,
    SwitchUpdate,
    Update,
)
from backends.switches import Switch
from tui.messages import Happened, KeeperLost, KeeperTrouble, SnapshotChanged, SwitchEnded

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0

NEWS_S = 0.1
"""States are posted no more often than this."""


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
                if isinstance(update, SwitchUpdate) and update.switch.outcome != "running":
                    paced.tell_waiting()
                    post(SwitchEnded(update.switch))
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
    """Posts the newest state soon, together with all that comes in the meantime; never more often than each NEWS_S."""

    def __init__(self, post: Callable[[Message], object]) -> None:
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._snapshot: Snapshot | None = None
        self._posted_at = -math.inf
        self._due: asyncio.TimerHandle | None = None

    def take(self, update: Update) -> None:
        """Have the state after an update posted."""
        before, self._snapshot = self._snapshot, applied(self._snapshot, update)
        if self._snapshot is not before and self._due is None:
            # Not at once: what came in the same message of the keeper is to be shown in the same frame.
            self._due = self._loop.call_at(max(self._loop.time(), self._posted_at + NEWS_S), self.tell_waiting)

    def tell_waiting(self) -> None:
        """Post a state that waits now."""
        if self._due is not None and self._snapshot is not None:
            self._due.cancel()
            self._due, self._posted_at = None, self._loop.time()
            self._post(SnapshotChanged(self._snapshot))


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
    return replace(snapshot, switches=_running(snapshot.switches, update.switch))


def _running(switches: tuple[Switch, ...], newer: Switch) -> tuple[Switch, ...]:
    """Return the switches that run; one that is over is none of them."""
    if newer.outcome != "running":
        return tuple(one for one in switches if one.id != newer.id)
    if any(one.id == newer.id for one in switches):
        return tuple(newer if one.id == newer.id else one for one in switches)
    return (*switches, newer)


def _placed(servers: tuple[Server, ...], newer: Server) -> tuple[Server, ...]:
    if any(s.name == newer.name for s in servers):
        return tuple(newer if s.name == newer.name else s for s in servers)
    return (*servers, newer)
