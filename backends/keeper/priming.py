"""The first sleep of a server that is to be primed: it pins host memory, which takes seconds; later ones do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from backends.errors import ConflictError, SleepFailedError
from backends.snapshots import ServerState

if TYPE_CHECKING:
    from backends.keeper.sleeping import Sleeper
    from backends.keeper.subject import Subject

QUIET_WITHIN_S = 60.0
QUIET_LOOK_S = 0.2


async def prime(subject: Subject, sleeper: Sleeper) -> None:
    """Have a server that has just started sleep at level 1 and wake, once the switch to it is over and it has no work.

    Requests that come meanwhile are held. A switch that comes meanwhile waits for the call to sleep at most: then the
    server sleeps on. Raises GpuboxError where it has work for long, or others want its GPUs.
    """
    async with subject.around.switching.calm(subject.name) as is_wanted:
        deadline = time.monotonic() + QUIET_WITHIN_S
        while True:
            await _quiet(subject, is_wanted, deadline)
            if await subject.around.switching.level_for(subject.name) != 1:
                subject.tell("primed", "not primed: there is no host memory for a sleep at level 1")
                return
            begun = time.monotonic()
            try:
                _expect(subject, soon=True)
                await sleeper.sleep(1, only_idle=True, keeps_room=True)
            except SleepFailedError:
                _expect(subject, soon=False)
                if subject.state is not ServerState.READY or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(QUIET_LOOK_S)
            else:
                break
        primed = f"primed in {time.monotonic() - begun:.1f} s: its next sleep is fast"
        if is_wanted():
            _expect(subject, soon=False)
            await sleeper.let_go()
            subject.tell("primed", f"{primed}; it sleeps on, since its GPUs are wanted")
            return
        await sleeper.wake()
        subject.tell("primed", primed)


def _expect(subject: Subject, *, soon: bool) -> None:
    if subject.front is not None:
        subject.front.expects = soon


async def _quiet(subject: Subject, is_wanted: Callable[[], bool], deadline: float) -> None:
    while subject.running_requests() and not is_wanted() and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(QUIET_LOOK_S)
    if is_wanted():
        raise ConflictError("not primed: its GPUs are wanted")
    if subject.running_requests():
        raise ConflictError("not primed: it has work")
