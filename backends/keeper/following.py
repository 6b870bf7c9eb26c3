"""Following an engine: through its start by log and probe, then by its metrics for as long as it serves."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backends.engines.base import StageMark
from backends.engines.stages import StageTracker
from backends.keeper.ports import is_listened_on_by
from backends.metrics.rates import MetricsTracker
from backends.metrics.scrape import parse
from backends.metrics.series import server_figures
from backends.processes.facts import read_progress
from backends.processes.logs import LogFollower
from backends.snapshots import Missing, ServerState

if TYPE_CHECKING:
    from backends.engines.http import EngineHttp
    from backends.keeper.subject import Subject

LOOK_S = 0.25
PROBE_S = 0.5
SCRAPE_S = 1.0
HEALTH_S = 5.0
UNRESPONSIVE_AFTER = 5
"""So many failed looks in a row (each may take seconds) make a ready server unresponsive."""


async def follow_start(subject: Subject, http: EngineHttp) -> None:
    """Show the stages that the log tells, until the engine itself says that it is ready."""
    follower, tracker = LogFollower(Path(subject.record.log_path)), StageTracker(subject.engine.stages, subject.record.launched_at)
    next_probe = 0.0
    while subject.state is ServerState.STARTING:
        for line in await asyncio.to_thread(follower.poll):
            _see(subject, tracker, subject.engine.mark(line))
        progress = read_progress(subject.record.progress_path)
        if progress is not None:
            _see(subject, tracker, subject.engine.mark(progress.text))
        facts = subject.facts()
        if facts is not None and facts.engine is not None and facts.engine.pid != subject.server.pid:
            subject.show(pid=facts.engine.pid)
        if facts is not None and facts.step:
            _see(subject, tracker, StageMark(facts.step))
        if time.monotonic() >= next_probe:
            next_probe = time.monotonic() + PROBE_S
            if await _becomes_ready(subject, http):
                return
        await asyncio.sleep(LOOK_S)


async def _becomes_ready(subject: Subject, http: EngineHttp) -> bool:
    """Ask the engine; an answer counts only where it comes from the server's own tree."""
    readiness = await subject.engine.probe(http, subject.server.served_name)
    ours = readiness.ready and await asyncio.to_thread(_has_its_port, subject)
    if not ours or subject.state is not ServerState.STARTING:
        return False
    now = time.time()
    told = {
        "ready_at": now,
        "kind": readiness.kind,
        "engine_version": readiness.version,
        "max_model_len": readiness.max_model_len,
    }
    subject.keep(**told)
    subject.become(ServerState.READY, stage=None, **told)
    subject.tell("ready", f"ready in {now - subject.record.launched_at:.0f} s at {subject.server.address}")
    return True


async def follow_ready(subject: Subject, http: EngineHttp, scraped: asyncio.Event) -> None:
    """Scrape once a second where the engine has metrics; a server that answers nothing for long is unresponsive."""
    tracker, failures, next_health = MetricsTracker(), 0, 0.0
    while True:
        begun = time.monotonic()
        try:
            if begun >= next_health:
                next_health = begun + HEALTH_S
                status, _ = await http.get("/health")
                if status != 200:
                    raise OSError(f"/health answers {status}")
            if subject.engine.metrics_path is None:
                metrics: object = Missing(f"{subject.engine.name} tells no metrics")
            else:
                _, body = await http.get(subject.engine.metrics_path)
                metrics = tracker.update(time.time(), parse(body))
            failures = 0
        except OSError as problem:
            failures += 1
            metrics = tracker.update(time.time(), Missing(str(problem)))
        if failures == UNRESPONSIVE_AFTER and subject.state is ServerState.READY:
            subject.become(ServerState.UNRESPONSIVE)
            subject.tell("unresponsive", f"does not answer: {metrics.reason if isinstance(metrics, Missing) else ''}")
        elif failures == 0 and subject.state is ServerState.UNRESPONSIVE:
            subject.become(ServerState.READY)
            subject.tell("ready", "answers again")
        subject.show(metrics=metrics)
        subject.around.series.append(f"server {subject.name}", time.time(), server_figures(subject.server.metrics))
        scraped.set()
        await asyncio.sleep(max(0.0, SCRAPE_S - (time.monotonic() - begun)))


def _has_its_port(subject: Subject) -> bool:
    facts = subject.facts()
    return facts is not None and is_listened_on_by(facts.guard.pid, subject.record.port)


def _see(subject: Subject, tracker: StageTracker, mark: StageMark | None) -> None:
    if tracker.see(mark, time.time()) and subject.state is ServerState.STARTING:
        subject.show(stage=tracker.stage)
