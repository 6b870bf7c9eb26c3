"""Watching without touching: with `--readonly` nothing is started, stopped, signalled or written, by whatever way.

`forbid` shuts the doors of this whole process: the client sends nothing but questions, and no keeper is started, since
a keeper takes up what was begun and may start engines again. Where no keeper runs, the box is read here instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from backends.errors import KeeperError, UsageError
from backends.orphans import Orphan, Reaped
from backends.snapshots import Connection, Event, Series, Server, SnapshotUpdate, StartRequest, SwitchRequest, Update
from backends.switches import Level, Switch, SwitchChoice

if TYPE_CHECKING:
    from backends.link import KeeperLink
    from backends.records import Launch

HINT = "open gpubox without --readonly to do that"
POLL_S = 1.0

_forbidden = False


def forbid() -> None:
    """Shut the doors of this process, for good."""
    global _forbidden
    _forbidden = True


def forbids() -> bool:
    """Whether this process was told to leave everything as it is."""
    return _forbidden


def refusal(what: str) -> UsageError:
    """Return the one line that every action ends with."""
    return UsageError(f"gpubox is read-only: it does not {what}", HINT)


def check_request(method: str) -> None:
    """Refuse a request to the keeper that is no question; raises UsageError."""
    if _forbidden and method != "GET":
        raise refusal("start, stop or signal anything")


def check_keeper_start() -> None:
    """Refuse to start a keeper; raises KeeperError."""
    if _forbidden:
        raise KeeperError("no keeper runs, and a read-only gpubox starts none", HINT)


class ReadOnlyKeeper:
    """A KeeperLink that passes questions on to another one, and refuses everything else with a UsageError."""

    def __init__(self, link: KeeperLink, updates: Callable[[], AsyncIterator[Update]] | None = None) -> None:
        """`updates` takes the place of the other's."""
        self._link = link
        self._updates = updates or link.updates

    def updates(self) -> AsyncIterator[Update]:
        """See KeeperLink."""
        return self._updates()

    async def start(self, request: StartRequest) -> Server:
        """Refuse."""
        raise refusal("start a server")

    async def stop(self, name: str, *, force: bool = False) -> Server:
        """Refuse."""
        raise refusal(f"stop {name}")

    async def restart(self, name: str, profile: dict[str, Any] | None = None) -> Server:
        """Refuse."""
        raise refusal(f"restart {name}")

    async def sleep(self, name: str, level: Level | None = None) -> Server:
        """Refuse."""
        raise refusal(f"put {name} to sleep")

    async def switch(self, request: SwitchRequest) -> Switch:
        """Refuse."""
        raise refusal(f"switch to {request.name}")

    async def switch_choices(self) -> tuple[SwitchChoice, ...]:
        """See KeeperLink."""
        return await self._link.switch_choices()

    async def profile(self, name: str) -> dict[str, Any]:
        """See KeeperLink."""
        return await self._link.profile(name)

    async def forget(self, name: str) -> None:
        """Refuse."""
        raise refusal(f"forget {name}")

    async def connection(self, name: str) -> Connection:
        """See KeeperLink."""
        return await self._link.connection(name)

    async def server_series(self, name: str) -> Series:
        """See KeeperLink."""
        return await self._link.server_series(name)

    async def gpu_series(self, uuid: str) -> Series:
        """See KeeperLink."""
        return await self._link.gpu_series(uuid)

    async def history(self) -> tuple[Event, ...]:
        """See KeeperLink."""
        return await self._link.history()

    async def launches(self, limit: int = 200) -> tuple[Launch, ...]:
        """See KeeperLink."""
        return await self._link.launches(limit)

    async def orphans(self) -> tuple[Orphan, ...]:
        """See KeeperLink."""
        return await self._link.orphans()

    async def reap(self, pid: int, start_ticks: int, *, foreign: bool = False) -> Reaped:
        """Refuse."""
        raise refusal(f"signal pid {pid}")


async def unkept_updates() -> AsyncIterator[Update]:
    """Stream what the keeper says while there is one, and what can be read without one each second until then."""
    from backends.client import AsyncKeeper, KeeperClient
    from backends.offline import snapshot_without_keeper

    client = KeeperClient()
    while not await asyncio.to_thread(client.is_up):
        begun = time.monotonic()
        yield SnapshotUpdate(await asyncio.to_thread(snapshot_without_keeper))
        await asyncio.sleep(max(0.0, POLL_S - (time.monotonic() - begun)))
    async for update in AsyncKeeper(client, starts_keeper=False).updates():
        yield update
