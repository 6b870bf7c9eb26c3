"""How deep a server sleeps, by what there is of host memory; and who stops so that it can. Pure functions.

Level 1 pins a copy of the weights in host memory, twice their size as measured, which vLLM keeps until it ends: a later
sleep takes no more. What is bounded is therefore the sum over all servers that have slept, asleep or awake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends.switches import Level, Yield

PINNED_PER_WEIGHT = 2
"""24 GB of host memory for 12.3 GB of weights, measured on vLLM 0.26."""

HOST_MARGIN_BYTES = 2 << 30
"""What stays available of host memory, whatever sleeps: the kernel's OOM killer takes engines first."""

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class HostRoom:
    """Host memory that is available, that servers have pinned, and that they may pin in all; in bytes."""

    available_bytes: int
    pinned_bytes: int
    most_bytes: int

    def left_bytes(self) -> int:
        """Return how much more may be pinned; below zero where too much is already."""
        return min(self.available_bytes - HOST_MARGIN_BYTES, self.most_bytes - self.pinned_bytes)

    def changed(self, pinned_bytes: int) -> HostRoom:
        """Return the room once so much more is pinned (less, where it is negative)."""
        return replace(
            self,
            available_bytes=self.available_bytes - pinned_bytes,
            pinned_bytes=self.pinned_bytes + pinned_bytes,
        )


@dataclass(frozen=True, slots=True)
class Dozer:
    """A server that is to give way: the weights on all its GPUs (None: not known), and what it has pinned; in bytes.

    `cannot` says why it cannot sleep at all; empty where it can. With `lora`, vLLM crashes when it wakes from level 2.
    """

    server: str
    weights_bytes: int | None
    host_bytes: int = 0
    lora: bool = False
    cannot: str = ""


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A server that sleeps, and could be stopped: what it has pinned then comes back."""

    server: str
    host_bytes: int
    last_used_at: float


@dataclass(frozen=True, slots=True)
class Choice:
    """How a server gives way, why not in a lighter way, who stops before, and the host memory that is left then."""

    how: Yield
    why: str
    stops: tuple[str, ...]
    room: HostRoom

    @property
    def level(self) -> Level | None:
        """The level it sleeps at; None where it stops."""
        return {Yield.SLEEP_1: 1, Yield.SLEEP_2: 2}.get(self.how)  # type: ignore[return-value]


def choose(dozer: Dozer, room: HostRoom, sleepers: Sequence[Sleeper] = (), asked: Level | None = None) -> Choice:
    """Choose how a server gives way: level 1 where it has room, else level 2, else a stop.

    Where level 1 has room once `sleepers` have stopped, the least recently used of them do. `asked` 2 does not look for
    that room; 1 is what is looked for anyway.
    """
    if dozer.cannot:
        return Choice(Yield.STOP, dozer.cannot, (), room)
    why = "level 2 was asked for"
    if asked != 2:
        if dozer.host_bytes:
            return Choice(Yield.SLEEP_1, "", (), room)
        if dozer.weights_bytes is None:
            why = "how much host memory its weights take is not known"
        else:
            needed = dozer.weights_bytes * PINNED_PER_WEIGHT
            stops, then = _stops(needed, room, [one for one in sleepers if one.server != dozer.server])
            if stops is not None:
                return Choice(Yield.SLEEP_1, "", stops, then.changed(needed))
            why = _lack(needed, room)
    if dozer.lora:
        return Choice(Yield.STOP, f"{why}, and with LoRA it does not wake from level 2", (), room)
    return Choice(Yield.SLEEP_2, why, (), room)


def _stops(needed: int, room: HostRoom, sleepers: Sequence[Sleeper]) -> tuple[tuple[str, ...] | None, HostRoom]:
    """Return who stops so that `needed` bytes can be pinned, none more than needed; None where that does not help."""
    then, stops = room, []
    for sleeper in sorted((one for one in sleepers if one.host_bytes), key=lambda one: one.last_used_at):
        if then.left_bytes() >= needed:
            break
        then = then.changed(-sleeper.host_bytes)
        stops.append(sleeper.server)
    return (tuple(stops), then) if then.left_bytes() >= needed else (None, room)


def _lack(needed: int, room: HostRoom) -> str:
    if room.most_bytes - room.pinned_bytes < needed:
        most, pinned = room.most_bytes / _GIB, room.pinned_bytes / _GIB
        return f"level 1 needs {needed / _GIB:.1f} GiB of host memory: {pinned:.1f} of at most {most:.1f} are pinned"
    return f"level 1 needs {needed / _GIB:.1f} GiB of host memory, {room.available_bytes / _GIB:.1f} are available"
