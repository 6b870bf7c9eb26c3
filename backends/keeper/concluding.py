"""The end of a launch: waiting for who writes it down, and judging it by all that is known of it."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from backends.diagnosis.ended import oom_kills
from backends.keeper.ending import Verdict, judge
from backends.keeper.launching import readable
from backends.processes.facts import open_pidfd
from backends.snapshots import Missing

if TYPE_CHECKING:
    from backends.keeper.record import Record
    from backends.keeper.subject import Subject

log = logging.getLogger(__name__)

GUARD_SPEAKS_S = 10.0


async def await_guard(subject: Subject) -> None:
    """Wait for the guard of a shim that was killed: it ends the tree, and writes down how that went."""
    facts = subject.facts()
    descriptor = open_pidfd(facts.guard) if facts and facts.phase != "exited" else None
    if descriptor is not None:
        try:
            async with asyncio.timeout(GUARD_SPEAKS_S):
                await readable(descriptor)
        except TimeoutError:
            log.warning("the guard of %s does not end", subject.name)
        finally:
            os.close(descriptor)


async def judge_end(subject: Subject, launch_problem: str | None) -> Verdict:
    """Judge a launch that is over; one whose front could not have its port is judged by what the front said."""
    record, facts, front = subject.record, subject.facts(), subject.front
    box = await subject.around.box.box()
    sizes = [gpu.memory_total_bytes for gpu in box.gpus if gpu.uuid in record.gpus]
    before, now = record.oom_kills, await asyncio.to_thread(oom_kills, os.getpid())
    if front is not None and record.wanted and (lost := front.lost_its_port()) is not None:
        record, facts = replace(record, log_path=str(front.log_path)), lost
    return await asyncio.to_thread(
        judge,
        record,
        facts,
        launch_problem,
        # An engine in a control group of its own may have been killed without our group's counter telling it.
        oom_killed=(before is not None and now is not None and now > before) or None,
        gpu_count=len(box.gpus),
        gpu_memory_bytes=min((size for size in sizes if not isinstance(size, Missing)), default=None),
    )


def stopped_text(record: Record, memory_not_back: str) -> str:
    """Say that a server has stopped, and whether its memory is back."""
    if memory_not_back:
        return f"stopped, but {memory_not_back}"
    return "stopped; its memory is back" if record.gpu_used_before else "stopped"
