"""One server, followed from its launch (or from its adoption) to its end; and again, where it is to be restarted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING

from backends import paths
from backends.engines.base import Engine
from backends.engines.http import EngineHttp
from backends.errors import GpuboxError
from backends.keeper.concluding import await_guard, judge_end, stopped_text
from backends.keeper.ending import LONGEST_BACKOFF_S, Verdict, next_attempt
from backends.keeper.following import StartTimeoutError, follow_ready, follow_start
from backends.keeper.launching import launch_name, readable
from backends.keeper.ports import choose_port
from backends.keeper.record import Record, engine_socket_of, erase
from backends.keeper.rooms import needs_of
from backends.keeper.sleeping import OnStep, Sleeper, untimed
from backends.keeper.starting import await_shim, start_engine
from backends.keeper.subject import Subject
from backends.keeper.surroundings import Surroundings
from backends.keeper.turns import Turn
from backends.keeper.vitals import watch_vitals
from backends.processes.facts import is_alive, open_pidfd
from backends.processes.facts import signal as send_signal
from backends.processes.logs import new_log_path
from backends.snapshots import Missing, Server, ServerState
from backends.starts import gpu_words
from backends.switches import Level

if TYPE_CHECKING:
    from profiles.schema import Profile

log = logging.getLogger(__name__)


class Supervisor:
    """Owns one server: its record, its newest state, and the task that follows its processes."""

    def __init__(
        self, record: Record, profile: Profile, engine: Engine, around: Surroundings, state: ServerState
    ) -> None:
        self._subject = Subject(record, profile, engine, around, state)
        self._turn = Turn(self._subject)
        self._sleeper = Sleeper(self._subject)
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
        await self._sleeper.sleep(level, drain_s=drain_s, on_step=on_step, only_idle=only_idle)

    async def wake(self, *, on_step: OnStep = untimed, room_within_s: float = 0.0) -> None:
        """Wake the engine, see Sleeper.wake; at once where it serves. Raises WakeFailedError."""
        await self._sleeper.wake(on_step=on_step, room_within_s=room_within_s)

    async def expect(self, *, soon: bool) -> None:
        """Have its front hold requests while it sleeps, since it is to be woken soon; or no longer."""
        if self._subject.front is not None and self._subject.front.expects != soon:
            self._subject.front.expects = soon
            await self._subject.front.tell()

    @property
    def needs(self) -> dict[str, int | None]:
        """What it takes of its GPUs awake, in bytes by UUID; None is all of one, or not known."""
        return needs_of(self.record)

    @property
    def half_awake(self) -> str:
        """See Sleeper.half_awake."""
        return self._sleeper.half_awake

    @property
    def last_used_at(self) -> float:
        """When it last had work, as far as is known; when it was ready where it had none."""
        return self._subject.last_used_at

    def _end(self, *, again: bool, force: bool) -> None:
        self._subject.keep(wanted=False, again=again)
        self._stop_asked.set()
        if self.server.state is ServerState.BACKOFF:
            return
        if self._stopping is not None and not self._stopping.done():
            if not force:
                return
            self._stopping.cancel()
        self._sleeper.overtake()
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
        await self._sleeper.detach()
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
                    await await_shim(self._subject)
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
        try:
            await start_engine(self._subject)
        except (GpuboxError, OSError, ValueError) as problem:
            return str(problem)
        self._subject.tell("started", f"started on {self._where()}, port {self.record.port}")
        if self._stop_asked.is_set():
            self._signal(signal.SIGTERM)
        return None

    async def _attend(self) -> None:
        """Follow the engine until its shim is gone."""
        facts = self._subject.facts()
        shim = facts.shim if facts else None
        descriptor = open_pidfd(shim) if shim else None
        if descriptor is None:
            await await_guard(self._subject)
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
            self._sleeper.overtake()
        await await_guard(self._subject)

    async def _live(self) -> None:
        subject, record = self._subject, self.record
        beside: list[asyncio.Task[None]] = []

        def also(work: Coroutine[None, None, None]) -> None:
            beside.append(asyncio.create_task(work, name=f"{work.__name__} of {record.name}"))
            beside[-1].add_done_callback(_log_bug)

        try:
            if subject.front is not None:
                also(subject.front.attend())
            async with EngineHttp(self.server.address, subject.api_key(), uds=record.uds) as http:
                if self.server.state is ServerState.QUEUED:
                    await self._turn.await_gate()
                adopted = self.server.state is not ServerState.STARTING
                if not adopted:
                    if record.gated:
                        self._turn.take_up()
                    await follow_start(subject, http)
                    also(self._begin())
                else:
                    self._turn.give_back()
                also(watch_vitals(subject))
                if subject.front is not None:
                    await self._sleeper.settle()
                    if adopted and record.spare and not record.asleep_bytes:
                        also(self._begin())
                    also(subject.front.call_when_wanted())
                await follow_ready(subject, http, self._scraped, self._sleeper)
        except StartTimeoutError as timeout:
            self._took_too_long = timeout.message
            subject.tell("timeout", f"ended: {timeout.message}")
            self._signal(signal.SIGTERM)
        except Exception:
            log.exception("looking after %s failed", record.name)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _begin(self) -> None:
        """Do what comes right after a start; until then the turn is kept, so that nobody else takes the room."""
        try:
            await self._sleeper.begin()
        finally:
            self._turn.give_back()

    async def _wind_down(self, *, force: bool) -> None:
        if self.server.state is ServerState.DRAINING:
            await self._drain()
            if self.server.state is ServerState.DRAINING:
                self._subject.become(ServerState.STOPPING)
        self._signal(signal.SIGQUIT if force else signal.SIGTERM)
        if self._subject.front is not None:
            await self._subject.front.tell()

    async def _drain(self) -> None:
        """Let running requests end, for as long as the profile allows."""
        if self._subject.front is not None:
            await self._subject.front.drain(self._subject.profile.drain_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._subject.profile.drain_s):
                while self._subject.running_requests():
                    self._scraped.clear()
                    await self._scraped.wait()

    async def _conclude(self, launch_problem: str | None = None) -> bool:
        """Write down how a launch ended; returns whether there is to be another one."""
        if self._subject.front is not None:
            await self._subject.front.end()
        verdict, slept = await judge_end(self._subject, launch_problem), self.server.sleep is not None
        not_back = ""
        if self._sleeper.failed_to_wake is not None and verdict.state is ServerState.FAILED:
            verdict = replace(verdict, cause=f"it did not wake: {self._sleeper.failed_to_wake}")
            await self._subject.around.box.memory_back(self.record.name, self.record.gpu_used_before)
        if verdict.state is ServerState.STOPPED:
            if self.server.state not in (ServerState.DRAINING, ServerState.STOPPING):
                self._subject.become(ServerState.STOPPING, stage=None)
            not_back = await self._subject.around.box.memory_back(self.record.name, self.record.gpu_used_before)
        self._subject.keep(exit=verdict.exit, cause=verdict.cause, card=verdict.card, ended=True)
        self._subject.around.box.look_now()
        if verdict.lost_its_port and self.record.any_port and self.record.wanted:
            return self._take_another_port(verdict)
        if verdict.state is ServerState.STOPPED:
            self._subject.tell("memory" if not_back else "stopped", stopped_text(self.record, not_back))
        else:
            self._subject.tell("failed", f"failed: {verdict.cause}")
            # One that slept is started again when somebody wants it: its GPUs are others' now.
            again = None if slept else next_attempt(self.record, self._subject.profile.restart, time.time())
            if again is not None and self.record.wanted and verdict.was_launched:
                return await self._back_off(*again, verdict)
        self._rest(verdict.state, verdict)
        return self.record.again

    def _rest(self, state: ServerState, verdict: Verdict, **changes: object) -> None:
        """Go to a state without a process."""
        if state is not ServerState.BACKOFF and not self.record.again:
            self._subject.around.ledger.release(self.record.name)
        changes |= {"exit": verdict.exit, "cause": verdict.cause, "card": verdict.card}
        changes |= {"stage": None, "progress": None, "pid": None, "sleep": None, "idle": None, "host_bytes": 0}
        self._subject.become(state, metrics=Missing("not running"), **changes)
        self._subject.around.history.ended(self._subject)
        self._sleeper.gone()

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
        self._sleeper.begin_again()
        now = time.time()
        launch = launch_name(now)
        uds = engine_socket_of(self.record.name, launch) if self.record.uds is not None else None
        self._subject.keep(
            launch=launch,
            uds=uds,
            asked_level=None,
            changing=None,
            asleep_bytes={},
            host_bytes=0,
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
        return gpu_words(self.record.gpu_indices if self.record.gpus else ())

    def api_key(self) -> str | None:
        """Return the key that the engine asks for, from where the profile says it is."""
        return self._subject.api_key()


def _log_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (bug := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=bug)
