"""What a screen can ask of the keeper, whoever is behind it: the keeper, a simulated box, or a read-only one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from backends.orphans import Orphan, Reaped
    from backends.records import Launch
    from backends.snapshots import (
        Connection,
        Event,
        Series,
        Server,
        StartRequest,
        SwitchRequest,
        Update,
    )
    from backends.switches import Level, Switch, SwitchChoice


class KeeperLink(Protocol):
    """What a screen can ask of the keeper; every call raises GpuboxError with one clear line."""

    def updates(self) -> AsyncIterator[Update]:
        """Stream what changes: first a SnapshotUpdate; ends with KeeperError when the keeper goes away."""
        ...

    async def start(self, request: StartRequest) -> Server:
        """Start a server; returns it as soon as it is queued or starting."""
        ...

    async def stop(self, name: str, *, force: bool = False) -> Server:
        """Stop a server (drain, SIGTERM, SIGKILL); `force` goes straight to SIGKILL. Returns once it is stopping."""
        ...

    async def restart(self, name: str, profile: dict[str, Any] | None = None) -> Server:
        """Stop a server where it runs, and start it again as it was; one that has ended, also with another profile."""
        ...

    async def sleep(self, name: str, level: Level | None = None) -> Server:
        """Put a server to sleep, at the level for which there is room where none is given; returns once it begins."""
        ...

    async def switch(self, request: SwitchRequest) -> Switch:
        """Have a server serve instead of those in its way; returns once it has begun; a `SwitchUpdate` tells how."""
        ...

    async def switch_choices(self) -> tuple[SwitchChoice, ...]:
        """Return what a switch to each server would do now."""
        ...

    async def profile(self, name: str) -> dict[str, Any]:
        """Return the profile that a server was started with, as its TOML would say it, overrides merged."""
        ...

    async def forget(self, name: str) -> None:
        """Drop a server that has no process from the list; its logs stay."""
        ...

    async def connection(self, name: str) -> Connection:
        """Return what is needed to talk to the server's engine."""
        ...

    async def server_series(self, name: str) -> Series:
        """Return a server's figures of the last hour."""
        ...

    async def gpu_series(self, uuid: str) -> Series:
        """Return a GPU's figures of the last hour."""
        ...

    async def history(self) -> tuple[Event, ...]:
        """Return the newest events, oldest first."""
        ...

    async def launches(self, limit: int = 200) -> tuple[Launch, ...]:
        """Return the newest launches on record, of all servers, newest first."""
        ...

    async def orphans(self) -> tuple[Orphan, ...]:
        """Return the processes that servers of ours have left behind, on GPUs or not."""
        ...

    async def reap(self, pid: int, start_ticks: int, *, foreign: bool = False) -> Reaped:
        """End an orphan; with `foreign` any process that holds GPU memory, which a person must have confirmed.

        Returns once it is gone.
        """
        ...
