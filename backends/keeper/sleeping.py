"""Putting one server to sleep and waking it, step by step; and the engine's own word for whether it sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, NoReturn

from backends.engines.http import EngineHttp
from backends.engines.sleeping import fall_asleep, sleep_level, take_step, wake_steps
from backends.errors import GpuboxError, GpuBusyError, SleepFailedError, WakeFailedError
from backends.keeper.holding import HalfAwakeError, Scales, await_room, given_back, take_room
from backends.keeper.pinning import host_use, pinned_between
from backends.keeper.priming import prime
from backends.keeper.rooms import GIB, LEFT_ASLEEP_BYTES, resize
from backends.processes.facts import signal as send_signal
from backends.snapshots import ServerState
from backends.starts import Stage
from backends.switches import Level, Sleep

if TYPE_CHECKING:
    from backends.keeper.subject import Subject

log = logging.getLogger(__name__)

Note = Callable[[str], None]
"""Says what a step waits for."""

OnStep = Callable[[str], AbstractAsyncContextManager[Note]]
"""Called with the name of each step (as in SwitchStep) to make the context in which that step is taken."""

SETTLES_WITHIN_S = 900.0
"""An engine that is falling asleep or waking answers whether it sleeps once that is over."""

_STANDING = (
    *(ServerState.READY, ServerState.UNRESPONSIVE),
    *(ServerState.SLEEPING, ServerState.FALLING_ASLEEP, ServerState.WAKING),
)


@contextlib.asynccontextmanager
async def untimed(_: str) -> AsyncIterator[Note]:
    """Take a step that nobody times."""
    yield lambda _: None


class Sleeper:
    """Changes one server between awake and asleep, one change at a time; a stop, or its end, wins over each."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._task: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._keeps_room = False
        self._scales = Scales(subject)
        self.failed_to_wake: str | None = None

    async def sleep(
        self,
        level: Level,
        *,
        drain_s: float | None = None,
        on_step: OnStep = untimed,
        only_idle: bool = False,
        keeps_room: bool = False,
    ) -> None:
        """See Supervisor.sleep; one that `keeps_room` stays granted all that it needs awake."""
        await self._over()
        subject = self._subject
        if subject.state is ServerState.SLEEPING and subject.server.sleep is not None:
            if subject.server.sleep.level >= level:
                return
            self._refuse_sleep("sleeps at level 1", "it must wake before it can sleep at level 2")
        if not subject.server.can_sleep:
            self._refuse_sleep("cannot sleep", "set sleep = true in its profile, and start it again")
        if subject.state is not ServerState.READY:
            self._refuse_sleep(f"is {subject.state}", "")
        subject.become(ServerState.FALLING_ASLEEP, stage=Stage("drain", time.time()))
        subject.keep(durable=False, asked_level=level, changing="sleep", last_used_at=subject.last_used_at)
        drain_s = subject.profile.drain_s if drain_s is None else drain_s
        work = self._fall_asleep(level, None if only_idle else drain_s, on_step, keeps_room=keeps_room)
        await self._carry_out(work, SleepFailedError)

    async def wake(self, *, on_step: OnStep = untimed, room_within_s: float = 0.0) -> None:
        """Wake it once all that it needs is free on its GPUs, for which it waits so long; returns once it serves.

        One that fails to wake is ended, and its memory waited for. Raises WakeFailedError, also where there is no room
        in time (it sleeps on then), where it is stopped or ends meanwhile, and where it does not sleep; HalfAwakeError
        where it holds far more than it left asleep.
        """
        await self._over()
        subject = self._subject
        if subject.state is ServerState.READY:
            return
        if subject.state is not ServerState.SLEEPING or subject.server.sleep is None:
            raise WakeFailedError(f"server {subject.name} is {subject.state}")
        # The state is told first: nobody else may begin to change it.
        subject.become(ServerState.WAKING, stage=Stage("memory", time.time()))
        await self._carry_out(self._wake(subject.server.sleep.level, on_step, room_within_s), WakeFailedError)

    async def settle(self) -> None:
        """Go by the engine's own word to where it is: asleep, or awake. A wake that was begun is carried on."""
        if not self._is_busy and self._subject.state in _STANDING:
            with contextlib.suppress(GpuboxError):
                await self._carry_out(self._settle(), SleepFailedError)

    async def weigh(self) -> None:
        """Have as much granted to a sleeping engine as it is seen to hold: that may come down later than it says.

        One that holds far more than it left, by two readings, is told to be half awake.
        """
        subject, asleep = self._subject, self._subject.server.sleep
        if not self._may_weigh or asleep is None:
            return
        held = (await subject.around.box.holdings(subject.name, subject.record.gpus)).held
        if self._may_weigh and subject.server.sleep == asleep and self._scales.weigh(held):
            with contextlib.suppress(GpuboxError):
                await self._carry_out(self._grant(held), SleepFailedError)

    @property
    def half_awake(self) -> str:
        """What it holds too much of for one that sleeps, as it was seen; empty: it does not."""
        return self._scales.half_awake

    @property
    def _is_busy(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def _may_weigh(self) -> bool:
        return self._subject.state is ServerState.SLEEPING and not self._keeps_room and not self._is_busy

    async def _grant(self, memory: Mapping[str, int | None]) -> None:
        await asyncio.to_thread(resize, self._subject.around.ledger, self._subject.record, memory)

    async def begin(self) -> None:
        """Do what is to be done once it is ready for the first time: sleep as a spare, or be primed by sleeping once.

        The second sleep at level 1 is fast, since it has its host memory by then.
        """
        subject = self._subject
        if not (subject.record.spare or subject.profile.prime) or not subject.server.can_sleep:
            return
        try:
            if subject.record.spare:
                await self.sleep(await subject.around.switching.level_for(subject.name))
            else:
                await prime(subject, self)
        except GpuboxError as problem:
            if subject.state is ServerState.READY:
                subject.tell("sleep-failed", f"stays awake: {problem.message}")

    async def let_go(self) -> None:
        """Have no more granted to it than it has left, where it was to keep its room asleep."""
        self._keeps_room = False
        await self._carry_out(self._grant(self._subject.record.asleep_bytes), SleepFailedError)
        await self._tell_front(ServerState.SLEEPING)

    def overtake(self) -> None:
        """Give up what is being changed: the server is being stopped, or its engine has ended."""
        if self._task is not None and self.failed_to_wake is None:
            self._task.cancel()

    def gone(self) -> None:
        """Let go who waits for the end of an engine that did not wake."""
        self._scales.clear()
        self._gone.set()

    def begin_again(self) -> None:
        """Forget the launch before."""
        self._gone.clear()
        self.failed_to_wake = None

    async def detach(self) -> None:
        """Leave the engine as it is: the next keeper asks it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _over(self) -> None:
        """Wait for the end of the change that goes on, and of what others began who waited for it, too."""
        while self._task is not None and self._is_busy:
            await asyncio.wait({self._task})

    async def _carry_out(self, work: Coroutine[None, None, None], failure: type[GpuboxError]) -> None:
        """Do something to its end even where whoever asks for it goes away; raises GpuboxError."""
        task = self._task = asyncio.create_task(work, name=f"sleep of {self._subject.name}")
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise failure(f"server {self._subject.name} was stopped or ended meanwhile") from None

    def _refuse_sleep(self, why: str, hint: str) -> NoReturn:
        raise SleepFailedError(f"server {self._subject.name} {why}", hint)

    def _http(self, read_s: float = 5.0) -> EngineHttp:
        subject = self._subject
        return EngineHttp(subject.server.address, subject.api_key(), uds=subject.record.uds, read_s=read_s)

    @contextlib.asynccontextmanager
    async def _step(self, on_step: OnStep, name: str) -> AsyncIterator[Note]:
        self._subject.show(stage=Stage(name, time.time()))
        async with on_step(name) as note:
            yield note

    async def _fall_asleep(self, level: Level, drain_s: float | None, on_step: OnStep, *, keeps_room: bool) -> None:
        subject, box = self._subject, self._subject.around.box
        begun, uuids = time.monotonic(), subject.record.gpus
        async with self._http() as http:
            async with self._step(on_step, "drain"):
                before, _ = await asyncio.gather(box.holdings(subject.name, uuids), self._drain(drain_s))
            if any(uuid not in before.held for uuid in uuids):  # what others took meanwhile would count as its own
                before = await box.holdings(subject.name, uuids)
            # What it has pinned once it keeps: later sleeps take no more.
            unpinned = await host_use(subject) if level == 1 and not subject.record.host_bytes else None
            try:
                async with self._step(on_step, "sleep"):
                    await fall_asleep(http, level)
            except OSError as problem:
                await self._stay_awake(http, level, problem)
        async with self._step(on_step, "memory"):
            left = await given_back(subject, before)
        if unpinned is not None:
            subject.keep(durable=False, host_bytes=pinned_between(unpinned, await host_use(subject)))
        await self._lie_down(level, left, keeps_room=keeps_room)
        took_s = time.monotonic() - begun
        subject.tell("asleep", f"asleep at level {level} after {took_s:.2f} s{_pinned(subject.record.host_bytes)}")

    async def _drain(self, drain_s: float | None) -> None:
        """Keep requests from the engine, and let those that run end; None: it must have none."""
        subject, front = self._subject, self._subject.front
        if front is None:
            return
        if drain_s is not None:
            cut = (await front.drain(drain_s)).aborted
            if cut:
                subject.tell("aborted", f"{cut} request{'' if cut == 1 else 's'} cut off after {drain_s:g} s")
            return
        await front.tell()
        if front.seen is not None and front.seen.in_flight:
            await self._be_awake()
            raise SleepFailedError(f"server {subject.name} has work again")

    async def _stay_awake(self, http: EngineHttp, level: Level, problem: OSError) -> None:
        """See where an engine is that did not take the call to sleep; returns where it sleeps all the same."""
        with contextlib.suppress(OSError):
            if await sleep_level(http, level):
                return
        await self._be_awake()
        self._subject.tell("sleep-failed", f"stays awake: {problem}")
        raise SleepFailedError(f"server {self._subject.name} did not fall asleep: {problem}")

    async def _lie_down(self, level: Level, left: Mapping[str, int], *, keeps_room: bool = False) -> None:
        """Be asleep: in the ledger, at the front, in the record, and for all to see."""
        subject = self._subject
        self._keeps_room = keeps_room
        self._scales.clear()
        # One that keeps its room wakes at once: requests are held until then.
        front_state = ServerState.FALLING_ASLEEP if keeps_room else ServerState.SLEEPING
        await asyncio.gather(self._grant({} if keeps_room else left), self._tell_front(front_state))
        subject.keep(durable=False, asked_level=level, changing=None)
        subject.become(
            ServerState.SLEEPING,
            stage=None,
            sleep=Sleep(level, time.time()),
            host_bytes=subject.record.host_bytes,
            idle=None,
        )

    async def _be_awake(self) -> None:
        """Be ready: in the record, for all to see, and at the front."""
        subject = self._subject
        subject.last_used_at = time.time()
        subject.keep(durable=False, asked_level=None, changing=None, last_used_at=subject.last_used_at)
        if subject.front is not None:
            subject.front.expects = False
        await self._tell_front(ServerState.READY)
        self._scales.clear()
        if subject.state is not ServerState.READY:
            subject.become(ServerState.READY, stage=None, sleep=None)
            subject.around.box.look_now()  # who plans the next switch finds it as it is

    async def _tell_front(self, state: ServerState) -> None:
        if self._subject.front is not None:
            await self._subject.front.tell(state)

    async def _wake(self, level: Level, on_step: OnStep, room_within_s: float) -> None:
        subject, begun = self._subject, time.monotonic()
        try:
            await asyncio.gather(self._take_room(on_step, room_within_s), self._tell_front(ServerState.WAKING))
        except GpuboxError as problem:
            if isinstance(problem, HalfAwakeError) and await self._is_awake(level):
                await self._grant(subject.record.reserved)
                await self._be_awake()
                return
            subject.become(ServerState.SLEEPING, stage=None)
            await self._tell_front(ServerState.SLEEPING)
            if isinstance(problem, HalfAwakeError):
                raise
            raise WakeFailedError(f"server {subject.name} cannot wake: {problem.message}", problem.hint) from None
        subject.keep(durable=False, changing="wake")
        await self._wake_up(level, on_step)
        subject.tell("awake", f"awake after {time.monotonic() - begun:.2f} s")

    async def _take_room(self, on_step: OnStep, within_s: float) -> None:
        """Be granted all that it needs, and see that it is free; that it is waited for is a step."""
        try:
            await take_room(self._subject)
        except GpuBusyError:
            async with self._step(on_step, "memory") as note:
                await await_room(self._subject, within_s, note)

    async def _is_awake(self, level: Level) -> bool:
        try:
            async with self._http() as http:
                return await sleep_level(http, level) == 0
        except OSError:
            return False

    async def _wake_up(self, level: Level, on_step: OnStep) -> None:
        """Make the engine's calls, and see that it is awake; one that is not is ended."""
        try:
            async with self._http() as http:
                for step in wake_steps(level):
                    async with self._step(on_step, step.name):
                        await take_step(http, step)
                if await sleep_level(http, level):
                    raise OSError("the engine says that it still sleeps")
        except OSError as problem:
            await self._give_up(str(problem))
        await self._be_awake()

    async def _give_up(self, why: str) -> NoReturn:
        """End an engine that is half awake, and wait until it is gone and its memory back."""
        self.failed_to_wake = why
        subject = self._subject
        facts = subject.facts()
        subject.tell("wake-failed", f"did not wake: {why}")
        if facts is not None:
            send_signal(facts.shim, signal.SIGQUIT)
        await self._gone.wait()
        raise WakeFailedError(
            f"server {subject.name} did not wake, and was ended: {why}", f"gpubox logs {subject.name}"
        )

    async def _has_room(self) -> bool:
        """Whether a wake that was begun can be carried on, as far as it came."""
        try:
            await take_room(self._subject, half_awake=True)
        except GpuboxError as problem:
            log.warning("%s cannot wake further: %s", self._subject.name, problem)
            return False
        return True

    async def _settle(self) -> None:
        subject = self._subject
        changing, asked = subject.record.changing, subject.record.asked_level
        try:
            async with self._http(SETTLES_WITHIN_S if changing else 5.0) as http:
                level = await sleep_level(http, asked or 1)
                if level == 0 and changing == "wake" and asked is not None:
                    # All that wakes it was done but for what comes last, which may be done twice.
                    for step in wake_steps(asked)[3:]:
                        await take_step(http, step)
        except OSError as problem:
            log.warning("%s does not say whether it sleeps: %s", subject.name, problem)
            if subject.state in (ServerState.FALLING_ASLEEP, ServerState.WAKING):
                subject.become(ServerState.READY, stage=None)  # until it answers it will be seen not to
            return
        if level == 0:
            if subject.state is not ServerState.READY or subject.record.asked_level is not None:
                await self._grant(subject.record.reserved)
                await self._be_awake()
        elif changing == "wake" and await self._has_room():
            await self._wake_up(level, untimed)
        elif subject.state is not ServerState.SLEEPING or subject.record.asked_level != level or changing:
            await subject.around.box.fresh()
            held = subject.around.box.held_by(subject.name)
            known = subject.record.asleep_bytes
            left = {uuid: held.get(uuid) or known.get(uuid) or LEFT_ASLEEP_BYTES for uuid in subject.record.gpus}
            subject.keep(durable=False, asleep_bytes=left)
            if subject.state is ServerState.SLEEPING:
                subject.become(ServerState.READY, stage=None)
            await self._lie_down(level, left)


def _pinned(host_bytes: int) -> str:
    return f"; {host_bytes / GIB:.1f} GiB of host memory hold its weights" if host_bytes >= GIB // 10 else ""
