"""Switches: one at a time on each GPU, in the order in which they were asked for; and who sleeps at which level."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends import switch_records
from backends.errors import ConflictError, GpuboxError
from backends.keeper import journal as journals
from backends.keeper.changeover import Changeover, ended
from backends.keeper.expecting import Expecting
from backends.keeper.journal import Journal
from backends.keeper.readahead import ReadAhead
from backends.keeper.standing import Plan, Standing, weights_files
from backends.processes.facts import current_boot_id
from backends.snapshots import Event, EventUpdate, Grant, ServerState, SwitchRequest, SwitchUpdate
from backends.switches import Level, Switch, SwitchChoice, Way

if TYPE_CHECKING:
    from backends.keeper.boxwatch import BoxWatch
    from backends.keeper.events import Hub
    from backends.keeper.standing import Books
    from backends.records import Records

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Ticket:
    """A place in the queue: for what server, since when, and which places it takes (None: not known yet)."""

    server: str
    switch: Switch
    places: frozenset[str] | None = None
    giving: frozenset[str] = frozenset()
    changeover: Changeover | None = None
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def newest(self) -> Switch:
        """The switch as it stands."""
        return self.changeover.switch if self.changeover is not None else self.switch


class Switching:
    """The keeper's switches; every method runs on its event loop. `books` are its servers, made after this."""

    def __init__(self, books: Callable[[], Books], box: BoxWatch, hub: Hub, records: Records) -> None:
        self._books = books
        self._box = box
        self._hub = hub
        self._records = records
        self._queue: list[_Ticket] = []
        self._moved = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def running(self) -> tuple[Switch, ...]:
        """Return the switches that run, or wait for one before them."""
        return tuple(ticket.newest for ticket in self._queue if ticket.switch.id)

    async def switch(self, request: SwitchRequest) -> Switch:
        """Begin a switch, or return the one to this server that is on; `SwitchUpdate`s tell how it goes.

        Raises what planning it raises, where no other switch is before it; a later problem is told in its outcome.
        """
        ticket = self._on_for(request.name) or await self._begun(request)
        return ticket.newest

    async def wanted(self, name: str) -> None:
        """See Switcher."""
        try:
            ticket = self._on_for(name) or await self._begun(SwitchRequest(name))
            await ticket.is_over.wait()
        except GpuboxError as problem:
            self._tell(name, "switch-failed", f"a request wants it, but it cannot serve: {problem.message}")

    async def sleep_idle(self, name: str) -> None:
        """See Switcher."""
        standing = self._standing()
        try:
            async with self._turn(name, standing.named(name).record.gpus):
                supervisor = standing.named(name)
                if supervisor.server.state is ServerState.READY:
                    await supervisor.sleep(await self.level_for(name), only_idle=True)
        except GpuboxError as problem:
            self._tell(name, "sleep-failed", f"it was idle, but does not sleep: {problem.message}")

    async def level_for(self, name: str, asked: Level | None = None) -> Level:
        """See Switcher."""
        if self._on_for(name) is not None:
            raise ConflictError(f"server {name} is being switched to", "wait for the end of its switch")
        choice = await self._standing().level(name, asked, self._busy())
        level = choice.level
        if level is None:
            raise ConflictError(f"server {name} cannot sleep: {choice.why}", f"gpubox stop {name}")
        supervisors = self._books().supervisors()
        for stopping in choice.stops:
            self._tell(stopping, "evicted", f"stopped: {name} takes the host memory that it has pinned")
        await asyncio.gather(*(ended(self._hub, supervisors[stopping]) for stopping in choice.stops))
        return level

    @contextlib.asynccontextmanager
    async def calm(self, name: str) -> AsyncIterator[Callable[[], bool]]:
        """See Switcher."""
        places, own = frozenset(self._standing().named(name).record.gpus), self._on_for(name)

        def is_wanted(but: _Ticket | None) -> bool:
            return any(one is not but and (one.places is None or one.places & places) for one in self._queue)

        if is_wanted(own if own is not None and own.changeover is not None else None):
            raise ConflictError("not primed: its GPUs are wanted")
        async with self._turn(name, places) as ticket:
            yield lambda: is_wanted(ticket)

    def promised(self, name: str) -> Mapping[str, Grant]:
        """See Switcher."""
        given = [one for one in self._queue if one.changeover is not None and name not in (one.server, *one.giving)]
        return {place: Grant(ticket.server, "") for ticket in given for place in ticket.places or ()}

    async def choices(self) -> tuple[SwitchChoice, ...]:
        """Return what a switch to each server would do now."""
        expecting = Expecting(self._records, self._standing(), await self._box.box())
        return await expecting.choices(self._books().supervisors(), self._busy())

    def stop_asked(self, name: str) -> None:
        """Hear that a person stops a server: then no switch brings it back."""
        for ticket in self._queue:
            if ticket.changeover is not None:
                ticket.changeover.stopped.add(name)
        for ticket in [one for one in self._queue if one.changeover is None and one.server == name and one.switch.id]:
            self._end(ticket, f"server {name} was stopped by request")

    def adopt(self) -> None:
        """Go on with the switches that a keeper before this one has left."""
        for journal in journals.read_all():
            if journal.boot_id != current_boot_id():
                journals.erase(journal.id)
                self._tell(journal.to, "switch-failed", "not switched: the box was booted again meanwhile")
                continue
            ticket = _Ticket(
                journal.to,
                Switch(journal.id, journal.to, journal.began_at, journal.steps),
                frozenset(journal.places),
                frozenset(one.server for one in journal.giving),
            )
            ticket.changeover = Changeover(journal, self._books(), self._hub)
            self._queue.append(ticket)
            self._spawn(self._resume(ticket))

    async def detach(self) -> None:
        """Leave all switches as they are, for the next keeper to go on with."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _begun(self, request: SwitchRequest) -> _Ticket:
        """Queue a switch; where it is the first, decide it now, so that who asks hears why it cannot be."""
        began_at = time.time()
        # Sorted by time, and told from any other: two of one moment are of different servers.
        switch = Switch(f"{began_at:.6f}-{request.name}", request.name, began_at)
        ticket = _Ticket(request.name, switch)
        self._queue.append(ticket)
        try:
            plan = await self._decided(ticket, request) if self._queue[0] is ticket else None
        except BaseException:
            self._leave(ticket)
            raise
        self._hub.publish(SwitchUpdate(ticket.newest))
        self._spawn(self._run(ticket, request, plan))
        return ticket

    async def _decided(self, ticket: _Ticket, request: SwitchRequest) -> Plan | None:
        """Plan a switch and take its places; None where another one before it has one of them."""
        ahead = self._queue[: self._queue.index(ticket)]
        try:
            plan = await self._standing().plan(request, self._busy(ticket))
        except GpuboxError:
            if ahead:
                return None
            raise
        ahead = self._queue[: self._queue.index(ticket)]
        ticket.places, ticket.giving = frozenset(plan.places), frozenset(one.server for one in plan.giving)
        if any(one.places is None or one.places & ticket.places or one.giving & ticket.giving for one in ahead):
            return None
        journal = Journal(
            ticket.switch.id,
            request.name,
            ticket.switch.began_at,
            plan.way,
            plan.giving,
            plan.served,
            plan.places,
            plan.start,
            request.drain_s,
        )
        ticket.changeover = Changeover(journal, self._books(), self._hub)
        return plan

    async def _run(self, ticket: _Ticket, request: SwitchRequest, plan: Plan | None) -> None:
        """Carry out a switch once it is its turn, and put it on record."""
        try:
            while plan is None:
                moved = self._moved
                plan = await self._decided(ticket, request)
                if plan is None:
                    await moved.wait()
        except (GpuboxError, OSError) as problem:
            self._end(ticket, problem.message if isinstance(problem, GpuboxError) else str(problem))
            return
        await self._resume(ticket)

    async def _resume(self, ticket: _Ticket) -> None:
        changeover = ticket.changeover
        if changeover is None or ticket.is_over.is_set():
            return
        ahead = ReadAhead()
        try:
            if changeover.journal.way in (Way.WAKE_2, Way.START):
                ahead.begin(await asyncio.to_thread(self._weights_of, changeover.journal))
            done = await changeover.run()
        except Exception as bug:
            log.exception("the switch to %s failed", ticket.server)
            done = replace(changeover.switch, outcome="failed", error=f"gpubox lost track of it: {bug!r}")
        finally:
            ahead.end()
        journal = changeover.journal
        self._leave(ticket)
        self._hub.publish(SwitchUpdate(done))
        if journal.way is not Way.AWAKE or done.outcome != "done":
            self._tell(done.to, *_told(done))
            record = switch_records.record_of(done, journal.way, journal.giving)
            await asyncio.to_thread(switch_records.add, self._records, record)
        await asyncio.to_thread(journals.erase, done.id)

    def _weights_of(self, journal: Journal) -> list[Path]:
        if journal.start is not None:
            return weights_files(journal.start.profile, journal.start.environ)
        supervisor = self._books().supervisors().get(journal.to)
        return weights_files(supervisor.record.profile, supervisor.record.environ) if supervisor is not None else []

    def _end(self, ticket: _Ticket, error: str) -> None:
        """End a switch that has not begun."""
        ticket.switch = replace(ticket.switch, outcome="failed", error=error)
        self._leave(ticket)
        self._hub.publish(SwitchUpdate(ticket.switch))
        self._tell(ticket.server, "switch-failed", f"not switched: {error}")

    def _leave(self, ticket: _Ticket) -> None:
        """Let those behind go on."""
        with contextlib.suppress(ValueError):
            self._queue.remove(ticket)
        ticket.is_over.set()
        self._moved.set()
        self._moved = asyncio.Event()

    @contextlib.asynccontextmanager
    async def _turn(self, name: str, places: Iterable[str]) -> AsyncIterator[_Ticket]:
        """Wait until no switch before this moment has these places, and keep later ones off them."""
        ticket = _Ticket(name, Switch("", name, time.time()), frozenset(places))
        self._queue.append(ticket)
        try:
            while any(
                one.places is None or one.places & (ticket.places or frozenset())
                for one in self._queue[: self._queue.index(ticket)]
            ):
                await self._moved.wait()
            yield ticket
        finally:
            self._leave(ticket)

    def _busy(self, but: _Ticket | None = None) -> dict[str, str]:
        """Return the servers that a running switch concerns, and how."""
        busy = {}
        for ticket in self._queue:
            if ticket is not but and ticket.changeover is not None:
                busy[ticket.server] = "it is being switched to"
                busy |= dict.fromkeys(ticket.giving, f"it gives way to {ticket.server}")
        return busy

    def _on_for(self, name: str) -> _Ticket | None:
        return next((one for one in self._queue if one.server == name and one.switch.id), None)

    def _standing(self) -> Standing:
        return Standing(self._books(), self._box, self._records)

    def _tell(self, server: str, kind: str, text: str) -> None:
        self._hub.publish(EventUpdate(Event(time.time(), server, kind, text)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _told(switch: Switch) -> tuple[str, str]:
    """Return the kind and text of the event that tells a switch's outcome."""
    if switch.outcome == "done":
        steps: dict[str, float] = {}
        for step in switch.steps:
            steps[step.name] = max(steps.get(step.name, 0.0), step.took_s or 0.0)
        parts = ", ".join(f"{_PAST.get(name, name)} {took_s:.2f}" for name, took_s in steps.items())
        return "switched", f"switched in {switch.took_s or 0.0:.2f} s" + (f": {parts}" if parts else "")
    if switch.outcome == "restored":
        return "restored", f"not switched, what served before serves again: {switch.error}"
    return "switch-failed", f"not switched: {switch.error}"


_PAST = {
    "sleep": "asleep",
    "stop": "stopped",
    "drain": "drained",
    "abort": "aborted",
    "wake": "awake",
    "start": "started",
    "first-token": "first token",
}
