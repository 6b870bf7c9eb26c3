"""The chat panel by its keys, against a real HTTP server that streams, breaks off and refuses."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Markdown, Static

from backends.simulation import SimulatedKeeper
from backends.snapshots import Connection, ModelKind, Server, ServerState, Snapshot, SnapshotUpdate, Update
from backends.starts import Stage
from tui.app import GpuboxApp
from tui.widgets.chat_exchange import ExchangeView
from tui.widgets.chat_input import ChatInput

NOW = 1_795_264_496.0
Answering = Callable[["Stream"], Awaitable[None]]


class Stream:
    """One request, and the way to answer it as server-sent events."""

    def __init__(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.path, self.body, self._writer = path, body, writer
        self._events = 0

    @property
    def asked(self) -> str:
        return str(self.body["messages"][-1]["content"] if "messages" in self.body else self.body.get("prompt"))

    async def say(self, *pieces: str, reasoning: bool = False) -> None:
        for piece in pieces:
            said = {"delta": {"reasoning_content" if reasoning else "content": piece}}
            await self._event({"choices": [{"index": 0, "finish_reason": None} | self._as_asked(said, piece)]})

    async def end(self, tokens: int, reason: str = "stop") -> None:
        await self._event({"choices": [{"index": 0, "finish_reason": reason} | self._as_asked({"delta": {}}, "")]})
        usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
        await self._event({"choices": [], "usage": usage})
        self._writer.write(b"data: [DONE]\n\n")

    def _as_asked(self, chat: dict[str, Any], completion: str) -> dict[str, Any]:
        return chat if "messages" in self.body else {"text": completion}

    async def refuse(self, status: int, message: str) -> None:
        await self.whole({"error": {"message": message}}, status)

    async def whole(self, answer: object, status: int = 200) -> None:
        data = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        self._writer.write(head.encode() + data)

    async def hung_up(self) -> None:
        """Write until the client is gone."""
        while True:
            await self.say("on ")
            await asyncio.sleep(0.01)

    def die(self) -> None:
        self._writer.transport.abort()

    async def _event(self, event: dict[str, Any]) -> None:
        if not self._events:
            self._writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        base = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        self._writer.write(b"data: " + json.dumps(base | event).encode() + b"\n\n")
        await self._writer.drain()
        self._events += 1
        if self._events % 20 == 0:
            await asyncio.sleep(0)


class Engine:
    """An HTTP server that answers each request as the test says."""

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.requests: list[Stream] = []
        self.hang_ups = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        length = next(int(line.split(":")[1]) for line in head if line.lower().startswith("content-length"))
        stream = Stream(head[0].split()[1], json.loads(await reader.readexactly(length)), writer)
        self.requests.append(stream)
        try:
            await self.answering(stream)
            await writer.drain()
        except ConnectionError:
            self.hang_ups += 1
        finally:
            writer.close()


class Keeper(SimulatedKeeper):
    """A keeper of the servers that the test says, all of them behind one engine."""

    def __init__(self, engine: Engine, *servers: Server) -> None:
        super().__init__(clock=lambda: NOW)
        self._engine = engine
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
        return Connection(f"http://127.0.0.1:{self._engine.port}/v1", "m", kind)


def a_server(name: str = "demo", state: ServerState = ServerState.READY, kind: ModelKind = ModelKind.CHAT) -> Server:
    some = SimulatedKeeper(clock=lambda: NOW).snapshot().servers[0]
    return replace(some, name=name, state=state, kind=kind, stage=None)


class Chat:
    """The app on its chat screen, and what it shows."""

    def __init__(self, pilot: Pilot[None], engine: Engine, keeper: Keeper) -> None:
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
        views = [view for view in self.app.screen.query(ExchangeView) if view.query(".foot")]
        return [view for view in views if all(parent.display for parent in view.ancestors_with_self)]

    @property
    def answer(self) -> str:
        return self.views[-1].query_one(Markdown).source if self.views else ""

    def said(self, part: str) -> str:
        return str(self.app.screen.query_one(part, Static).content)

    @property
    def foot(self) -> str:
        return str(self.views[-1].query_one(".foot", Static).content) if self.views else ""

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 15
        while not holds():
            assert time.monotonic() < deadline, (
                f"waited in vain: {what}; answer …{self.answer[-80:]!r}, foot {self.foot!r}"
            )
            await self.pilot.pause(0.01)

    async def ask(self, question: str) -> None:
        await self.pilot.press(*question, "enter")


@asynccontextmanager
async def chatting(answering: Answering, *servers: Server, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Chat]:
    engine = Engine(answering)
    listening = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.port = listening.sockets[0].getsockname()[1]
    keeper = Keeper(engine, *(servers or (a_server(),)))
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with listening, app.run_test(size=size) as pilot:
        chat = Chat(pilot, engine, keeper)
        await chat.until(lambda: app.snapshot is not None, "the first snapshot")
        await pilot.press("4")
        await pilot.pause()
        yield chat


async def greet(stream: Stream) -> None:
    await stream.say(f"You said **{stream.asked}**", ", ", "and I say *hello*.")
    await stream.end(5)


async def test_an_answer_streams_with_its_figures_and_the_next_question_knows_it() -> None:
    async with chatting(greet) as chat:
        assert chat.app.focused is chat.field
        await chat.ask("hi")
        await chat.until(lambda: "TTFT" in chat.foot, "the timings")
        assert chat.answer == "You said **hi**, and I say *hello*."
        assert chat.field.text == ""
        for part in ("TTFT 0.", "tok/s", "5 tokens (7 in the prompt)"):
            assert part in chat.foot
        assert "12 used" in chat.said("#head")
        await chat.ask("again 1")
        await chat.until(lambda: len(chat.views) == 2 and "TTFT" in chat.foot, "the second answer")
        assert [message["content"] for message in chat.engine.requests[-1].body["messages"]] == [
            "hi",
            "You said **hi**, and I say *hello*.",
            "again 1",
        ]


async def test_escape_stops_the_engine_and_keeps_what_it_wrote() -> None:
    async def on_and_on(stream: Stream) -> None:
        await stream.say("It goes ")
        await stream.hung_up()

    async with chatting(on_and_on) as chat:
        await chat.ask("tell me")
        await chat.until(lambda: chat.answer.count("on ") > 3, "some text")
        assert "Esc stops it" in chat.foot
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.foot.endswith("stopped"), "the stop")
        await chat.until(lambda: chat.engine.hang_ups == 1, "the engine to notice")
        assert chat.answer.startswith("It goes on on on")
        assert chat.app.focused is chat.field
        chat.engine.answering = greet
        await chat.ask("go on")
        await chat.until(lambda: "TTFT" in chat.foot and len(chat.views) == 2, "the next answer")
        assert chat.engine.requests[-1].body["messages"][1]["content"].startswith("It goes on")


async def test_escape_before_the_first_token() -> None:
    async def never(stream: Stream) -> None:
        await asyncio.sleep(30)

    async with chatting(never) as chat:
        await chat.ask("well?")
        await chat.until(lambda: "waiting for the first token" in chat.foot, "the waiting")
        await chat.until(lambda: bool(chat.engine.requests), "the request")
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.foot == "stopped before it began", "the stop")


async def test_an_engine_that_dies_in_mid_answer_leaves_what_it_wrote_and_a_line() -> None:
    async def die(stream: Stream) -> None:
        await stream.say("Half an ", "answer")
        await asyncio.sleep(0.1)
        stream.die()

    async with chatting(die) as chat:
        await chat.ask("so?")
        await chat.until(lambda: "✗" in chat.foot, "the error")
        assert chat.answer == "Half an answer"
        assert "the engine went away in the middle of its answer" in chat.foot
        assert "TTFT" in chat.foot
        assert "Traceback" not in chat.foot


async def test_refusals_get_one_clear_line_and_the_question_comes_back() -> None:
    async def refuse(stream: Stream) -> None:
        await stream.refuse(400, "This model's maximum context length is 2048 tokens. However, you asked for 9000.")

    async with chatting(refuse) as chat:
        await chat.ask("long")
        await chat.until(lambda: "✗" in chat.foot, "the error")
        assert chat.foot.startswith("✗ this does not fit into the model's context of 2048 tokens · ")
        assert "\n" not in chat.foot
        await chat.pilot.press("up")
        assert chat.field.text == "long"


async def test_answers_go_on_while_another_screen_is_shown() -> None:
    proceed = asyncio.Event()

    async def slowly(stream: Stream) -> None:
        await stream.say("one ")
        await proceed.wait()
        await stream.say("two ", "three")
        await stream.end(3)

    async with chatting(slowly) as chat:
        await chat.ask("count")
        await chat.until(lambda: chat.answer.strip() == "one", "the beginning")
        await chat.pilot.press("f1")
        assert chat.app.current_mode == "box"
        proceed.set()
        await chat.pilot.pause(0.2)
        await chat.pilot.press("4")
        await chat.until(lambda: "TTFT" in chat.foot, "the end")
        assert chat.answer == "one two three"


async def test_each_server_has_its_own_conversation_and_draft() -> None:
    async with chatting(greet, a_server("a"), a_server("b")) as chat:
        await chat.ask("to a")
        await chat.until(lambda: "TTFT" in chat.foot, "a's answer")
        await chat.pilot.press(*"half", "escape", "right_square_bracket")
        await chat.until(lambda: chat.app.selected == "b" and not chat.views, "b's empty conversation")
        assert chat.field.text == ""
        assert chat.app.screen.query_one("#empty").display
        await chat.pilot.press("i")
        await chat.ask("to b")
        await chat.until(lambda: "TTFT" in chat.foot, "b's answer")
        assert len(chat.engine.requests[-1].body["messages"]) == 1
        await chat.pilot.press("escape", "left_square_bracket")
        await chat.until(lambda: "to a" in chat.answer, "a's conversation")
        assert chat.field.text == "half"


async def test_no_key_does_something_else_than_it_says() -> None:
    async with chatting(greet, a_server("a"), a_server("b")) as chat:
        await chat.pilot.press(*"1q[]?i2")
        assert chat.field.text == "1q[]?i2"
        assert (chat.app.current_mode, chat.app.selected) == ("chat", "a")
        assert "Esc leaves" in str(chat.field.placeholder)
        await chat.pilot.press("escape")
        assert chat.app.focused is not chat.field
        assert "i or Enter" in str(chat.field.placeholder)
        await chat.pilot.press("3")
        assert chat.app.current_mode == "logs"
        await chat.pilot.press("4")
        await chat.until(lambda: chat.app.focused is chat.field, "the field")
        await chat.pilot.press("escape", "question_mark", "escape", "1", "4")
        assert chat.app.focused is chat.field
        await chat.pilot.press("escape", "question_mark", "escape")
        assert chat.app.focused is not chat.field
        await chat.pilot.press("enter")
        assert chat.app.focused is chat.field
        await chat.pilot.press("escape", "i", "x")
        assert chat.field.text == "1q[]?i2x"


async def test_a_server_that_is_not_ready_says_so_until_it_is() -> None:
    starting = replace(a_server(state=ServerState.STARTING), stage=Stage("weights", NOW, 0.5))
    async with chatting(greet, starting) as chat:
        await chat.until(lambda: "weights 50%" in chat.said("#state"), "the stage")
        assert chat.field.disabled
        await chat.pilot.press("i", "enter")
        assert chat.app.focused is not chat.field
        chat.keeper.tell(a_server())
        await chat.until(lambda: not chat.field.disabled, "the field")
        assert not chat.app.screen.query_one("#state").has_class("-shown")
        await chat.pilot.press("i", *"abc")
        # What is being written stays a text, also when the server goes while one writes.
        chat.keeper.tell(replace(a_server(state=ServerState.FAILED), cause="CUDA out of memory"))
        await chat.until(lambda: "CUDA out of memory" in chat.said("#state"), "the cause")
        await chat.pilot.press("q", "1", "enter")
        assert chat.field.text == "abcq1"
        assert chat.app.current_mode == "chat"
        assert not chat.engine.requests
        await chat.pilot.press("escape")
        assert chat.field.disabled


async def test_a_base_model_continues_the_text() -> None:
    async def go_on(stream: Stream) -> None:
        await stream.say(" upon a time", " *there* was")
        await stream.end(9, "length")

    async with chatting(go_on, a_server(kind=ModelKind.COMPLETION)) as chat:
        assert "completions only: your text is continued as it is" in chat.said("#head")
        await chat.ask("Once")
        await chat.until(lambda: "TTFT" in chat.foot, "the continuation")
        assert str(chat.views[-1].query_one(".continued", Static).content) == "Once upon a time *there* was"
        assert "ended by the token limit" in chat.foot
        assert chat.engine.requests[-1].path == "/v1/completions"
        assert chat.engine.requests[-1].body["prompt"] == "Once"


async def test_an_embedding_model_shows_its_vector() -> None:
    async def embed(stream: Stream) -> None:
        data = [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8, 0.0]}]
        await stream.whole(
            {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 4, "total_tokens": 4}}
        )

    async with chatting(embed, a_server(kind=ModelKind.EMBEDDING)) as chat:
        assert "embeddings only" in chat.said("#head")
        await chat.ask("some text")
        await chat.until(lambda: "dimensions" in chat.foot, "the vector")
        assert "3 dimensions · norm 1.0000" in chat.foot
        assert "0.6000, 0.8000, 0.0000" in chat.foot


async def test_thoughts_are_folded_once_it_writes_and_shown_when_asked_for() -> None:
    proceed = asyncio.Event()

    async def think(stream: Stream) -> None:
        await stream.say("First I ", "wonder.", reasoning=True)
        await proceed.wait()
        await stream.say("Yes.")
        await stream.end(4)

    async with chatting(think) as chat:

        def thoughts() -> str:
            return str(chat.views[-1].query_one(".thoughts", Static).content) if chat.views else ""

        await chat.ask("really?")
        await chat.until(lambda: thoughts() == "First I wonder.", "the thoughts")
        proceed.set()
        await chat.until(lambda: "TTFT" in chat.foot, "the answer")
        assert "it thought in 3 words" in thoughts()
        assert chat.answer == "Yes."
        await chat.pilot.press("ctrl+t")
        assert thoughts() == "First I wonder."


async def test_a_new_chat_begins_empty_and_stops_the_old_one() -> None:
    async def on_and_on(stream: Stream) -> None:
        await stream.hung_up()

    async with chatting(on_and_on) as chat:
        await chat.ask("talk")
        await chat.until(lambda: "on " in chat.answer, "some text")
        await chat.pilot.press("ctrl+n")
        await chat.until(lambda: not chat.views, "an empty conversation")
        await chat.until(lambda: chat.engine.hang_ups == 1, "the engine to notice")
        chat.engine.answering = greet
        await chat.ask("hi")
        await chat.until(lambda: "TTFT" in chat.foot, "the answer")
        assert len(chat.engine.requests[-1].body["messages"]) == 1


async def test_several_lines_are_written_pasted_and_brought_back() -> None:
    async with chatting(greet) as chat:
        await chat.pilot.press(*"one", "ctrl+j", *"two")
        assert chat.field.text == "one\ntwo"
        chat.app.post_message(events.Paste("\nthree\nfour"))
        await chat.until(lambda: chat.field.text == "one\ntwo\nthree\nfour", "the pasted lines")
        await chat.pilot.press("enter")
        await chat.until(lambda: "TTFT" in chat.foot, "the answer")
        assert chat.engine.requests[-1].body["messages"][-1]["content"] == "one\ntwo\nthree\nfour"
        await chat.ask("five")
        await chat.until(lambda: len(chat.views) == 2 and "TTFT" in chat.foot, "the second answer")
        await chat.pilot.press("up")
        assert chat.field.text == "five"
        await chat.pilot.press("up")
        assert chat.field.text.startswith("one")
        await chat.pilot.press("down", "down")
        assert chat.field.text == ""


@pytest.mark.usefixtures("own_garbage")
async def test_a_flood_of_tokens_is_shown_whole_and_the_loop_never_stalls() -> None:
    words = [f"word{number} " + ("\n\n" if number % 40 == 39 else "") for number in range(2000)]

    async def flood(stream: Stream) -> None:
        await stream.say(*words)
        await stream.end(2000)

    async with chatting(flood, size=(120, 40)) as chat:
        chat.engine.answering = greet
        await chat.ask("hi")  # The openai client is imported at the first question.
        await chat.until(lambda: "TTFT" in chat.foot, "the first answer")
        chat.engine.answering = flood
        longest_s = 0.0

        async def watch() -> None:
            nonlocal longest_s
            while True:
                begun = time.thread_time()  # Of this thread alone: other programs' work is not ours.
                await asyncio.sleep(0.005)
                longest_s = max(longest_s, time.thread_time() - begun)

        watching = asyncio.create_task(watch())
        await chat.ask("go")
        await chat.until(lambda: len(chat.views) == 2 and "TTFT" in chat.foot, "the flood's end")
        watching.cancel()
        assert chat.answer == "".join(words)
        assert longest_s < 0.4


async def test_nothing_is_lost_of_what_is_typed_right_after_sending() -> None:
    proceed = asyncio.Event()

    async def slowly(stream: Stream) -> None:
        await proceed.wait()
        await greet(stream)

    async with chatting(slowly) as chat:
        # All at once, as over a slow line.
        for key in ("a", "ctrl+j", "A", "enter", "b", "enter", "c", "enter", "d"):
            pressed = events.Key(key, key if len(key) == 1 else "\r")
            pressed.set_sender(chat.app)
            chat.app.post_message(pressed)
        await chat.until(lambda: chat.field.text == "bcd", "what was typed while the answer is awaited")
        assert len(chat.views) <= 1
        proceed.set()
        await chat.until(lambda: "TTFT" in chat.foot, "the answer")
        assert [request.asked for request in chat.engine.requests] == ["a\nA"]


async def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    async def attack(stream: Stream) -> None:
        await stream.say("a\x1b[2Jb\x07", "\x9b31mc\n", "d")
        await stream.end(2)

    async with chatting(attack) as chat:
        await chat.ask("go")
        await chat.until(lambda: "TTFT" in chat.foot, "the answer")
        assert chat.answer == "a[2Jb31mc\nd"


@pytest.mark.parametrize("module", ["openai", "httpx"])
def test_opening_the_screen_does_not_import_the_client(module: str) -> None:
    code = f"import sys, tui.screens.chat; sys.exit({module!r} in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=60).returncode == 0
