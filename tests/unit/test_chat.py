"""A conversation with an engine over real sockets: what is streamed, timed, kept, stopped, and told when it fails."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from backends.chat import COMPLETION_MAX_TOKENS, Answer, AnswerCutError, ChatChunk, ChatError, ChatSession
from backends.errors import ConflictError, UsageError
from backends.snapshots import Connection, ModelKind
from tests.unit.chat_engine import FakeEngine, Request, Wire, piece, says, usage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


async def ask(session: ChatSession, prompt: str, **options: float) -> tuple[list[ChatChunk], Answer]:
    chunks: list[ChatChunk] = []
    async for item in session.ask(prompt, **options):  # type: ignore[arg-type]
        if isinstance(item, Answer):
            return chunks, item
        chunks.append(item)
    raise AssertionError("no Answer came")


async def refusal(session: ChatSession, prompt: str = "hi") -> ChatError:
    with pytest.raises(ChatError) as caught:
        await ask(session, prompt)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


async def test_text_is_streamed_and_the_conversation_goes_on(engine: FakeEngine) -> None:
    async with ChatSession(engine.connection(), system="Be brief.") as session:
        engine.script = says("The KV", " cache.", tokens=5)
        chunks, answer = await ask(session, "What is it?", temperature=0.0, max_tokens=20)
        assert [chunk.text for chunk in chunks] == ["The KV", " cache."]
        assert (answer.text, answer.reasoning, answer.finish_reason, answer.cut) == ("The KV cache.", "", "stop", False)
        assert (answer.prompt_tokens, answer.completion_tokens, answer.is_estimate) == (7, 5, False)
        await ask(session, "Why?")
    first, second = engine.requests
    assert first.path == "/v1/chat/completions"
    assert first.headers["authorization"] == "Bearer EMPTY"
    assert first.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "max_tokens": 20,
    }
    assert second.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "The KV cache."},
        {"role": "user", "content": "Why?"},
    ]
    assert "temperature" not in second.body


async def test_timings_leave_out_the_role_piece_and_count_the_tokens_after_the_first(engine: FakeEngine) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece("", role="assistant"))
        await asyncio.sleep(0.3)
        await wire.event(piece("four tokens at once"))
        await asyncio.sleep(0.4)
        await wire.event(piece(" and the rest"))
        await wire.event(piece("", finish="stop"))
        await wire.event(usage(3, 9))
        await wire.done()

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        _, answer = await ask(session, "hi")
    assert answer.ttft_s == pytest.approx(0.3, abs=0.1)
    assert answer.duration_s == pytest.approx(0.7, abs=0.15)
    assert answer.tokens_per_s == pytest.approx(8 / 0.4, rel=0.25)


async def test_characters_split_between_packets_arrive_whole(engine: FakeEngine) -> None:
    event = json.dumps(piece("Größe 🚀 漢字"), ensure_ascii=False).encode()

    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        for byte in b"data: " + event + b"\n\n":
            await wire.write(bytes([byte]))
        await wire.event(piece("\ud83d", finish="stop"))
        await wire.done()

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        _, answer = await ask(session, "größe 🚀")
    assert answer.text == "Größe 🚀 漢字?"
    assert engine.requests[0].body["messages"][0]["content"] == "größe 🚀"


@pytest.mark.parametrize("fields", [("reasoning_content",), ("reasoning",), ("reasoning_content", "reasoning")])
async def test_reasoning_is_apart_and_not_sent_back(engine: FakeEngine, fields: tuple[str, ...]) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece(None, **dict.fromkeys(fields, "hm, ")))
        await wire.event(piece("yes", finish="stop"))
        await wire.done()

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        chunks, answer = await ask(session, "sure?")
        assert chunks == [ChatChunk(reasoning="hm, "), ChatChunk("yes")]
        assert (answer.text, answer.reasoning) == ("yes", "hm, ")
        assert answer.is_estimate
        assert answer.completion_tokens == 2
        await ask(session, "really?")
    assert engine.requests[1].body["messages"][1] == {"role": "assistant", "content": "yes"}


async def test_an_answer_without_text_is_left_out_of_the_next_question(engine: FakeEngine) -> None:
    async def only_thinks(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece(None, reasoning="hm", finish="length"))
        await wire.done()

    async with ChatSession(engine.connection()) as session:
        engine.script = only_thinks
        assert (await ask(session, "sure?"))[1].text == ""
        engine.script = says("yes")
        await ask(session, "well?")
        assert [turn.prompt for turn in session.turns] == ["sure?", "well?"]
    assert engine.requests[1].body["messages"] == [{"role": "user", "content": "well?"}]


async def test_an_engine_that_refuses_stream_options_is_asked_without(engine: FakeEngine) -> None:
    async def transformers_serve(request: Request, wire: Wire) -> None:
        if "stream_options" in request.body:
            await wire.reply(422, {"detail": "Unsupported fields in the request: {'stream_options'}"})
            return
        await wire.begin()
        await wire.event(piece("ok"))
        await wire.event(piece(finish="stop") | {"usage": usage(2, 4)["usage"]})
        await wire.end()

    engine.script = transformers_serve
    async with ChatSession(engine.connection()) as session:
        _, answer = await ask(session, "hi")
        assert (answer.text, answer.completion_tokens) == ("ok", 4)
        await ask(session, "again")
    assert ["stream_options" in request.body for request in engine.requests] == [True, False, False]


async def test_a_completion_model_gets_the_bare_prompt(engine: FakeEngine) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        for text, finish in ((" there", None), (" was", "length")):
            choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
            await wire.event({"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})
        await wire.event(usage(2, 2))
        await wire.done()

    engine.script = script
    async with ChatSession(engine.connection(ModelKind.COMPLETION), system="unused") as session:
        _, answer = await ask(session, "Once upon a time")
        assert (answer.text, answer.finish_reason) == (" there was", "length")
        await ask(session, "Once more", max_tokens=3)
    first, second = engine.requests
    assert first.path == "/v1/completions"
    assert (first.body["prompt"], first.body["max_tokens"]) == ("Once upon a time", COMPLETION_MAX_TOKENS)
    assert (second.body["prompt"], second.body["max_tokens"]) == ("Once more", 3)


async def test_an_embedding_model_embeds_and_does_not_chat(engine: FakeEngine) -> None:
    async def script(request: Request, wire: Wire) -> None:
        vector = [3.0, 4.0] + [0.0] * 14
        data = [{"object": "embedding", "index": 0, "embedding": vector}]
        counts = {"prompt_tokens": 2, "total_tokens": 2}
        await wire.reply(200, {"object": "list", "model": "m", "data": data, "usage": counts})

    engine.script = script
    async with ChatSession(engine.connection(ModelKind.EMBEDDING)) as session:
        made = await session.embed("a text")
        with pytest.raises(UsageError, match="cannot chat"):
            await ask(session, "hi")
    assert (made.dimensions, made.norm, made.prompt_tokens) == (16, 5.0, 2)
    assert made.first == (3, 4, 0, 0, 0, 0, 0, 0)
    assert math.isfinite(made.duration_s)
    assert engine.requests[0].body == {"model": "m", "input": "a text", "encoding_format": "float"}


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


CONTEXT = (
    "This model's maximum context length is 64 tokens. However, you requested 100 output tokens and your prompt "
    "contains at least 12 input tokens. Please reduce the length of the input prompt."
)
TOO_MANY = "max_tokens=5000 cannot be greater than max_model_len=128. Please request fewer output tokens."
TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if "
    "the tokenizer does not define one."
)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, {"error": {"message": CONTEXT, "code": 400}}, "this does not fit into the model's context of 64 tokens"),
        (400, {"error": {"message": TOO_MANY}}, "this does not fit into the model's context of 128 tokens"),
        (400, {"object": "error", "message": TEMPLATE, "code": 400}, "the model has no chat template"),
        (401, {"error": "Unauthorized"}, "the engine refuses the API key"),
        (404, {"error": {"message": "The model `m` does not exist."}}, "the engine serves no model named m"),
        (404, {"detail": "Not Found"}, "the engine cannot be asked this way (HTTP 404 at /v1/chat/completions)"),
        (400, {"error": {"message": "bad\n  thing"}}, "the engine refuses (HTTP 400): bad thing"),
        (500, "<html>" + "x" * 9999, "the engine refuses (HTTP 500): it does not say why"),
        (200, "not a stream at all", "the engine ended its answer before it began"),
    ],
    ids=["context", "max tokens", "template", "key", "model", "route", "other", "web page", "no stream"],
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


async def test_the_environment_does_not_reach_the_request(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", "the user's own")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    for connection in (
        engine.connection(api_key="s3cret"),
        Connection(f"http://127.0.0.1:{engine.port}/v1/", "m", ModelKind.UNKNOWN, "s3cret"),
    ):
        async with ChatSession(connection) as session:
            assert (await ask(session, "hi"))[1].text == "hello"
    assert [request.path for request in engine.requests] == ["/v1/chat/completions"] * 2
    assert {request.headers["authorization"] for request in engine.requests} == {"Bearer s3cret"}


async def test_a_session_goes_on_with_the_turns_of_another(engine: FakeEngine) -> None:
    async with ChatSession(engine.connection()) as before:
        await ask(before, "one")
    async with ChatSession(engine.connection(), turns=before.turns) as after:
        await ask(after, "two")
        assert [turn.prompt for turn in after.turns] == ["one", "two"]
    assert [message["content"] for message in engine.requests[1].body["messages"]] == ["one", "hello", "two"]


IMPORTING = """
import asyncio, sys
from backends.chat import ChatSession
from backends.snapshots import Connection, ModelKind

async def main():
    beats = 0
    async def heart():
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1
    beating = asyncio.create_task(heart())
    async for _ in ChatSession(Connection(sys.argv[1], "m", ModelKind.CHAT)).ask("hi"):
        break
    return beats

assert "openai" not in sys.modules
beats = asyncio.run(main())
assert "openai" in sys.modules
print(beats)
"""


async def test_openai_is_imported_for_the_first_question_and_the_event_loop_runs_on(engine: FakeEngine) -> None:
    command = [sys.executable, "-c", IMPORTING, engine.connection().base_url]
    asking = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    told, _ = await asking.communicate()
    assert asking.returncode == 0
    assert int(told) >= 10, "the import takes half a second: a loop that stands still beats once or twice"
