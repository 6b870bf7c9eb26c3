"""One server, followed from its launch (or from its adoption) to its end; and again, where it is to be restarted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from backends import paths
from backends.engines.base import Engine, Placement, StageMark
from backends.engines.http import EngineHttp
from backends.engines.stages import StageTracker
from backends.errors import GpuboxError
from backends.keeper.ending import Verdict, judge, next_attempt
from backends.keeper.launching import engine_environ, launch_name, readable, shim_spec, tidy
from backends.keeper.ports import choose_port, is_listened_on_by
from backends.keeper.record import Record, erase, save, server_of
from backends.keeper.states import check
from backends.keeper.surroundings import Surroundings
from backends.metrics.rates import MetricsTracker
from backends.metrics.scrape import parse
from backends.metrics.series import server_figures
from backends.processes.facts import ProcessFacts, is_alive, open_pidfd, read_facts, read_progress
from backends.processes.facts import signal as send_signal
from backends.processes.launch import launch
from backends.processes.logs import LogFollower, new_log_path
from backends.snapshots import Event, EventUpdate, Missing, ServerState, ServerUpdate

if TYPE_CHECKING:
    from profiles.schema import Profile

log = logging.getLogger(__name__)

LOOK_S = 0.25
PROBE_S = 0.5
SCRAPE_S = 1.0
HEALTH_S = 5.0
UNRESPONSIVE_AFTER = 5
"""So many failed looks in a row (each may take seconds) make a ready server unresponsive."""

SHIM_SPEAKS_S = 5.0


class Supervisor:
    """Owns one server: its record, its newest state, and the task that follows its processes."""

    def __init__(
        self, record: Record, profile: Profile, engine: Engine, around: Surroundings, state: ServerState
    ) -> None:
        self.record = record
        self.profile = profile
        self._engine = engine
        self._around = around
        self._scraped = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.server = server_of(record, profile, engine, state)

    def begin(self) -> None:
        """Launch the engine and follow it; the record says what and where, and is on disk already."""
        self._task = asyncio.create_task(self._run(adopted=False), name=f"server {self.record.name}")

    def adopt(self) -> None:
        """Follow an engine that a keeper before this one has launched, and end it where that one was to."""
        self._task = asyncio.create_task(self._run(adopted=True), name=f"server {self.record.name}")
        if not self.record.wanted:
            self._end(again=self.record.again, force=False)

    def stop(self, *, force: bool = False) -> None:
        """Stop for good: drain and SIGTERM; with `force`, during a stop too, SIGKILL at once."""
        self._end(again=False, force=force)

    def restart(self) -> None:
        """Stop the engine, and launch it again on the same GPUs and port."""
        self._end(again=True, force=False)

    def _end(self, *, again: bool, force: bool) -> None:
        self._keep(wanted=False, again=again)
        self._stop_asked.set()
        if self.server.state in (ServerState.BACKOFF, ServerState.QUEUED):
            return
        if self._stopping is not None and not self._stopping.done():
            if not force:
                return
            self._stopping.cancel()
        if self.server.state is ServerState.READY and self._running_requests() and not force:
            self._become(ServerState.DRAINING)
        elif self.server.state is not ServerState.STOPPING:
            self._become(ServerState.STOPPING, stage=None)
        self._stopping = asyncio.create_task(self._wind_down(force=force), name=f"stopping {self.record.name}")

    @property
    def shim_pid(self) -> int | None:
        """The pid of the newest launch's shim."""
        facts = self._facts()
        return facts.shim.pid if facts else None

    def erase(self) -> None:
        """Remove all that is on disk of this server, its logs excepted."""
        erase(self.record.name)

    async def detach(self) -> None:
        """Stop following, and leave the engine alone: the keeper ends."""
        for task in (self._stopping, self._task):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _run(self, *, adopted: bool) -> None:
        try:
            while True:
                problem = None
                if adopted:
                    await self._await_shim()
                else:
                    problem = await self._launch()
                if problem is None:
                    await self._attend()
                    again = await self._conclude()
                else:
                    again = await self._conclude(problem)
                if not again:
                    return
                adopted = False
                self._relaunch()
        except Exception as bug:
            log.exception("following %s failed", self.record.name)
            facts = self._facts()
            state = self.server.state if facts and is_alive(facts.shim) else ServerState.LOST
            self._show(state=state, cause=f"gpubox lost track of it: {bug!r}; see keeper.log")

    async def _launch(self) -> str | None:
        """Start the shim; returns why that failed, if it did."""
        from profiles.secrets import resolve_secrets

        record, profile = self.record, self.profile
        try:
            placement = Placement(record.gpu_indices, record.port, record.environ)
            plan = self._engine.plan(profile, placement)
            secrets = resolve_secrets(profile, record.environ)
            environ = engine_environ(record.environ, plan, profile, secrets, record.gpu_indices)
            await asyncio.to_thread(launch, shim_spec(record, profile, plan, environ), record.folder)
            await asyncio.to_thread(tidy, record, profile.logs.keep)
        except (GpuboxError, OSError, ValueError) as problem:
            return str(problem)
        self._tell("started", f"started on {self._where()}, port {record.port}")
        if self._stop_asked.is_set():
            self._signal(signal.SIGTERM)
        return None

    async def _await_shim(self) -> None:
        """Give a shim that the keeper before us was just starting, when it died, the time to say so."""
        while self._facts() is None and time.time() - self.record.launched_at < SHIM_SPEAKS_S:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)

    async def _attend(self) -> None:
        """Follow the engine until its shim is gone."""
        facts = self._facts()
        shim = facts.shim if facts else None
        descriptor = open_pidfd(shim) if shim else None
        if descriptor is None:
            return
        if facts and facts.engine:
            self._show(pid=facts.engine.pid)
        living = asyncio.create_task(self._live(), name=f"looking after {self.record.name}")
        try:
            await readable(descriptor)
        finally:
            os.close(descriptor)
            living.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await living

    async def _live(self) -> None:
        try:
            async with EngineHttp(self.server.address, self.api_key()) as http:
                if self.server.state is ServerState.STARTING:
                    await self._follow_start(http)
                await self._follow_ready(http)
        except Exception:
            log.exception("looking after %s failed", self.record.name)

    async def _follow_start(self, http: EngineHttp) -> None:
        follower, tracker = LogFollower(Path(self.record.log_path)), StageTracker(self._engine.stages)
        next_probe = 0.0
        while self.server.state is ServerState.STARTING:
            for line in await asyncio.to_thread(follower.poll):
                self._see(tracker, self._engine.mark(line))
            progress = read_progress(self.record.progress_path)
            if progress is not None:
                self._see(tracker, self._engine.mark(progress.text))
            facts = self._facts()
            if facts is not None and facts.engine is not None and facts.engine.pid != self.server.pid:
                self._show(pid=facts.engine.pid)
            if facts is not None and facts.step:
                self._see(tracker, StageMark(facts.step))
            if time.monotonic() >= next_probe:
                readiness = await self._engine.probe(http, self.server.served_name)
                next_probe = time.monotonic() + PROBE_S
                ours = readiness.ready and await asyncio.to_thread(self._has_its_port)
                if ours and self.server.state is ServerState.STARTING:
                    now = time.time()
                    self._keep(
                        ready_at=now,
                        kind=readiness.kind,
                        engine_version=readiness.version,
                        max_model_len=readiness.max_model_len,
                    )
                    self._become(
                        ServerState.READY,
                        ready_at=now,
                        kind=readiness.kind,
                        engine_version=readiness.version,
                        max_model_len=readiness.max_model_len,
                        stage=None,
                    )
                    self._tell("ready", f"ready in {now - self.record.launched_at:.0f} s at {self.server.address}")
                    return
            await asyncio.sleep(LOOK_S)

    def _has_its_port(self) -> bool:
        facts = self._facts()
        return facts is not None and is_listened_on_by(facts.guard.pid, self.record.port)

    async def _follow_ready(self, http: EngineHttp) -> None:
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
                if self._engine.metrics_path is None:
                    metrics: object = Missing(f"{self._engine.name} tells no metrics")
                else:
                    _, body = await http.get(self._engine.metrics_path)
                    metrics = tracker.update(time.time(), parse(body))
                failures = 0
            except OSError as problem:
                failures += 1
                metrics = tracker.update(time.time(), Missing(str(problem)))
            if failures == UNRESPONSIVE_AFTER and self.server.state is ServerState.READY:
                self._become(ServerState.UNRESPONSIVE)
                self._tell("unresponsive", f"does not answer: {metrics.reason if isinstance(metrics, Missing) else ''}")
            elif failures == 0 and self.server.state is ServerState.UNRESPONSIVE:
                self._become(ServerState.READY)
                self._tell("ready", "answers again")
            self._show(metrics=metrics)
            self._around.series.append(f"server {self.record.name}", time.time(), server_figures(self.server.metrics))
            self._scraped.set()
            await asyncio.sleep(max(0.0, SCRAPE_S - (time.monotonic() - begun)))

    async def _wind_down(self, *, force: bool) -> None:
        if self.server.state is ServerState.DRAINING:
            await self._drain()
            if self.server.state is ServerState.DRAINING:
                self._become(ServerState.STOPPING)
        self._signal(signal.SIGQUIT if force else signal.SIGTERM)

    async def _drain(self) -> None:
        """Let running requests end, for as long as the profile allows."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.profile.drain_s):
                while self._running_requests():
                    self._scraped.clear()
                    await self._scraped.wait()

    def _running_requests(self) -> int:
        metrics = self.server.metrics
        if isinstance(metrics, Missing) or isinstance(metrics.running, Missing):
            return 0
        return metrics.running + (0 if isinstance(metrics.waiting, Missing) else metrics.waiting)

    async def _conclude(self, launch_problem: str | None = None) -> bool:
        """Write down how a launch ended; returns whether there is to be another one."""
        verdict = await asyncio.to_thread(judge, self.record, self._facts(), launch_problem)
        not_back = ""
        if verdict.state is ServerState.STOPPED:
            if self.server.state not in (ServerState.DRAINING, ServerState.STOPPING):
                self._become(ServerState.STOPPING, stage=None)
            not_back = await self._around.box.memory_back(self.record.gpu_used_before)
        self._keep(exit=verdict.exit, cause=verdict.cause, ended=True)
        self._around.box.look_now()
        if verdict.lost_its_port and self.record.any_port and self.record.wanted:
            return self._take_another_port(verdict)
        if verdict.state is ServerState.STOPPED:
            self._tell("memory" if not_back else "stopped", _stopped_text(self.record, not_back))
        else:
            self._tell("failed", f"failed: {verdict.cause}")
            again = next_attempt(self.record, self.profile.restart, time.time())
            if again is not None and self.record.wanted and verdict.was_launched:
                return await self._back_off(*again, verdict)
        self._rest(verdict.state, verdict)
        return self.record.again

    def _rest(self, state: ServerState, verdict: Verdict, **changes: object) -> None:
        """Go to a state without a process."""
        over = Missing("not running")
        self._become(state, exit=verdict.exit, cause=verdict.cause, stage=None, pid=None, metrics=over, **changes)

    async def _back_off(self, attempt: int, delay_s: float, verdict: Verdict) -> bool:
        self._keep(attempt=attempt)
        self._rest(ServerState.BACKOFF, verdict, attempt=attempt, retry_at=time.time() + delay_s)
        self._tell("backoff", f"attempt {attempt + 1} in {delay_s:.0f} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop_asked.wait(), delay_s)
            if not self.record.again:
                self._become(ServerState.STOPPED, retry_at=None)
                return False
        return True

    def _take_another_port(self, verdict: Verdict) -> bool:
        """Take any other port, where somebody got ours before the engine did; returns whether there is one."""
        try:
            port = choose_port(self.profile.host, None, self._around.taken_ports())
        except GpuboxError as problem:
            self._rest(ServerState.FAILED, replace(verdict, cause=problem.message))
            return False
        self._rest(ServerState.BACKOFF, verdict)
        self._tell("port", f"port {self.record.port} was taken meanwhile; trying {port}")
        self._keep(port=port)
        return True

    def _relaunch(self) -> None:
        """Make the record of the next launch, on the same GPUs and port, and go back to starting."""
        self._stop_asked.clear()
        if self._stopping is not None:
            self._stopping.cancel()
        now = time.time()
        self._keep(
            launch=launch_name(now),
            log_path=str(new_log_path(paths.private(paths.log_dir()), self.record.name, now)),
            launched_at=now,
            wanted=True,
            again=False,
            ready_at=None,
            exit=None,
            cause=None,
            ended=False,
        )
        source = self.server.state
        check(source, ServerState.STARTING)
        self.server = server_of(self.record, self.profile, self._engine, ServerState.STARTING)
        self._around.hub.publish(ServerUpdate(self.server))

    def _facts(self) -> ProcessFacts | None:
        facts = read_facts(self.record.facts_path)
        return None if isinstance(facts, Missing) else facts

    def _signal(self, number: signal.Signals) -> None:
        facts = self._facts()
        if facts is not None:
            send_signal(facts.shim, number)

    def _see(self, tracker: StageTracker, mark: StageMark | None) -> None:
        if tracker.see(mark, time.time()) and self.server.state is ServerState.STARTING:
            self._show(stage=tracker.stage)

    def _become(self, state: ServerState, **changes: object) -> None:
        check(self.server.state, state)
        self._show(state=state, state_since=time.time(), **changes)

    def _show(self, **changes: object) -> None:
        self.server = replace(self.server, **changes)  # type: ignore[arg-type]
        self._around.hub.publish(ServerUpdate(self.server))

    def _keep(self, **changes: object) -> None:
        self.record = replace(self.record, **changes)  # type: ignore[arg-type]
        try:
            save(self.record)
        except OSError as problem:
            log.warning("the record of %s cannot be written: %s", self.record.name, problem)

    def _tell(self, kind: str, text: str) -> None:
        self._around.hub.publish(EventUpdate(Event(time.time(), self.record.name, kind, text)))

    def _where(self) -> str:
        return f"GPU {', '.join(map(str, self.record.gpu_indices))}" if self.record.gpus else "the CPU"

    def api_key(self) -> str | None:
        """Return the key that the engine asks for, from where the profile says it is."""
        from profiles.secrets import resolve_secrets

        return resolve_secrets(self.profile, self.record.environ).get("VLLM_API_KEY")


def _stopped_text(record: Record, memory_not_back: str) -> str:
    if memory_not_back:
        return f"stopped, but {memory_not_back}"
    return "stopped; its memory is back" if record.gpu_used_before else "stopped"
