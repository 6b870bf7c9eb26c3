"""Following an engine: through its start by log and probe, then by its metrics for as long as it serves."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.engines.sleeping import level_in
from backends.errors import GpuboxError
from backends.keeper.idle import Idleness
from backends.keeper.ports import is_listened_on_by
from backends.keeper.progress import StartWatch
from backends.keeper.scouting import Scout
from backends.metrics.rates import MetricsTracker
from backends.metrics.scrape import parse
from backends.metrics.series import server_figures
from backends.processes.facts import age_s, read_progress
from backends.processes.logs import LogFollower
from backends.snapshots import Metrics, Missing, ServerState
from backends.starts import StartProgress, took_words

if TYPE_CHECKING:
    from backends.engines.http import EngineHttp
    from backends.keeper.sleeping import Sleeper
    from backends.keeper.subject import Subject

LOOK_S = 0.25
PROBE_S = 0.5
SCOUT_S = 1.0
SCRAPE_S = 1.0
HEALTH_S = 5.0
UNRESPONSIVE_AFTER = 5
"""So many failed looks in a row (each may take seconds) make a ready server unresponsive."""


class StartTimeoutError(GpuboxError):
    """The start took longer than the profile allows."""


async def follow_start(subject: Subject, http: EngineHttp) -> None:
    """Show what the start is at and how far, until the engine itself says that it is ready.

    Raises StartTimeoutError once it has taken longer than the profile's `start_timeout_s`, which by default is never.
    """
    record, profile = subject.record, subject.profile
    earlier = await subject.around.history.begun(subject)
    watch = StartWatch(subject.engine, record.launched_at, earlier)
    follower, scout = LogFollower(Path(record.log_path)), Scout(subject)
    next_probe = next_scouting = 0.0
    facts = subject.facts()
    begun = time.monotonic() - (age_s(facts.engine) if facts is not None and facts.engine is not None else 0.0)
    try:
        while subject.state is ServerState.STARTING:
            for line in await asyncio.to_thread(follower.poll):
                watch.see_line(line, time.time())
            progress = read_progress(record.progress_path)
            if progress is not None:
                watch.see_progress(progress.text, progress.at)
            facts = subject.facts()
            if facts is not None and facts.engine is not None and facts.engine.pid != subject.server.pid:
                subject.show(pid=facts.engine.pid)
            if facts is not None and time.monotonic() >= next_scouting:
                next_scouting = time.monotonic() + SCOUT_S
                await scout.look(facts.guard.pid, watch)
            _show(subject, watch, scout.waits_for)
            if time.monotonic() >= next_probe:
                next_probe = time.monotonic() + PROBE_S
                if await _becomes_ready(subject, http, watch):
                    return
            spent_s = time.monotonic() - begun
            if profile.start_timeout_s is not None and spent_s > profile.start_timeout_s:
                raise StartTimeoutError(
                    f"not ready after {profile.start_timeout_s:g} s, which is its start_timeout_s"
                    + (f"; it was at: {watch.stage.name}" if watch.stage else "")
                )
            await asyncio.sleep(LOOK_S)
    finally:
        follower.close()


def _show(subject: Subject, watch: StartWatch, waits_for: str) -> None:
    """Show the newest progress where it differs in what a person would see."""
    if subject.state is not ServerState.STARTING:
        return
    now, shown = time.time(), subject.server.progress
    newer = watch.progress(now)
    if (quiet_since := newer.quiet_since) is not None:
        # What it waits for is looked up within a second; until then nothing is said.
        newer = replace(newer, waits_for=waits_for, quiet_since=quiet_since if waits_for else None)
        if waits_for and (shown is None or shown.quiet_since is None):
            quiet_s = now - quiet_since
            subject.tell("wedged", f"looks wedged: nothing has moved for {quiet_s:.0f} s; it waits for {waits_for}")
    if watch.stage != subject.server.stage or watch.figures != subject.server.figures or _differ(newer, shown):
        subject.show(stage=watch.stage, progress=newer, figures=watch.figures)


def _differ(newer: StartProgress, shown: StartProgress | None) -> bool:
    if shown is None:
        return True

    def seen(one: StartProgress) -> StartProgress:
        eta_at = None if one.eta_s is None else round(one.at + one.eta_s)
        return replace(one, at=0.0, eta_s=eta_at, ratio=None if one.ratio is None else round(one.ratio, 2))

    return seen(newer) != seen(shown)


async def _becomes_ready(subject: Subject, http: EngineHttp, watch: StartWatch) -> bool:
    """Ask the engine; an answer counts only where it comes from the server's own tree."""
    readiness = await subject.engine.probe(http, subject.server.served_name)
    ours = (readiness.ready or readiness.sleeping) and await _has_its_port(subject)
    if not ours or subject.state is not ServerState.STARTING:
        return False
    if subject.front is not None:
        await subject.front.tell(ServerState.READY)
    now = time.time()
    told: dict[str, Any] = {
        "ready_at": now,
        "kind": readiness.kind,
        "engine_version": readiness.version or watch.version,
        "max_model_len": readiness.max_model_len,
    }
    subject.keep(**told)
    subject.last_used_at = now
    progress = replace(watch.progress(now), done=watch.done(now), ratio=1.0, eta_s=None, quiet_since=None)
    subject.become(ServerState.READY, stage=None, progress=progress, figures=watch.figures, **told)
    subject.around.history.ready(subject, watch)
    subject.tell("ready", f"ready in {took_words(now - subject.record.launched_at)} at {subject.server.address}")
    return True


async def follow_ready(subject: Subject, http: EngineHttp, scraped: asyncio.Event, sleeper: Sleeper) -> None:
    """Scrape once a second where the engine has metrics; a server that answers nothing for long is unresponsive.

    Where the engine's own word for whether it sleeps is not what is shown, the `sleeper` sees to it. One that has been
    idle for as long as its profile says is put to sleep.
    """
    tracker, idleness, failures, next_health = MetricsTracker(), Idleness(subject), 0, 0.0
    if subject.server.progress is None and (launch := await subject.around.history.launch_of(subject.record)):
        done = StartProgress(time.time(), launch.stages, ratio=1.0, compile_cached=launch.compile_cached)
        subject.show(figures=launch.figures, progress=done)
    dozing: asyncio.Task[None] | None = None
    try:
        while True:
            begun, since = time.monotonic(), subject.server.state_since
            metrics: Metrics | Missing
            try:
                if begun >= next_health:
                    next_health = begun + HEALTH_S
                    status, _ = await http.get("/health")
                    if status != 200:
                        raise OSError(f"/health answers {status}")
                if subject.engine.metrics_path is None:
                    metrics = Missing(f"{subject.engine.name} tells no metrics")
                else:
                    _, body = await http.get(subject.engine.metrics_path)
                    metrics = tracker.update(time.time(), parse(body))
                trouble = await _trouble_at_the_front(subject)
            except OSError as problem:
                trouble = str(problem)
                metrics = tracker.update(time.time(), Missing(trouble))
            failures = failures + 1 if trouble else 0
            _show_whether_it_answers(subject, failures, trouble)
            if subject.server.state_since == since and _sleeps_otherwise(subject, metrics):
                await sleeper.settle()
            subject.show(metrics=metrics)
            subject.around.series.append(f"server {subject.name}", time.time(), server_figures(subject.server.metrics))
            scraped.set()
            if subject.state is ServerState.READY:
                idleness.see(metrics, subject.front.seen if subject.front is not None else None)
            else:
                idleness.begin_anew()
                await sleeper.weigh()
            if idleness.is_over and (dozing is None or dozing.done()):
                idleness.begin_anew()
                dozing = asyncio.create_task(subject.around.switching.sleep_idle(subject.name))
            await asyncio.sleep(max(0.0, SCRAPE_S - (time.monotonic() - begun)))
    finally:
        if dozing is not None:
            dozing.cancel()
            await asyncio.gather(dozing, return_exceptions=True)


async def _trouble_at_the_front(subject: Subject) -> str:
    """Say what keeps requests from a server whose engine answers; empty where nothing does."""
    if subject.front is not None:
        try:
            await subject.front.look()
        except OSError as problem:
            return str(problem)
    return ""


def _show_whether_it_answers(subject: Subject, failures: int, trouble: str) -> None:
    if failures == UNRESPONSIVE_AFTER and subject.state in (ServerState.READY, ServerState.SLEEPING):
        subject.become(ServerState.UNRESPONSIVE)
        subject.tell("unresponsive", f"does not answer: {trouble}")
    elif failures == 0 and subject.state is ServerState.UNRESPONSIVE and not subject.doomed:
        asleep = subject.server.sleep is not None
        subject.become(ServerState.SLEEPING if asleep else ServerState.READY)
        subject.tell("ready", "answers again, asleep" if asleep else "answers again")


def _sleeps_otherwise(subject: Subject, metrics: Metrics | Missing) -> bool:
    """Whether the engine tells of a sleep, or none, other than what is shown."""
    if isinstance(metrics, Missing) or isinstance(metrics.sleep_state, Missing):
        return False
    level = level_in(metrics.sleep_state)
    if level is None or not subject.server.can_sleep:
        return False
    if subject.state is ServerState.READY:
        return level != 0
    return subject.state is ServerState.SLEEPING and level == 0


async def _has_its_port(subject: Subject) -> bool:
    if subject.front is not None:
        return await subject.front.listens()
    facts = subject.facts()
    return facts is not None and await asyncio.to_thread(is_listened_on_by, facts.guard.pid, subject.record.port)
