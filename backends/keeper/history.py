"""Writing launches to the records, off the event loop and in their order; nothing here waits for a disk.

Of a start that no keeper saw to its end, the log tells: its lines carry their times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from backends.keeper.progress import StartWatch
from backends.processes.logs import LogFollower, split_stamp
from backends.records import CPU, Launch, Records, fingerprint
from backends.snapshots import Box, Server, ServerState

if TYPE_CHECKING:
    from backends.engines.base import Engine
    from backends.keeper.record import Record
    from backends.keeper.subject import Subject
    from profiles.schema import Profile

log = logging.getLogger(__name__)

OUTCOMES = {ServerState.STOPPED: "stopped", ServerState.LOST: "lost"}
"""Of the states that a launch ends in; any other is a failure."""

UNKNOWN_GPU = "unknown GPU"


class History:
    """The keeper's pen: one thread writes what it is handed, in that order."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")

    async def begun(self, subject: Subject) -> tuple[Launch, ...]:
        """Put a launch that has begun on record, where it is not yet; returns earlier starts alike, newest first."""
        try:
            launch = _launch(subject.record, subject.profile, await subject.around.box.box())
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._begin, launch, subject.profile)
        except Exception:
            log.exception("the launch of %s could not be put on record", subject.name)
            return ()

    async def launch_of(self, record: Record) -> Launch | None:
        """Return what is on record of a server's newest launch, which another keeper may have seen."""
        return await asyncio.to_thread(self.records.launch, _id(record))

    def ready(self, subject: Subject, watch: StartWatch) -> None:
        """Put on record that a launch got ready, with the stages and figures that were seen."""
        record, profile = subject.record, subject.profile
        self._later(lambda: self.records.add(self._with_start(record, profile, watch, "ready")))

    def ended(self, subject: Subject) -> None:
        """Put on record how a launch ended, which the subject's state tells."""
        record, profile, engine, server = subject.record, subject.profile, subject.engine, subject.server
        self._later(lambda: self._end(record, profile, engine, server))

    def close(self) -> None:
        """Write what is to be written still, and end."""
        self._thread.shutdown(wait=True)

    def _begin(self, launch: Launch, profile: Profile) -> tuple[Launch, ...]:
        if self.records.launch(launch.id) is None:
            self.records.add(launch)
        return self.records.earlier(profile, launch.gpu_kind, launch.gpu_count)

    def _end(self, record: Record, profile: Profile, engine: Engine, server: Server) -> None:
        launch = self.records.launch(_id(record))
        if launch is None or launch.outcome == "starting":
            watch = read_start(engine, record.log_path, record.launched_at, _start_over_at(record))
            launch = self._with_start(record, profile, watch, "starting")
        self.records.add(
            replace(
                launch,
                outcome=OUTCOMES.get(server.state, "failed"),
                ended_at=record.exit.at if record.exit else time.time(),
                cause=server.cause,
                card=server.card.cause if server.card else None,
            )
        )

    def _with_start(self, record: Record, profile: Profile, watch: StartWatch, outcome: str) -> Launch:
        """Return a launch with what was seen of its start."""
        launch = self.records.launch(_id(record)) or _launch(record, profile, None)
        return replace(
            launch,
            outcome=outcome,
            ready_at=record.ready_at,
            engine_version=record.engine_version or watch.version,
            compile_cached=watch.compile_cached,
            stages=watch.done(_start_over_at(record)),
            figures=watch.figures,
        )

    def _later(self, work: Callable[[], object]) -> None:
        def careful() -> None:
            try:
                work()
            except Exception:
                log.exception("a launch could not be put on record")

        try:
            self._thread.submit(careful)
        except RuntimeError as problem:  # the keeper ends, and the pen has been put down
            log.warning("a launch is not put on record: %s", problem)


def read_start(engine: Engine, log_path: str, launched_at: float, until: float | None) -> StartWatch:
    """Return what a log tells of a start, up to the moment `until`; nothing where it cannot be read."""
    watch, follower = StartWatch(engine, launched_at), LogFollower(Path(log_path))
    try:
        while lines := follower.poll():
            for line in lines:
                stamp, _ = split_stamp(line)
                if until is not None and stamp is not None and stamp.timestamp() > until:
                    return watch
                watch.see_line(line, launched_at)
    except OSError as problem:
        log.warning("%s cannot be read: %s", log_path, problem)
    finally:
        follower.close()
    return watch


def _start_over_at(record: Record) -> float | None:
    return record.ready_at or (record.exit.at if record.exit else None)


def _id(record: Record) -> str:
    return f"{record.name}/{record.launch}"


def _launch(record: Record, profile: Profile, box: Box | None) -> Launch:
    names = {gpu.name for gpu in box.gpus if gpu.uuid in record.gpus} if box else set()
    return Launch(
        id=_id(record),
        server=record.name,
        profile=profile.name,
        fingerprint=fingerprint(profile),
        engine=profile.engine,
        engine_version=None,
        gpu_kind=(", ".join(sorted(names)) or UNKNOWN_GPU) if record.gpus else CPU,
        gpu_count=len(record.gpus),
        launched_at=record.launched_at,
        log_path=record.log_path,
    )
