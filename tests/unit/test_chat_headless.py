"""`gpubox chat` as a process: what it prints where, pipes, and a person at a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.chat_answer import Answer
from backends.snapshots import ModelKind
from tests.unit.chat_engine import FakeEngine, Request, Wire, piece, says
from tui.headless.chat import INTERRUPTED, timings

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys
from backends.errors import GpuboxError
from backends.snapshots import Connection, load
from tui.headless.chat import chat
from tui.headless.output import complain
options = json.loads(sys.argv[1])
assert not {"textual", "rich", "openai"} & sys.modules.keys()
try:
    sys.exit(chat("demo", connection=load(Connection, json.dumps(options.pop("connection"))), **options))
except GpuboxError as error:
    sys.exit(complain(error))
"""


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


def command(engine: FakeEngine, prompt: str | None, kind: ModelKind = ModelKind.CHAT, **options: object) -> list[str]:
    connection = {"base_url": engine.connection().base_url, "served_name": "m", "kind": kind}
    asked = {"prompt": prompt, "system": None, "temperature": None, "max_tokens": None, "json": False}
    return [sys.executable, "-c", RUN, json.dumps(asked | options | {"connection": connection})]


def run(
    engine: FakeEngine, prompt: str | None, stdin: bytes = b"", kind: ModelKind = ModelKind.CHAT, **options: object
) -> tuple[int, str, str]:
    done = subprocess.run(command(engine, prompt, kind, **options), input=stdin, capture_output=True, cwd=ROOT)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def endless(request: Request, wire: Wire) -> None:
    await wire.begin()
    while True:
        await wire.event(piece("more \x1b[31m"))
        await asyncio.sleep(0.01)


def test_the_answer_alone_is_on_standard_output(engine: FakeEngine) -> None:
    engine.script = says("Größe ", "🚀", tokens=3)
    code, out, err = run(engine, "hi", system="Be brief.", temperature=0.5, max_tokens=9)
    assert (code, out) == (0, "Größe 🚀\n")
    assert re.fullmatch(r"TTFT \d\.\d\d s · 3 tokens · \d+ tok/s overall\n", err)
    body = engine.requests[0].body
    assert (body["temperature"], body["max_tokens"]) == (0.5, 9)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_the_question_can_come_from_standard_input(engine: FakeEngine) -> None:
    assert run(engine, None, b"two\nlines\n")[0] == 0
    assert engine.requests[0].body["messages"][-1]["content"] == "two\nlines"
    assert run(engine, "argument", b"not read")[0] == 0
    assert engine.requests[1].body["messages"][-1]["content"] == "argument"


@pytest.mark.parametrize(("stdin", "told"), [(b"", "empty"), (b" \n", "empty"), (b"\xff\xfe", "not UTF-8")])
def test_what_is_no_question(engine: FakeEngine, stdin: bytes, told: str) -> None:
    code, out, err = run(engine, None, stdin)
    assert (code, out) == (2, "")
    assert told in err
    assert engine.requests == []


def test_reasoning_goes_to_standard_error(engine: FakeEngine) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece(None, reasoning="let me see"))
        await wire.event(piece("42", finish="stop"))
        await wire.done()

    engine.script = script
    code, out, err = run(engine, "hi")
    assert (code, out) == (0, "42\n")
    assert err.startswith("let me see\nTTFT ")
    assert "~2 tokens" in err


def test_json_is_one_object(engine: FakeEngine) -> None:
    code, out, err = run(engine, "hi", json=True)
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert {name: told.pop(name) for name in ("ttft_s", "duration_s", "tokens_per_s")}["ttft_s"] > 0
    assert told == {
        "server": "demo",
        "model": "m",
        "answer": "hello",
        "reasoning": "",
        "prompt_tokens": 7,
        "completion_tokens": 1,
        "is_estimate": False,
        "finish_reason": "stop",
        "cut": False,
        "is_overall_rate": True,
        "error": None,
    }


def test_an_embedding_model(engine: FakeEngine) -> None:
    async def script(request: Request, wire: Wire) -> None:
        data = [{"object": "embedding", "index": 0, "embedding": [3.0, 4.0]}]
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        await wire.reply(200, {"object": "list", "model": "m", "data": data, "usage": usage})

    engine.script = script
    code, out, err = run(engine, "hi", kind=ModelKind.EMBEDDING)
    assert (code, out) == (0, "2 dimensions, norm 5.0000: 3.0000, 4.0000\n")
    assert err.startswith("2 tokens · ")
    assert json.loads(run(engine, "hi", kind=ModelKind.EMBEDDING, json=True)[1])["first"] == [3.0, 4.0]


@pytest.mark.parametrize("as_json", [False, True])
def test_an_engine_that_dies_leaves_what_it_wrote(engine: FakeEngine, as_json: bool) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece("half"))
        await asyncio.sleep(0.1)
        wire.die()

    engine.script = script
    code, out, err = run(engine, "hi", json=as_json)
    assert code == 1
    assert "gpubox: the engine went away in the middle of its answer\n" in err
    assert "Traceback" not in err
    if as_json:
        told = json.loads(out)
        assert (told["answer"], told["cut"], told["error"]) == (
            "half",
            True,
            "the engine went away in the middle of its answer",
        )
    else:
        assert out == "half\n"


def test_a_reader_that_leaves_stops_the_engine_quietly(engine: FakeEngine) -> None:
    engine.script = endless
    asking = subprocess.Popen(command(engine, "hi"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert asking.stdout is not None
    assert asking.stdout.read(5) == b"more "
    asking.stdout.close()
    assert engine.gone.wait(45)
    assert asking.stderr is not None
    assert asking.stderr.read() == b""
    assert asking.wait(10) == 0
    asking.stderr.close()


def test_an_interrupt_stops_the_engine_and_shows_what_came(engine: FakeEngine) -> None:
    engine.script = endless
    asking = subprocess.Popen(command(engine, "hi"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert asking.stdout is not None
    assert asking.stdout.read(10) == b"more \x1b[31m"
    asking.send_signal(signal.SIGINT)
    rest, err = asking.communicate(timeout=45)
    assert asking.returncode == INTERRUPTED
    assert rest.endswith(b"\n")
    assert b"Traceback" not in err
    assert b"stopped" in err
    assert engine.gone.wait(45)


class Terminal:
    """A person at a terminal: types, and waits for what should appear."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execve(argv[0], argv, os.environ | {"TERM": "dumb", "INPUTRC": os.devnull})
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait_for(self, text: str, *, pressing: str = "") -> None:
        """Read until `text` appears, `pressing` keys whenever nothing happens."""
        deadline = time.monotonic() + 20
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self._fd], [], [], 1.0)[0]:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
            else:
                self.type(pressing)
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def end(self) -> int:
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._fd)
        return status


def test_a_conversation_at_a_terminal(engine: FakeEngine) -> None:
    person = Terminal(command(engine, None))
    person.wait_for("Ctrl+D ends.")
    person.wait_for("> ")
    person.type("one\r")
    person.wait_for("hello\r\n")
    person.wait_for("TTFT ")
    person.wait_for("> ")
    engine.script = endless
    person.type("two\r")
    person.wait_for("more [31mmore ")
    person.type("\x03")
    person.wait_for("stopped")
    assert engine.gone.wait(45)
    person.wait_for("> ")
    # Python's readline loses an interrupt that comes just before it waits for keys, so a fast one is pressed again.
    person.wait_for("> ", pressing="\x03")
    engine.script = says("fine")
    person.type("three\r")
    person.wait_for("fine\r\n")
    person.wait_for("> ")
    person.type("\x04")
    assert person.end() == 0
    contents = [message["content"] for message in engine.requests[-1].body["messages"]]
    assert contents[:3] == ["one", "hello", "two"]
    assert contents[3].startswith("more ")
    assert contents[4:] == ["three"]


def test_a_conversation_survives_a_refusal(engine: FakeEngine) -> None:
    async def refuse(request: Request, wire: Wire) -> None:
        await wire.reply(500, {"error": {"message": "out of order"}})

    engine.script = refuse
    person = Terminal(command(engine, None))
    person.wait_for("> ")
    person.type("one\r")
    person.wait_for("out of order")
    person.wait_for("> ")
    engine.script = says("back")
    person.type("two\r")
    person.wait_for("back\r\n")
    person.wait_for("> ")
    person.type("\x04")
    assert person.end() == 0


def test_json_at_a_terminal_needs_a_question(engine: FakeEngine) -> None:
    person = Terminal(command(engine, None, json=True))
    person.wait_for("there is no question")
    assert person.end() == 2


def test_timings_in_words() -> None:
    whole = Answer("a", "", 0.123, 0.6, 7, 48, False, 103.4, "stop")
    assert timings(whole) == "TTFT 0.12 s · 48 tokens · 103 tok/s"
    short = Answer("a", "", 0.5, 0.6, None, 1, True, None, "length")
    assert timings(short) == "TTFT 0.50 s · ~1 token · ended by the token limit"
    nothing = Answer("", "", None, 0.6, None, 0, True, None, None, cut=True)
    assert timings(nothing) == "~0 tokens · stopped"
