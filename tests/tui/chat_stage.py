"""The app on its chat, before a real HTTP server that streams what a test says; shared by the chat's tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from textual.pilot import Pilot
from textual.widgets import Static

from backends.settings import Settings
from backends.simulation import SimulatedKeeper
from backends.snapshots import Connection, ModelKind, Server, ServerState, Snapshot, SnapshotUpdate, Update
from tests.unit.chat_engine import FakeEngine, Request, Script, Wire, piece, usage
from tui.app import GpuboxApp
from tui.keymap import KeysOf
from tui.widgets.chat_exchange import ExchangeView
from tui.widgets.chat_input import ChatInput

NOW = 1_795_264_496.0


class Keeper(SimulatedKeeper):
    """A keeper of the servers that the test says, each behind an engine of its own or all behind one."""

    def __init__(self, engines: dict[str, FakeEngine], engine: FakeEngine, *servers: Server) -> None:
        super().__init__(clock=lambda: NOW)
        self._engines, self._engine = engines, engine
        self._still = replace(self.snapshot(), servers=servers)
        self._news: asyncio.Queue[Snapshot] = asyncio.Queue()

    async def updates(self) -> AsyncIterator[Update]:
        yield SnapshotUpdate(self._still)
        while True:
            yield SnapshotUpdate(await self._news.get())

    def tell(self, *servers: Server) -> None:
        self._still = replace(self._still, servers=servers)
        self._news.put_nowait(self._still)

    async def connection(self, name: str) -> Connection:
        kind = next(server.kind for server in self._still.servers if server.name == name)
        return self._engines.get(name, self._engine).connection(kind)


def a_server(name: str = "demo", state: ServerState = ServerState.READY, kind: ModelKind = ModelKind.CHAT) -> Server:
    some = SimulatedKeeper(clock=lambda: NOW).snapshot().servers[0]
    return replace(some, name=name, state=state, kind=kind, stage=None)


class Chat:
    """The app on its chat screen, and what it shows."""

    def __init__(self, pilot: Pilot[None], engine: FakeEngine, keeper: Keeper) -> None:
        self.pilot, self.engine, self.keeper = pilot, engine, keeper

    @property
    def app(self) -> GpuboxApp:
        assert isinstance(self.pilot.app, GpuboxApp)
        return self.pilot.app

    @property
    def field(self) -> ChatInput:
        return self.app.screen.query_one(ChatInput)

    @property
    def views(self) -> list[ExchangeView]:
        views = self.app.screen.query(ExchangeView)
        return [view for view in views if all(parent.display for parent in view.ancestors_with_self)]

    @property
    def answer(self) -> str:
        return self.views[-1].answer if self.views else ""

    @property
    def foot(self) -> str:
        return self.views[-1].foot.plain if self.views else ""

    def said(self, part: str) -> str:
        return str(self.app.screen.query_one(part, Static).content)

    def noticed(self, text: str) -> bool:
        """Tell whether a toast says so."""
        return any(text in f"{one.title} {one.message}" for one in self.app._notifications)

    def messages(self, request: int = -1) -> list[object]:
        """Return what the model was told, without the roles."""
        return [message["content"] for message in self.engine.requests[request].body["messages"]]

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, (
                f"waited in vain: {what}; answer …{self.answer[-80:]!r}, foot {self.foot!r}"
            )
            await self.pilot.pause(0.01)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def ask(self, question: str) -> None:
        await self.pilot.press(*question, "enter")

    async def answered(self, question: str, number: int) -> None:
        """Ask, and wait until the conversation's `number`-th answer is there."""
        await self.ask(question)
        await self.until(lambda: len(self.views) == number and "TTFT" in self.foot, f"the answer to {question}")


@asynccontextmanager
async def chatting(
    script: Script,
    *servers: Server,
    size: tuple[int, int] = (80, 24),
    engines: dict[str, FakeEngine] | None = None,
    keys: KeysOf | None = None,
) -> AsyncIterator[Chat]:
    with FakeEngine() as engine:
        engine.script = script
        keeper = Keeper(engines or {}, engine, *(servers or (a_server(),)))
        app = GpuboxApp(keeper, clock=lambda: NOW, settings=Settings(keys=dict(keys or {})))
        async with app.run_test(size=size) as pilot:
            chat = Chat(pilot, engine, keeper)
            await chat.until(lambda: app.snapshot is not None, "the first snapshot")
            await pilot.press("4")
            await pilot.pause()
            yield chat


def asked(request: Request) -> str:
    """Return the question of a request."""
    body = request.body
    return str(body["messages"][-1]["content"] if "messages" in body else body.get("prompt"))


async def say(wire: Wire, *texts: str, reasoning: bool = False, batch: int = 1) -> None:
    """Stream texts; `batch` of them share a packet."""
    events = [piece(None, reasoning_content=text) if reasoning else piece(text) for text in texts]
    for begin in range(0, len(events), batch):
        await wire.events(events[begin : begin + batch])


async def end(wire: Wire, tokens: int, reason: str = "stop") -> None:
    """End the answer."""
    await wire.event(piece("", finish=reason))
    await wire.event(usage(7, tokens))
    await wire.done()


async def greet(request: Request, wire: Wire) -> None:
    """Answer each question with itself."""
    await wire.begin()
    await say(wire, f"You said **{asked(request)}**", ", ", "and I say *hello*.")
    await end(wire, 5)


async def on_and_on(request: Request, wire: Wire) -> None:
    """Write until the client is gone."""
    await wire.begin()
    await say(wire, "It goes ")
    while True:
        await say(wire, "on ")
        await asyncio.sleep(0.05)


class Gate:
    """Lets a script, which runs on the engine's thread, go on when the test says so."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._is_open.wait()

    def open(self) -> None:
        if self._loop is None:
            self._is_open.set()
        else:
            self._loop.call_soon_threadsafe(self._is_open.set)
