"""A keeper's link played by a test: it says what it is told to, notes what it is asked, refuses where it shall."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from textual.pilot import Pilot

from backends.errors import GpuboxError
from backends.orphans import Orphan, Reaped
from backends.records import Launch
from backends.simulated_lives import ASLEEP
from backends.simulation import SimulatedKeeper
from backends.snapshots import (
    Connection,
    Event,
    ModelKind,
    Series,
    Server,
    ServerState,
    Snapshot,
    SnapshotUpdate,
    StartRequest,
    SwitchRequest,
    Update,
)
from backends.switches import Level, Switch, SwitchChoice

NOW = 1_790_000_000.0


def simulated(spec: str = "8xH200", *, sleeps: bool = False) -> Snapshot:
    """Return a plausible box with servers to build on, as of NOW, that does not call itself simulated.

    With `sleeps` one of them sleeps beside another.
    """
    keeper = SimulatedKeeper(spec, clock=lambda: NOW)
    if not sleeps:
        keeper._lives.pop(ASLEEP, None)
    snapshot = keeper.snapshot()
    return replace(snapshot, box=replace(snapshot.box, simulated=False))


class FakeLink:
    """What was asked stands in `asked`; `refusal` is raised by every request while it is set."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.state = snapshot or simulated()
        self.asked: list[tuple[object, ...]] = []
        self.refusal: GpuboxError | None = None
        self.left: tuple[Orphan, ...] = ()
        self.on_record: tuple[Launch, ...] = ()
        self.choices: tuple[SwitchChoice, ...] = ()
        self.switch_requests: list[SwitchRequest] = []
        self.streams = 0
        self.refuse_streams: GpuboxError | None = None
        self._news: asyncio.Queue[Update | GpuboxError] = asyncio.Queue()

    def say(self, update: Update) -> None:
        """Send an update to whoever listens."""
        self._news.put_nowait(update)

    def show(self, *servers: Server) -> None:
        """Send a state with just these servers."""
        self.state = replace(self.state, servers=servers)
        self.say(SnapshotUpdate(self.state))

    def die(self, problem: GpuboxError) -> None:
        """End the stream of whoever listens."""
        self._news.put_nowait(problem)

    async def updates(self) -> AsyncIterator[Update]:
        self.streams += 1
        if self.refuse_streams is not None:
            raise self.refuse_streams
        yield SnapshotUpdate(self.state)
        while True:
            news = await self._news.get()
            if isinstance(news, GpuboxError):
                raise news
            yield news

    async def start(self, request: StartRequest) -> Server:
        self._note("start", request)
        some = simulated().servers[0]
        return replace(some, name=request.name or request.profile["name"], state=ServerState.QUEUED)

    async def stop(self, name: str, *, force: bool = False) -> Server:
        self._note("stop", name, force)
        return self.state.servers[0]

    async def restart(self, name: str, profile: dict[str, Any] | None = None) -> Server:
        self._note("restart", name)
        return self.state.servers[0]

    async def sleep(self, name: str, level: Level | None = None) -> Server:
        self._note("sleep", name, level)
        return self.state.servers[0]

    async def switch(self, request: SwitchRequest) -> Switch:
        self.switch_requests.append(request)
        self._note("switch", request.name)
        return Switch("1", request.name, 0.0)

    async def switch_choices(self) -> tuple[SwitchChoice, ...]:
        return self.choices

    async def profile(self, name: str) -> dict[str, Any]:
        return {"name": name, "model": "/models/x"}

    async def forget(self, name: str) -> None:
        self._note("forget", name)

    async def connection(self, name: str) -> Connection:
        self._note("connection", name)
        return Connection("http://127.0.0.1:9", name, ModelKind.CHAT, None)  # Where nothing answers.

    async def server_series(self, name: str) -> Series:
        self._note("server_series", name)
        return Series((), {})

    async def gpu_series(self, uuid: str) -> Series:
        self._note("gpu_series", uuid)
        return Series((), {})

    async def history(self) -> tuple[Event, ...]:
        return ()

    async def launches(self, limit: int = 200) -> tuple[Launch, ...]:
        self._note("launches", limit)
        return self.on_record[:limit]

    async def orphans(self) -> tuple[Orphan, ...]:
        return self.left

    async def reap(self, pid: int, start_ticks: int, *, foreign: bool = False) -> Reaped:
        self._note("reap", pid, start_ticks, foreign)
        return Reaped(pid, "SIGKILL", 0)

    def requests(self) -> list[tuple[object, ...]]:
        """Return what was asked that changes something."""
        return [
            one for one in self.asked if one[0] in ("start", "stop", "restart", "forget", "reap", "sleep", "switch")
        ]

    def _note(self, *request: object) -> None:
        self.asked.append(request)
        if self.refusal is not None:
            raise self.refusal


async def until(pilot: Pilot[None], holds: Callable[[], bool], what: str) -> None:
    """Let the app work until something holds; fail after ten seconds."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        await pilot.pause(0.01)
    await settled(pilot)


async def settled(pilot: Pilot[None], frames: int = 20) -> None:
    """Let what belongs together be drawn, for parts of a change may come a frame apart; not longer than `frames`."""
    before = ""
    for _ in range(frames):
        now = shown(pilot)
        if now == before:
            return
        before = now
        await pilot.pause(0.01)


def shown(pilot: Pilot[None]) -> str:
    """Return the screen's text, line by line, as a terminal shows it."""
    width, height = pilot.app.size
    strips = pilot.app.screen._compositor.render_strips()
    return "\n".join(strip.text for strip in strips[:height])[: (width + 1) * height]
