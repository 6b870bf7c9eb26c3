"""What a server holds of its GPUs by NVML: given back when it falls asleep, to be had when it wakes, little in between.

Where its processes can be told, that is what they hold, whatever others do meanwhile; else it is what has become free.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from backends.errors import GpuBusyError, WakeFailedError
from backends.keeper.planning import place_of
from backends.keeper.rooms import GIB, LEFT_ASLEEP_BYTES, claim
from backends.snapshots import Missing

if TYPE_CHECKING:
    from backends.keeper.boxwatch import Holdings
    from backends.keeper.record import Record
    from backends.keeper.subject import Subject

MEMORY_GONE_S = 3.0
MEMORY_LOOK_S = 0.01
ROOM_LOOK_S = 0.1
FAR_MORE_BYTES = GIB
"""A sleeper that holds so much more of a GPU than it left has begun to wake, and not come to the end of it."""

WEIGHED_AGAIN_BYTES = 64 << 20
TOLD_FROM_BYTES = GIB // 4


class HalfAwakeError(WakeFailedError):
    """An engine sleeps, but holds far more than it left: it was woken by another, without room; it can but be ended."""


class Scales:
    """Weighs what a sleeper holds, reading by reading; `half_awake` says so where that is far more than it left."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._heavy = 0
        self.half_awake = ""

    def weigh(self, held: Mapping[str, int]) -> bool:
        """Take in a reading, in bytes by UUID; returns whether as much is to be granted. Two tell of half awake."""
        subject = self._subject
        known, more = subject.record.asleep_bytes, far_more(subject.record, held)
        self._heavy = self._heavy + 1 if more else 0
        if more:
            return self._heavy > 1 and self._tell(more)
        lighter = self._tell("")
        differs = any(abs(size - known.get(uuid, 0)) > WEIGHED_AGAIN_BYTES for uuid, size in held.items())
        if differs:
            subject.keep(durable=False, asleep_bytes={**known, **held})
        return differs or lighter

    def clear(self) -> None:
        """Forget what was weighed: it has woken, lain down anew, or ended."""
        self._heavy = 0
        self._tell("")

    def _tell(self, more: str) -> bool:
        """Tell what it holds too much of, or that it no longer does; returns whether that is news."""
        if more == self.half_awake:
            return False
        told = f"{more}: half awake; a switch to it starts it again"
        if more and not self.half_awake:
            self._subject.tell("half-awake", told)
        self.half_awake = more
        self._subject.show(warnings=(*self._subject.record.warnings, *([told] if more else [])))
        return True


async def given_back(subject: Subject, before: Holdings) -> dict[str, int]:
    """Wait until NVML shows that the engine has given memory back; returns what it has left, in bytes by UUID."""
    deadline = time.monotonic() + MEMORY_GONE_S
    while True:  # NVML tells of no event
        now = await subject.around.box.holdings(subject.name, subject.record.gpus)
        awake: dict[str, int] = {}
        left: dict[str, int] = {}
        stuck = []
        for uuid, memory in now.memory.items():
            earlier = before.memory[uuid]
            if isinstance(memory, Missing) or isinstance(earlier, Missing):
                continue
            if uuid in before.held:
                awake[uuid], left[uuid] = before.held[uuid], now.held.get(uuid, 0)
                is_stuck = left[uuid] > awake[uuid] // 2
            else:
                awake[uuid] = subject.record.reserved.get(uuid) or earlier.used_bytes
                left[uuid] = LEFT_ASLEEP_BYTES
                is_stuck = earlier.used_bytes - memory.used_bytes < awake[uuid] // 2
            if is_stuck:
                stuck.append(uuid)
        if not stuck or time.monotonic() > deadline:
            break
        await asyncio.sleep(MEMORY_LOOK_S)
    if stuck:
        still = ", ".join(f"{left[uuid] / GIB:.1f} GiB of {uuid[:12]}" for uuid in stuck)
        subject.tell("memory", f"sleeps, but has not given its memory back: {still}")
    subject.keep(durable=False, awake_bytes=awake, asleep_bytes=left)
    return left


async def take_room(subject: Subject, *, half_awake: bool = False) -> None:
    """Have a sleeper granted all that it needs, where that is granted to nobody else and NVML shows it free.

    Raises GpuBusyError where it is not; and HalfAwakeError, unless it may be `half_awake` already.
    """
    seen = await subject.around.box.holdings(subject.name, subject.record.gpus)
    if not half_awake and (more := far_more(subject.record, seen.held)):
        raise HalfAwakeError(f"server {subject.name} {more}: half awake", f"gpubox switch {subject.name}")
    promised = subject.around.switching.promised(subject.name)
    await asyncio.to_thread(claim, subject.around.ledger, subject.record, seen.memory, promised, held=seen.held)


async def await_room(subject: Subject, within_s: float, note: Callable[[str], None]) -> None:
    """Take room as `take_room` does, waiting so long for it; what is in the way is told by `note`, and raised."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            await take_room(subject)
        except GpuBusyError as busy:
            is_over = time.monotonic() > deadline
            why = f"{busy.message}{await _who_is_in_the_way(subject, now=is_over)}"
            if is_over:
                raise GpuBusyError(why, busy.hint) from None
            note(why)
        else:
            return
        await asyncio.sleep(ROOM_LOOK_S)


def far_more(record: Record, held: Mapping[str, int]) -> str:
    """Say what a sleeper holds where that is far more than it left; empty where it is not."""
    indices = dict(zip(record.gpus, record.gpu_indices, strict=False))
    more = [
        f"{size / GIB:.1f} GiB of GPU {indices.get(uuid, uuid)}"
        for uuid, size in held.items()
        if uuid in record.asleep_bytes and size > record.asleep_bytes[uuid] + FAR_MORE_BYTES
    ]
    return f"sleeps, but holds {' and '.join(more)}" if more else ""


async def _who_is_in_the_way(subject: Subject, *, now: bool) -> str:
    box = await (subject.around.box.fresh() if now else subject.around.box.box())
    places = [place_of(gpu) for gpu in box.gpus if gpu.uuid in subject.record.gpus]
    named = [
        f"{place.outsiders} {'holds' if ' and ' not in place.outsiders else 'hold'} {place.outside_bytes / GIB:.1f} GiB"
        for place in places
        if place.outsiders and place.outside_bytes > TOLD_FROM_BYTES
    ]
    return f"; {', '.join(named)}" if named else ""
