"""Answers that are stopped, break off, or are refused: what is kept, and what is said, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from backends.chat import ChatSession
from backends.chat_errors import AnswerCutError
from backends.errors import ConflictError
from tests.unit.chat_engine import FakeEngine, Request, Wire, ask, piece, refusal, says, usage


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


async def endless(request: Request, wire: Wire) -> None:
    await wire.begin()
    while True:
        await wire.event(piece("more "))
        await asyncio.sleep(0.01)


async def test_closing_an_answer_stops_the_engine_and_keeps_what_came(engine: FakeEngine) -> None:
    engine.script = endless
    async with ChatSession(engine.connection()) as session:
        async with aclosing(session.ask("go on")) as pieces:
            async for _ in pieces:
                break
        assert await asyncio.to_thread(engine.gone.wait, 10)
        (turn,) = session.turns
        assert turn.answer.cut
        assert turn.answer.text == "more "
        engine.script = says("fine")
        await ask(session, "and now?")
    assert [message["content"] for message in engine.requests[1].body["messages"]] == ["go on", "more ", "and now?"]


async def test_cancelling_the_task_stops_the_engine(engine: FakeEngine) -> None:
    begun = asyncio.Event()

    async def listen() -> None:
        async for _ in session.ask("go on"):
            begun.set()

    engine.script = endless
    async with ChatSession(engine.connection()) as session:
        task = asyncio.create_task(listen())
        await begun.wait()
        with pytest.raises(ConflictError):
            await ask(session, "at the same time")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(engine.gone.wait, 10)
        assert session.turns[0].answer.cut


async def test_cancelling_before_the_first_token_leaves_no_turn(engine: FakeEngine) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def silent(request: Request, wire: Wire) -> None:
        loop.call_soon_threadsafe(asked.set)
        await asyncio.sleep(60)

    engine.script = silent
    async with ChatSession(engine.connection()) as session:
        task = asyncio.create_task(ask(session, "hi"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(engine.gone.wait, 10)
        assert session.turns == ()
        engine.script = says("here")
        assert (await ask(session, "hi"))[1].text == "here"


@pytest.mark.parametrize("way", ["abort", "end"])
async def test_an_engine_that_dies_in_mid_answer(engine: FakeEngine, way: str) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece("half an "))
        if way == "end":
            await wire.end()
        else:
            await asyncio.sleep(0.1)
            wire.die()

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        with pytest.raises(AnswerCutError, match=r"^the engine went away in the middle of its answer\n") as caught:
            await ask(session, "hi")
        assert caught.value.answer.text == "half an "
        assert session.turns[0].answer == caught.value.answer
        assert caught.value.answer.cut
        engine.script = says("fine")
        await ask(session, "again")


async def test_an_engine_that_reports_an_error_in_mid_answer(engine: FakeEngine) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece("half"))
        await wire.event({"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError"}})
        await wire.done()

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        with pytest.raises(AnswerCutError, match="broke off its answer: EngineCore encountered an issue"):
            await ask(session, "hi")


async def test_an_engine_that_falls_silent_in_mid_answer(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece("half"))
        await asyncio.sleep(60)

    monkeypatch.setattr("backends.chat._SILENCE_S", 1.0)
    engine.script = script
    async with ChatSession(engine.connection()) as session:
        with pytest.raises(AnswerCutError, match=r"^the engine fell silent in the middle of its answer\n") as caught:
            await ask(session, "hi")
        assert caught.value.answer.text == "half"


@pytest.mark.parametrize("garbage", [b"data: {half an obj\n\n", b"data: 3\n\n"])
async def test_what_cannot_be_read_in_mid_answer_keeps_what_came(engine: FakeEngine, garbage: bytes) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece("half"))
        await wire.write(garbage)
        await wire.done()

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        with pytest.raises(AnswerCutError) as caught:
            await ask(session, "hi")
        assert caught.value.answer.text == "half"


async def test_an_answer_is_read_however_its_bytes_are_cut_into_packets(engine: FakeEngine) -> None:
    whole = b": a comment\r\n" + b"".join(
        b"data:%s\r\n\r\n" % json.dumps(event, ensure_ascii=False).encode()
        for event in (piece("größer "), piece("als 界"), piece("", finish="stop"), usage(3, 2))
    )

    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        for at in range(0, len(whole), 7):
            await wire.write(whole[at : at + 7])
        await wire.done()

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        _, answer = await ask(session, "hi")
        assert (answer.text, answer.completion_tokens) == ("größer als 界", 2)


CONTEXT = (
    "This model's maximum context length is 64 tokens. However, you requested 100 output tokens and your prompt "
    "contains at least 12 input tokens. Please reduce the length of the input prompt."
)
TOO_MANY = "max_tokens=5000 cannot be greater than max_model_len=128. Please request fewer output tokens."
PROMPT = "The decoder prompt (length 99) is longer than the maximum model length of 64. Make sure that …"
TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if "
    "the tokenizer does not define one."
)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, {"error": {"message": CONTEXT, "code": 400}}, "this does not fit into the model's context of 64 tokens"),
        (400, {"error": {"message": TOO_MANY}}, "this does not fit into the model's context of 128 tokens"),
        (400, {"error": {"message": PROMPT}}, "this does not fit into the model's context of 64 tokens"),
        (400, {"error": {"message": "m is not a multimodal model"}}, "m takes no pictures"),
        (422, {"detail": "Unsupported fields in the request: {'min_p'}"}, "the engine does not take min_p"),
        (400, {"object": "error", "message": TEMPLATE, "code": 400}, "the model has no chat template"),
        (401, {"error": "Unauthorized"}, "the engine refuses the API key"),
        (404, {"error": {"message": "The model `m` does not exist."}}, "the engine serves no model named m"),
        (404, {"detail": "Not Found"}, "the engine cannot be asked this way (HTTP 404 at /v1/chat/completions)"),
        (400, {"error": {"message": "bad\n  thing"}}, "the engine refuses (HTTP 400): bad thing"),
        (500, "<html>" + "x" * 9999, "the engine refuses (HTTP 500): it does not say why"),
        (200, "not a stream at all", "the engine ended its answer before it began"),
    ],
    ids=[
        "context",
        "max tokens",
        "prompt",
        "picture",
        "setting",
        "template",
        "key",
        "model",
        "route",
        "other",
        "web page",
        "no stream",
    ],
)
async def test_refusals_are_one_clear_line(engine: FakeEngine, status: int, body: object, message: str) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.reply(status, body)

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        assert (await refusal(session)).message == message
        assert session.turns == ()
    assert len(engine.requests) == 1, "nothing is asked twice"


@pytest.mark.parametrize("answer_first", [False, True])
async def test_an_engine_that_hangs_up(engine: FakeEngine, answer_first: bool) -> None:
    async def script(request: Request, wire: Wire) -> None:
        if answer_first:
            await wire.begin()
            await asyncio.sleep(0.05)
        wire.die()

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        assert (await refusal(session)).message == "the engine closed the connection before it answered"


async def test_nothing_listening() -> None:
    with FakeEngine() as engine:
        connection = engine.connection()
    async with ChatSession(connection) as session:
        assert (await refusal(session)).message == f"nothing answers at http://127.0.0.1:{engine.port}/v1"


@pytest.mark.parametrize(
    ("told", "remedy"),
    [
        (CONTEXT, "100 tokens of answer were asked for, and at most 52 are left: lower max_tokens"),
        (TOO_MANY, "5000 tokens of answer were asked for: lower max_tokens"),
        (PROMPT, "begin a new chat, edit an earlier question, or raise max_model_len in the profile"),
    ],
    ids=["both", "answer", "prompt"],
)
async def test_what_is_too_long_has_the_remedy_that_helps(engine: FakeEngine, told: str, remedy: str) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.reply(400, {"error": {"message": told}})

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        assert (await refusal(session)).hint == remedy
