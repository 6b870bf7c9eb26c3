"""One server, followed from its launch (or from its adoption) to its end; and again, where it is to be restarted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from backends import paths
from backends.diagnosis.ended import oom_kills
from backends.engines.base import Engine, Placement
from backends.engines.http import EngineHttp
from backends.errors import GpuboxError, SleepFailedError, WakeFailedError
from backends.keeper.allocation import grant_again, indices_of
from backends.keeper.ending import LONGEST_BACKOFF_S, Verdict, judge, next_attempt
from backends.keeper.following import StartTimeoutError, follow_ready, follow_start
from backends.keeper.launching import engine_environ, launch_name, lock_path, readable, shim_spec, tidy
from backends.keeper.ports import choose_port
from backends.keeper.record import Record, erase, keep_copy
from backends.keeper.sleeping import OnStep, untimed
from backends.keeper.subject import Subject
from backends.keeper.surroundings import Surroundings
from backends.keeper.turns import Turn, gate_path
from backends.keeper.vitals import watch_vitals
from backends.processes.facts import ask_again, is_alive, open_pidfd
from backends.processes.facts import signal as send_signal
from backends.processes.launch import launch
from backends.processes.logs import new_log_path
from backends.snapshots import Missing, Server, ServerState
from backends.switches import Level

if TYPE_CHECKING:
    from profiles.schema import Profile

log = logging.getLogger(__name__)

LOOK_S = 0.25
SHIM_SPEAKS_S = 5.0
GUARD_SPEAKS_S = 10.0


class Supervisor:
    """Owns one server: its record, its newest state, and the task that follows its processes."""

    def __init__(
        self, record: Record, profile: Profile, engine: Engine, around: Surroundings, state: ServerState
    ) -> None:
        self._subject = Subject(record, profile, engine, around, state)
        self._turn = Turn(self._subject)
        self._took_too_long: str | None = None
        self._scraped = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def record(self) -> Record:
        """What is on disk of it."""
        return self._subject.record

    @property
    def server(self) -> Server:
        """What clients see of it."""
        return self._subject.server

    def begin(self) -> None:
        """Launch the engine and follow it; the record says what and where, and is on disk already."""
        self._task = asyncio.create_task(self._run(adopted=False), name=f"server {self.record.name}")

    def adopt(self) -> None:
        """Follow an engine that a keeper before this one has launched, and end it where that one was to."""
        self._task = asyncio.create_task(self._run(adopted=True), name=f"server {self.record.name}")
        if not self.record.wanted and not self.record.ended:
            self._end(again=self.record.again, force=False)

    def stop(self, *, force: bool = False) -> None:
        """Stop for good: drain and SIGTERM; with `force`, during a stop too, SIGKILL at once."""
        self._end(again=False, force=force)

    def restart(self) -> None:
        """Stop the engine, and launch it again on the same GPUs and port."""
        self._end(again=True, force=False)

    async def sleep(
        self, level: Level, *, drain_s: float | None = None, on_step: OnStep = untimed, only_idle: bool = False
    ) -> None:
        """Let running requests end (as long as the profile says, or `drain_s`), and put the engine to sleep.

        Returns once it sleeps and its memory is back; with `only_idle` it stays awake where it has work after all.
        Raises SleepFailedError, also where it is stopped or ends meanwhile, and where it does not serve.
        """
        raise SleepFailedError(f"server {self.record.name} cannot sleep")

    async def wake(self, *, on_step: OnStep = untimed) -> None:
        """Wake the engine where all that it needs is free on its GPUs; returns once it serves again.

        One that fails to wake is ended, and its memory waited for. Raises WakeFailedError, also where there is no room
        (it sleeps on then), where it is stopped or ends meanwhile, and where it does not sleep.
        """
        raise WakeFailedError(f"server {self.record.name} does not sleep")

    @property
    def needs(self) -> dict[str, int | None]:
        """What it takes of its GPUs awake, in bytes by UUID; None is all of one, or not known."""
        return self.record.reserved

    @property
    def last_used_at(self) -> float:
        """When it last had work, as far as is known; when it was ready where it had none."""
        return self.record.ready_at or self.record.launched_at

    def _end(self, *, again: bool, force: bool) -> None:
        self._subject.keep(wanted=False, again=again)
        self._stop_asked.set()
        if self.server.state is ServerState.BACKOFF:
            return
        if self._stopping is not None and not self._stopping.done():
            if not force:
                return
            self._stopping.cancel()
        if self.server.state is ServerState.READY and self._subject.running_requests() and not force:
            self._subject.become(ServerState.DRAINING)
        elif self.server.state is not ServerState.STOPPING:
            self._subject.become(ServerState.STOPPING, stage=None)
        self._stopping = asyncio.create_task(self._wind_down(force=force), name=f"stopping {self.record.name}")

    @property
    def shim_pid(self) -> int | None:
        """The pid of the newest launch's shim."""
        facts = self._subject.facts()
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
            if adopted and self.record.ended:
                if not self.record.again and not await self._await_retry():
                    return
                adopted = False
                self._relaunch()
            while True:
                problem = None
                if adopted:
                    await self._await_shim()
                else:
                    problem = await self._launch()
                if problem is None:
                    await self._attend()
                    again = await self._conclude(self._took_too_long if self.record.wanted else None)
                else:
                    again = await self._conclude(problem)
                if not again:
                    return
                adopted = False
                self._relaunch()
        except Exception as bug:
            log.exception("following %s failed", self.record.name)
            facts = self._subject.facts()
            state = self.server.state if facts and is_alive(facts.shim) else ServerState.LOST
            self._subject.show(state=state, cause=f"gpubox lost track of it: {bug!r}; see keeper.log")

    async def _launch(self) -> str | None:
        """Start the shim; returns why that failed, if it did."""
        from profiles.secrets import resolve_secrets

        profile = self._subject.profile
        try:
            grants = await self._placed()
            record = self.record
            placement = Placement(record.gpu_indices, record.port, record.environ)
            plan = self._subject.engine.plan(profile, placement)
            secrets = resolve_secrets(profile, record.environ)
            environ = engine_environ(record.environ, plan, profile, secrets, record.gpu_indices)
            self._subject.keep(oom_kills=await asyncio.to_thread(oom_kills, os.getpid()))
            await asyncio.to_thread(keep_copy, self.record)
            if record.gated:
                os.mkfifo(gate_path(record.folder), 0o600)
            spec, held = shim_spec(record, profile, plan, environ, grants), self._subject.around.ledger
            await asyncio.to_thread(launch, spec, record.folder, inherited=held.descriptors(record.name))
            await asyncio.to_thread(tidy, record, profile.logs.keep)
        except (GpuboxError, OSError, ValueError) as problem:
            return str(problem)
        self._subject.tell("started", f"started on {self._where()}, port {record.port}")
        if self._stop_asked.is_set():
            self._signal(signal.SIGTERM)
        return None

    async def _placed(self) -> tuple[str, ...]:
        """See that the GPUs are there and still granted, and return the ledger's files; raises GpuboxError."""
        record, ledger = self.record, self._subject.around.ledger
        if not record.gpus:
            return ()
        box = await self._subject.around.box.fresh()
        indices = indices_of(record.gpus, box)
        if indices != record.gpu_indices:
            self._subject.keep(gpu_indices=indices)
            self._subject.show(gpu_indices=indices)
        files = ledger.files(record.name)
        if len(files) < len(record.gpus):
            return await asyncio.to_thread(grant_again, ledger, record.name, record.reserved)
        return files

    async def _await_shim(self) -> None:
        """Give a shim that the keeper before us was just starting, when it died, the time to say so.

        Facts that cannot be read although the shim lives are asked for again.
        """
        if self._subject.facts() is None:
            await asyncio.to_thread(ask_again, lock_path(self.record.name))
        deadline = time.monotonic() + SHIM_SPEAKS_S
        while self._subject.facts() is None and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)

    async def _attend(self) -> None:
        """Follow the engine until its shim is gone."""
        facts = self._subject.facts()
        shim = facts.shim if facts else None
        descriptor = open_pidfd(shim) if shim else None
        if descriptor is None:
            await self._await_guard()
            return
        if facts and facts.engine:
            self._subject.show(pid=facts.engine.pid)
        living = asyncio.create_task(self._live(), name=f"looking after {self.record.name}")
        try:
            await readable(descriptor)
        finally:
            os.close(descriptor)
            living.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await living
            self._turn.give_back()
        await self._await_guard()

    async def _await_guard(self) -> None:
        """Wait for the guard of a shim that was killed: it ends the tree, and writes down how that went."""
        facts = self._subject.facts()
        descriptor = open_pidfd(facts.guard) if facts and facts.phase != "exited" else None
        if descriptor is not None:
            try:
                async with asyncio.timeout(GUARD_SPEAKS_S):
                    await readable(descriptor)
            except TimeoutError:
                log.warning("the guard of %s does not end", self.record.name)
            finally:
                os.close(descriptor)

    async def _live(self) -> None:
        try:
            async with EngineHttp(self.server.address, self.api_key()) as http:
                if self.server.state is ServerState.QUEUED:
                    await self._turn.await_gate()
                if self.server.state is ServerState.STARTING:
                    if self.record.gated:
                        self._turn.take_up()
                    await follow_start(self._subject, http)
                self._turn.give_back()
                vitals = asyncio.create_task(watch_vitals(self._subject), name=f"vitals of {self.record.name}")
                try:
                    await follow_ready(self._subject, http, self._scraped)
                finally:
                    vitals.cancel()
                    await asyncio.gather(vitals, return_exceptions=True)
        except StartTimeoutError as timeout:
            self._took_too_long = timeout.message
            self._subject.tell("timeout", f"ended: {timeout.message}")
            self._signal(signal.SIGTERM)
        except Exception:
            log.exception("looking after %s failed", self.record.name)

    async def _wind_down(self, *, force: bool) -> None:
        if self.server.state is ServerState.DRAINING:
            await self._drain()
            if self.server.state is ServerState.DRAINING:
                self._subject.become(ServerState.STOPPING)
        self._signal(signal.SIGQUIT if force else signal.SIGTERM)

    async def _drain(self) -> None:
        """Let running requests end, for as long as the profile allows."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._subject.profile.drain_s):
                while self._subject.running_requests():
                    self._scraped.clear()
                    await self._scraped.wait()

    async def _conclude(self, launch_problem: str | None = None) -> bool:
        """Write down how a launch ended; returns whether there is to be another one."""
        verdict = await self._judge(launch_problem)
        not_back = ""
        if verdict.state is ServerState.STOPPED:
            if self.server.state not in (ServerState.DRAINING, ServerState.STOPPING):
                self._subject.become(ServerState.STOPPING, stage=None)
            not_back = await self._subject.around.box.memory_back(self.record.gpu_used_before)
        self._subject.keep(exit=verdict.exit, cause=verdict.cause, card=verdict.card, ended=True)
        self._subject.around.box.look_now()
        if verdict.lost_its_port and self.record.any_port and self.record.wanted:
            return self._take_another_port(verdict)
        if verdict.state is ServerState.STOPPED:
            self._subject.tell("memory" if not_back else "stopped", _stopped_text(self.record, not_back))
        else:
            self._subject.tell("failed", f"failed: {verdict.cause}")
            again = next_attempt(self.record, self._subject.profile.restart, time.time())
            if again is not None and self.record.wanted and verdict.was_launched:
                return await self._back_off(*again, verdict)
        self._rest(verdict.state, verdict)
        return self.record.again

    async def _judge(self, launch_problem: str | None) -> Verdict:
        box = await self._subject.around.box.box()
        sizes = [gpu.memory_total_bytes for gpu in box.gpus if gpu.uuid in self.record.gpus]
        before, now = self.record.oom_kills, await asyncio.to_thread(oom_kills, os.getpid())
        return await asyncio.to_thread(
            judge,
            self.record,
            self._subject.facts(),
            launch_problem,
            # An engine in a control group of its own may have been killed without our group's counter telling it.
            oom_killed=(before is not None and now is not None and now > before) or None,
            gpu_count=len(box.gpus),
            gpu_memory_bytes=min((size for size in sizes if not isinstance(size, Missing)), default=None),
        )

    def _rest(self, state: ServerState, verdict: Verdict, **changes: object) -> None:
        """Go to a state without a process."""
        if state is not ServerState.BACKOFF and not self.record.again:
            self._subject.around.ledger.release(self.record.name)
        changes |= {"exit": verdict.exit, "cause": verdict.cause, "card": verdict.card}
        changes |= {"stage": None, "progress": None, "pid": None}
        self._subject.become(state, metrics=Missing("not running"), **changes)
        self._subject.around.history.ended(self._subject)

    async def _back_off(self, attempt: int, delay_s: float, verdict: Verdict) -> bool:
        retry_at = time.time() + delay_s
        self._subject.keep(attempt=attempt, retry_at=retry_at)
        self._rest(ServerState.BACKOFF, verdict, attempt=attempt, retry_at=retry_at)
        self._subject.tell("backoff", f"attempt {attempt + 1} in {delay_s:.0f} s")
        return await self._await_retry()

    async def _await_retry(self) -> bool:
        """Wait until the next attempt is due; returns whether there is to be one."""
        delay_s = min(max(0.0, (self.record.retry_at or 0.0) - time.time()), LONGEST_BACKOFF_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop_asked.wait(), delay_s)
            if not self.record.again:
                self._subject.keep(retry_at=None)
                self._subject.around.ledger.release(self.record.name)
                self._subject.become(ServerState.STOPPED, retry_at=None)
                return False
        return True

    def _take_another_port(self, verdict: Verdict) -> bool:
        """Take any other port, where somebody got ours before the engine did; returns whether there is one."""
        try:
            port = choose_port(self._subject.profile.host, None, self._subject.around.taken_ports())
        except GpuboxError as problem:
            self._rest(ServerState.FAILED, replace(verdict, cause=problem.message))
            return False
        self._rest(ServerState.BACKOFF, verdict)
        self._subject.tell("port", f"port {self.record.port} was taken meanwhile; trying {port}")
        self._subject.keep(port=port)
        return True

    def _relaunch(self) -> None:
        """Make the record of the next launch, on the same GPUs and port, and go back to starting."""
        self._stop_asked.clear()
        self._took_too_long = None
        if self._stopping is not None:
            self._stopping.cancel()
        now = time.time()
        self._subject.keep(
            launch=launch_name(now),
            log_path=str(new_log_path(paths.private(paths.log_dir()), self.record.name, now)),
            launched_at=now,
            wanted=True,
            again=False,
            retry_at=None,
            ready_at=None,
            exit=None,
            cause=None,
            card=None,
            ended=False,
        )
        self._subject.begin_again()

    def _signal(self, number: signal.Signals) -> None:
        facts = self._subject.facts()
        if facts is not None:
            send_signal(facts.shim, number)

    def _where(self) -> str:
        return f"GPU {', '.join(map(str, self.record.gpu_indices))}" if self.record.gpus else "the CPU"

    def api_key(self) -> str | None:
        """Return the key that the engine asks for, from where the profile says it is."""
        from profiles.secrets import resolve_secrets

        return resolve_secrets(self._subject.profile, self.record.environ).get("VLLM_API_KEY")


def _stopped_text(record: Record, memory_not_back: str) -> str:
    if memory_not_back:
        return f"stopped, but {memory_not_back}"
    return "stopped; its memory is back" if record.gpu_used_before else "stopped"
