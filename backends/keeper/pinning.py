"""How much of the host's memory an engine pins when it sleeps at level 1 for the first time; it keeps that."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from backends.gpus.processes import resident_bytes
from backends.snapshots import Missing

if TYPE_CHECKING:
    from backends.keeper.subject import Subject

SEEN_BYTES = 32 << 20
"""A tree that grows by less has not pinned its weights, or drivers that do not count that as its own."""


@dataclass(frozen=True, slots=True)
class HostUse:
    """What an engine's processes hold of the host's memory, and what is to be had of it, in bytes."""

    held_bytes: int
    available_bytes: int | Missing


async def host_use(subject: Subject) -> HostUse:
    """Read the host's memory as it is now; some milliseconds."""
    facts = subject.facts()
    held = await asyncio.to_thread(_held_below, facts.guard.pid) if facts is not None else 0
    return HostUse(held, await subject.around.box.host_available_bytes())


def pinned_between(before: HostUse, after: HostUse) -> int:
    """Return what was pinned meanwhile: as the processes have grown, or else as much less as there is to be had."""
    grown = after.held_bytes - before.held_bytes
    if grown >= SEEN_BYTES:
        return grown
    if isinstance(before.available_bytes, Missing) or isinstance(after.available_bytes, Missing):
        return 0
    return max(0, before.available_bytes - after.available_bytes)


def _held_below(root: int) -> int:
    try:
        return sum(resident_bytes(process.pid) for process in psutil.Process(root).children(recursive=True))
    except psutil.Error:
        return 0
