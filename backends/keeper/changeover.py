"""One switch, carried out: who gives way does, the server comes to serve, and where that fails all is as it was.

Each step asks what is true before it acts. So a keeper that finds the journal of another runs the same code, and what
was done already is not done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from backends.engines.http import EngineHttp
from backends.engines.sleeping import EngineRefusedError, first_token
from backends.errors import ConflictError, GpuboxError, SleepFailedError, StartFailedError, WakeFailedError
from backends.keeper import journal as journals
from backends.keeper.holding import HalfAwakeError
from backends.keeper.journal import Journal
from backends.keeper.standing import GOING
from backends.snapshots import ServerState, SwitchUpdate
from backends.switches import GivingWay, Level, Switch, SwitchStep, Way, Yield

if TYPE_CHECKING:
    from backends.keeper.events import Hub
    from backends.keeper.sleeping import Note, OnStep
    from backends.keeper.standing import Books
    from backends.keeper.supervisor import Supervisor

log = logging.getLogger(__name__)

MOVING = (ServerState.FALLING_ASLEEP, ServerState.WAKING)
ROOM_WITHIN_S = 5.0
"""What sleeps may tell late that it has given its memory back, to a keeper that has just begun above all."""

RESTORED_WITHIN_S = 30.0
"""So long who served before waits for room that another has taken meanwhile."""

LEVELS: dict[Yield, Level] = {Yield.SLEEP_1: 1, Yield.SLEEP_2: 2}


class Changeover:
    """Carries out the switch of a journal; `stopped` are servers that a person stopped since it began."""

    def __init__(self, journal: Journal, books: Books, hub: Hub) -> None:
        self._journal = journal
        self._books = books
        self._hub = hub
        self._clock = time.monotonic() - max(0.0, time.time() - journal.began_at)
        self._written: asyncio.Task[None] | None = None
        self.stopped: set[str] = set()
        self.switch = Switch(journal.id, journal.to, journal.began_at, journal.steps)

    @property
    def journal(self) -> Journal:
        """What was decided, and how far it came."""
        return self._journal

    async def run(self) -> Switch:
        """Carry the switch to its outcome, which it returns; whatever fails in it is told there."""
        done = await self._carried_out()
        await self._expect(soon=False)
        return done

    async def _carried_out(self) -> Switch:
        if self._journal.phase != "restoring":
            try:
                # Requests are kept from who gives way while it is written down; nothing else is changed before it is.
                self._written = asyncio.create_task(self._keep())
                await asyncio.gather(self._expect(soon=True), self._give_way())
                await self._written
                await self._take()
                return self._over("done", None, took_s=time.monotonic() - self._clock)
            except (GpuboxError, OSError) as problem:
                self._written = None
                try:
                    await self._keep(phase="restoring", error=self._why(problem))
                except OSError as full:  # who served before comes first
                    log.warning("the journal of switch %s cannot be written: %s", self.switch.id, full)
        return await self._restore()

    async def _expect(self, *, soon: bool) -> None:
        """Have requests for the server held that come before it serves; or no longer."""
        supervisor = self._books.supervisors().get(self._journal.to)
        if supervisor is not None:
            await supervisor.expect(soon=soon)

    async def _give_way(self) -> None:
        """Have all give way; what pins host memory comes after those that stop for it."""
        giving = self._journal.giving
        await _all(self._stop(one) for one in giving if one.how is Yield.STOP)
        await _all(self._put_to_sleep(one) for one in giving if one.how is not Yield.STOP)

    async def _stop(self, giver: GivingWay, why: str = "") -> None:
        supervisor = self._books.supervisors().get(giver.server)
        if supervisor is None or not supervisor.server.is_live:
            return
        async with self._step("stop", giver.server, why or giver.why):
            await ended(self._hub, supervisor)

    async def _put_to_sleep(self, giver: GivingWay) -> None:
        """Put a server to sleep; one that does not is stopped instead."""
        supervisor = self._books.supervisors().get(giver.server)
        if supervisor is None:
            return
        await self._until(supervisor, lambda state: state not in MOVING)
        if supervisor.server.state is ServerState.SLEEPING or not supervisor.server.is_live:
            return
        problem = f"it is {supervisor.server.state}"
        if supervisor.server.state is ServerState.READY:
            try:
                await supervisor.sleep(
                    LEVELS[giver.how], drain_s=self._journal.drain_s, on_step=self._stepper(giver.server)
                )
            except SleepFailedError as failed:
                problem = failed.message
            else:
                return
        await self._stop(giver, problem)

    async def _take(self) -> None:
        """Have the server serve: woken, started, or awaited where it comes by itself."""
        name, woken, started = self._journal.to, False, False
        while True:
            self._check_wanted()
            supervisor = self._books.supervisors().get(name)
            state = supervisor.server.state if supervisor is not None else ServerState.STOPPED
            if supervisor is not None and state is ServerState.READY:
                break
            if supervisor is not None and state is ServerState.SLEEPING and not woken:
                woken = True
                try:
                    await supervisor.wake(on_step=self._stepper(name), room_within_s=ROOM_WITHIN_S)
                except HalfAwakeError as problem:
                    await self._keep(way=Way.START)
                    await self._stop(GivingWay(name, Yield.STOP), problem.message)
            elif supervisor is not None and supervisor.server.is_live and state is not ServerState.SLEEPING:
                await self._await_serving(supervisor)
            elif self._journal.way is Way.START and not started and not self._was_started(supervisor):
                started = True
                async with self._step("start", name):
                    await self._start()
                    await self._until(self._books.supervisors()[name], _settled)
            else:
                raise _not_serving(name, supervisor)
        if supervisor.server.engine == "vllm":  # others make a token before they call themselves ready
            async with self._step("first-token", name):
                await _first_token(supervisor)

    async def _await_serving(self, supervisor: Supervisor) -> None:
        """Wait for a server that is on its way; its start is a step of the switch."""
        starts = supervisor.server.state in (ServerState.QUEUED, ServerState.STARTING)
        async with self._step("start", self._journal.to) if starts else contextlib.nullcontext():
            if starts or supervisor.server.state in (*GOING, *MOVING):
                await self._until(supervisor, _settled if starts else _past(supervisor.server.state))
                return
        raise _not_serving(self._journal.to, supervisor)

    async def _start(self) -> None:
        if self._journal.start is not None:
            await self._books.start(self._journal.start)
        else:
            await self._books.restart(self._journal.to)

    def _was_started(self, supervisor: Supervisor | None) -> bool:
        """Whether a start that has ended was this switch's own; one that died with its keeper is no answer."""
        if supervisor is None or supervisor.server.state is ServerState.LOST:
            return False
        return supervisor.record.launched_at >= self._journal.began_at

    async def _restore(self) -> Switch:
        """Have those serve again who did, where they have not been stopped by a person."""
        name, why = self._journal.to, ""
        wanted = [one for one in self._journal.served if one not in self.stopped]
        if wanted:
            try:
                await self._clear(name)
                await _all(self._serve_again(one) for one in wanted)
            except (GpuboxError, OSError) as problem:
                why = problem.message if isinstance(problem, GpuboxError) else str(problem)
                log.warning("switch to %s: what served before does not again: %s", name, why)
        supervisors = self._books.supervisors()
        serving = {one for one, found in supervisors.items() if found.server.state is ServerState.READY}
        lost = [one for one in wanted if one not in serving]
        error = self._journal.error or "the switch failed"
        for one in lost:
            if one in supervisors and supervisors[one].server.state is ServerState.SLEEPING:
                error = f"{error}; {one} stays asleep ({why}), gpubox switch {one} brings it back"
            else:
                error = f"{error}; {one} could not be restored"
        return self._over("restored" if wanted and not lost else "failed", error)

    async def _clear(self, name: str) -> None:
        """Take a server that came half way off its place, so that there is room again for those who served."""
        supervisor = self._books.supervisors().get(name)
        if supervisor is None:
            return
        await self._until(supervisor, lambda state: state not in MOVING)
        if supervisor.server.state is not ServerState.SLEEPING:
            await self._stop(GivingWay(name, Yield.STOP), "its switch failed")

    async def _serve_again(self, name: str) -> None:
        supervisor = self._books.supervisors().get(name)
        if supervisor is None:
            return
        await self._until(supervisor, lambda state: state not in (*MOVING, *GOING))
        async with self._step("restore", name) as note:
            if supervisor.server.state is ServerState.SLEEPING:
                await supervisor.wake(on_step=_within(note), room_within_s=RESTORED_WITHIN_S)
            elif not supervisor.server.is_live:
                await self._books.restart(name)
                supervisor = self._books.supervisors()[name]
            await self._until(supervisor, _settled)

    def _why(self, problem: Exception) -> str:
        if self._journal.to in self.stopped:
            return f"server {self._journal.to} was stopped by request"
        return problem.message if isinstance(problem, GpuboxError) else str(problem)

    def _check_wanted(self) -> None:
        if self._journal.to in self.stopped:
            raise ConflictError(f"server {self._journal.to} was stopped by request")

    def _over(self, outcome: str, error: str | None, took_s: float | None = None) -> Switch:
        self.switch = replace(self.switch, outcome=outcome, error=error, took_s=took_s)  # type: ignore[arg-type]
        return self.switch

    async def _keep(self, **changes: object) -> None:
        """Write down what is about to be done."""
        self._journal = replace(self._journal, steps=self.switch.steps, **changes)  # type: ignore[arg-type]
        await asyncio.to_thread(journals.write, self._journal)

    def _stepper(self, server: str) -> OnStep:
        return lambda name: self._step(name, server)

    @contextlib.asynccontextmanager
    async def _step(self, name: str, server: str, note: str = "") -> AsyncIterator[Note]:
        """Tell of a step, and in the end how long it took; what it is given is told as its note, its error in the end.

        What it waited for is of no interest once it has come.
        """
        if self._written is not None and name != "drain":
            await asyncio.shield(self._written)
        steps, begun = list(self.switch.steps), time.monotonic()
        if steps and (steps[-1].name, steps[-1].server) == (name, server):  # it goes on
            begun -= steps.pop().took_s or 0.0
        place = len(steps)
        self._tell((*steps, SwitchStep(name, server, time.time() - (time.monotonic() - begun), note=note)))

        def say(text: str) -> None:
            now = list(self.switch.steps)
            if now[place].note != text:
                now[place] = replace(now[place], note=text)
                self._tell(tuple(now))

        try:
            yield say
        except (GpuboxError, OSError) as problem:
            note = problem.message if isinstance(problem, GpuboxError) else str(problem)
            raise
        finally:
            steps = list(self.switch.steps)
            steps[place] = replace(steps[place], took_s=time.monotonic() - begun, note=note)
            self._tell(tuple(steps))

    def _tell(self, steps: tuple[SwitchStep, ...]) -> None:
        self.switch = replace(self.switch, steps=steps)
        self._hub.publish(SwitchUpdate(self.switch))

    async def _until(self, supervisor: Supervisor, reached: Callable[[ServerState], bool]) -> None:
        await until(self._hub, supervisor, reached)


def _within(note: Note) -> OnStep:
    """Take the steps of a wake as part of one that is told already."""

    @contextlib.asynccontextmanager
    async def on_step(_: str) -> AsyncIterator[Note]:
        yield note

    return on_step


async def _first_token(supervisor: Supervisor) -> None:
    """Have a server make a token; a model that makes none (one that ranks, say) has answered by saying so."""
    server = supervisor.server
    async with EngineHttp(server.address, supervisor.api_key(), uds=supervisor.record.uds) as http:
        try:
            await first_token(http, server.served_name, server.kind)
        except EngineRefusedError as refused:
            if refused.status >= 500:
                raise


async def until(hub: Hub, supervisor: Supervisor, reached: Callable[[ServerState], bool]) -> None:
    """Wait until a server's state is such, as the keeper's broadcast tells."""
    with hub.subscribe() as subscription:
        batches = subscription.batches()
        while not reached(supervisor.server.state):
            await anext(batches)


async def ended(hub: Hub, supervisor: Supervisor) -> None:
    """Stop a server, and wait for its end; one that ends by itself is only waited for."""
    while supervisor.server.is_live:
        before = supervisor.server.state
        if before not in GOING:
            supervisor.stop()
        await until(hub, supervisor, _past(before))


def _past(before: ServerState) -> Callable[[ServerState], bool]:
    """Tell whether a server has left a state, and is not about to end."""
    return lambda state: state not in (before, *GOING)


def _settled(state: ServerState) -> bool:
    """Whether a server that was on its way serves, or will not by itself."""
    return state not in (ServerState.QUEUED, ServerState.STARTING)


def _not_serving(name: str, supervisor: Supervisor | None) -> GpuboxError:
    if supervisor is None:
        return ConflictError(f"server {name} is gone")
    server = supervisor.server
    if not supervisor.record.wanted and server.cause is None:
        return ConflictError(f"server {name} was stopped by request")
    kind = StartFailedError if server.ready_at is None else WakeFailedError
    return kind(f"server {name} is {server.state}" + (f": {server.cause}" if server.cause else ""))


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Do it all, to the end of each, and then raise the first error of any."""
    done = await asyncio.gather(*work, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
