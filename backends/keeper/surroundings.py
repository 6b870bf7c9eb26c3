"""What every supervisor of the keeper shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from backends.errors import ConflictError
from backends.keeper.boxwatch import BoxWatch
from backends.keeper.events import Hub
from backends.keeper.history import History
from backends.ledger import Ledger
from backends.metrics.series import SeriesStore
from backends.snapshots import Grant
from backends.switches import Level


class Switcher(Protocol):
    """What supervisors and the keeper's books ask of its switching."""

    async def sleep_idle(self, name: str) -> None:
        """Put a server to sleep that has had no work for its `ttl`; what keeps it from that is told as an event."""
        ...

    async def wanted(self, name: str) -> None:
        """Switch to a server for which its front holds a request; returns once that is over, however it went."""
        ...

    async def level_for(self, name: str, asked: Level | None = None) -> Level:
        """Return the level at which a server sleeps now, making room in host memory where the oldest sleeper has it.

        Raises ConflictError where it cannot sleep at any.
        """
        ...

    def calm(self, name: str) -> AbstractAsyncContextManager[Callable[[], bool]]:
        """Keep switches off a server's GPUs, once the one to it is over; yields what tells whether any waits.

        Raises ConflictError where others were before.
        """
        ...

    def promised(self, name: str) -> Mapping[str, Grant]:
        """Return by UUID to whom running switches give GPUs, but for what they give to the server `name`."""
        ...


class NoSwitching:
    """A `Switcher` where there is none: nobody sleeps."""

    async def sleep_idle(self, name: str) -> None:
        """See Switcher."""

    async def wanted(self, name: str) -> None:
        """See Switcher."""

    async def level_for(self, name: str, asked: Level | None = None) -> Level:
        """See Switcher."""
        raise ConflictError(f"server {name} cannot sleep here")

    def calm(self, name: str) -> AbstractAsyncContextManager[Callable[[], bool]]:
        """See Switcher."""
        return nullcontext(lambda: False)

    def promised(self, name: str) -> Mapping[str, Grant]:
        """See Switcher."""
        return {}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The keeper's broadcast, its memory of figures, its eye on the box, the ledger, its pen, and the taken ports.

    `switching` is whom it asks who is to sleep, and how deep.
    """

    hub: Hub
    series: SeriesStore
    box: BoxWatch
    ledger: Ledger
    history: History
    taken_ports: Callable[[], set[int]]
    switching: Switcher = field(default_factory=NoSwitching)
