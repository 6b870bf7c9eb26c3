"""Who may go to the engine: passes, holds and refuses requests, counts those at the engine, and cuts them off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Literal

from backends.front.link import FrontMode
from backends.front.refusals import RefusedError

log = logging.getLogger("backends.front")


Task = asyncio.Task[Any]
CUT_S = 5.0
"""So long what was cut off may take to leave; it takes some turns of the loop."""


class Flight:
    """One request at the engine, that `task` works on."""

    __slots__ = ("_task", "_why")

    def __init__(self, task: Task) -> None:
        self._task = task
        self._why: RefusedError | None = None

    def cut(self, why: RefusedError) -> None:
        """Cut it off, once: its task is cancelled."""
        if self._why is None:
            self._why = why
            self._task.cancel()

    def was_cut(self) -> RefusedError | None:
        """Return why its task was cancelled by `cut`, and take that back; None where the cancellation is another's."""
        if self._why is not None:
            self._task.uncancel()
        return self._why


class Gate:
    """The front's mode, and the requests that are held or in flight.

    `forsaken` is called where a request is held, and nobody has said a word to this front for as long as one may be.
    """

    def __init__(self, name: str, hold_s: float, wakes: bool, forsaken: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.mode = FrontMode.STARTING
        self.is_starting = asyncio.Event()
        self.is_starting.set()
        self._hold_s = hold_s
        self._wakes = wakes
        self._reason = ""
        self._forsaken = forsaken
        self._heard_at = time.monotonic()
        self._drains = 0
        self._end = ""
        self._flights: set[Flight] = set()
        self._all_left = asyncio.Event()
        self._all_left.set()
        self._held: dict[asyncio.Future[Flight], Task] = {}
        self._requests_total = 0
        self._last_request_at: float | None = None
        self._wants = 0
        self._listeners: set[asyncio.Future[None]] = set()

    def state(self) -> dict[str, Any]:
        """Return what `FrontState` tells, as JSON."""
        return {
            "mode": self.mode,
            "wakes": self._wakes,
            "reason": self._reason,
            "in_flight": len(self._flights),
            "held": len(self._held),
            "requests_total": self._requests_total,
            "last_request_at": self._last_request_at,
            "pid": os.getpid(),
        }

    def heard(self) -> None:
        """Note that the keeper is there."""
        self._heard_at = time.monotonic()

    def is_alone(self, silent_s: float) -> bool:
        """Whether the keeper has said nothing for so long, and waits for nothing here."""
        return time.monotonic() - self._heard_at >= silent_s and not self._drains and not self._listeners

    def set_mode(self, mode: FrontMode, reason: str = "", wakes: bool | None = None) -> None:
        """Set what becomes of requests from now on, and of those that are held."""
        if mode is not self.mode:
            log.info("%s: %s%s", self.name, mode, _because(reason))
        self.mode, self._reason = mode, reason
        if mode is FrontMode.STARTING:
            self.is_starting.set()
        else:
            self.is_starting.clear()
        if wakes is not None:
            self._wakes = wakes
        if mode is FrontMode.PASS:
            # They count from now on, not from when their tasks get their turn: a drain that follows waits for them.
            for waiting, task in self._held.items():
                waiting.set_result(self._depart(task))
            self._held.clear()
        elif self.refusal() is not None:
            self._turn_away()
        elif self._is_waking_wanted():
            self._want()

    def refusal(self) -> RefusedError | None:
        """Return why a request that needs the engine is refused at once; None where it is passed on or held."""
        if self._end:
            return RefusedError(503, "server_ended", f"{self.name} is gone ({self._end})")
        if self.mode is FrontMode.STARTING:
            return RefusedError(503, "server_starting", f"{self.name} is starting", 5)
        if self.mode is FrontMode.ASLEEP and not self._wakes:
            text = f"{self.name} is asleep{_because(self._reason)}; `gpubox switch {self.name}` wakes it"
            return RefusedError(503, "server_asleep", text, 30)
        return None

    def check(self) -> None:
        """Raise the RefusedError of a request that is refused at once."""
        if (why := self.refusal()) is not None:
            self._look_for_keeper()
            raise why

    async def enter(self) -> Flight:
        """Return the flight of a request that is passed on, maybe after it was held; raises RefusedError."""
        task = asyncio.current_task()
        assert task is not None
        self.check()
        return self._depart(task) if self.mode is FrontMode.PASS else await self._wait(task)

    def leave(self, flight: Flight) -> None:
        """Note that a request is no longer at the engine; harmless where it was noted before."""
        self._flights.discard(flight)
        if not self._flights:
            self._all_left.set()

    async def drain(self, timeout_s: float, then: Literal["hold", "asleep"], reason: str) -> dict[str, Any]:
        """Do what `FrontLink.drain` says, and return what `Drained` tells, as JSON."""
        began = time.monotonic()
        before = set(self._flights)
        self._drains += 1
        left: set[Flight] = set()
        try:
            self.set_mode(FrontMode(then), reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._all_left.wait()
            # Whoever lets requests pass again meanwhile wants none cut off.
            if self.mode is not FrontMode.PASS:
                left = set(self._flights)
                await self._cut(f"{self.name} gives way{_because(reason)}", "request_aborted")
        finally:
            self._drains -= 1
        return {"drained": len(before - left), "aborted": len(left), "took_s": time.monotonic() - began}

    async def end(self, why: str) -> None:
        """Refuse what comes, is held, or is at the engine."""
        self._end = why
        self._turn_away()
        await self._cut(f"{self.name} is gone ({why})", "server_ended")

    async def wanted(self, after: int) -> dict[str, Any]:
        """Wait until more than `after` requests have wanted the engine woken, and some still do."""
        after = after if after <= self._wants else 0
        while self._wants <= after or not self._is_waking_wanted():
            listener: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._listeners.add(listener)
            try:
                await listener
            finally:
                self._listeners.discard(listener)
                self.heard()
        return {"wants": self._wants, "held": len(self._held)}

    def _depart(self, task: Task) -> Flight:
        flight = Flight(task)
        self._flights.add(flight)
        self._all_left.clear()
        self._requests_total += 1
        self._last_request_at = time.time()
        return flight

    async def _wait(self, task: Task) -> Flight:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[Flight] = loop.create_future()
        timer = loop.call_later(self._hold_s, self._hold_over, waiting)
        self._held[waiting] = task
        self._look_for_keeper()
        if self._is_waking_wanted():
            self._want()
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if waiting.done() and waiting.exception() is None:
                flight = waiting.result()
                self.leave(flight)
                if (why := flight.was_cut()) is not None:
                    raise why from None
            raise
        finally:
            timer.cancel()
            self._held.pop(waiting, None)

    def _hold_over(self, waiting: asyncio.Future[Flight]) -> None:
        self._look_for_keeper()
        if self._held.pop(waiting, None) is not None:
            text = f"{self.name} did not come to serve within {self._hold_s:g} s{_because(self._reason)}"
            waiting.set_exception(RefusedError(503, "server_not_ready", text, 10))

    def _turn_away(self) -> None:
        for waiting in self._held:
            waiting.set_exception(self.refusal() or RuntimeError)
        self._held.clear()

    def _look_for_keeper(self) -> None:
        if self.is_alone(self._hold_s):
            self._forsaken()

    def _is_waking_wanted(self) -> bool:
        return self.mode is FrontMode.ASLEEP and self._wakes and bool(self._held)

    def _want(self) -> None:
        self._wants += 1
        for listener in self._listeners:
            if not listener.done():
                listener.set_result(None)

    async def _cut(self, text: str, kind: str) -> None:
        for flight in self._flights:
            flight.cut(RefusedError(503, kind, f"{text}: the request was cut off", 5))
        async with asyncio.timeout(CUT_S):
            await self._all_left.wait()


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""
