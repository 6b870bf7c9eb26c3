"""A conversation with an engine over real sockets: what is sent, streamed, and kept."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.chat import COMPLETION_MAX_TOKENS, ChatSession
from backends.chat_answer import ChatChunk
from backends.chat_image import Image
from backends.chat_settings import Sampling
from backends.errors import UsageError
from backends.snapshots import Connection, ModelKind
from tests.unit.chat_engine import FakeEngine, Request, Wire, ask, piece, says, usage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


async def test_text_is_streamed_and_the_conversation_goes_on(engine: FakeEngine) -> None:
    async with ChatSession(engine.connection(), system="Be brief.") as session:
        engine.script = says("The KV", " cache.", tokens=5)
        chunks, answer = await ask(session, "What is it?", Sampling(temperature=0.0, max_tokens=20))
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
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
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
        await ask(session, "Once more", Sampling(max_tokens=3, thinking=True))
    first, second = engine.requests
    assert first.path == "/v1/completions"
    assert (first.body["prompt"], first.body["max_tokens"]) == ("Once upon a time", COMPLETION_MAX_TOKENS)
    assert (second.body["prompt"], second.body["max_tokens"]) == ("Once more", 3)
    assert "chat_template_kwargs" not in second.body


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


async def test_an_engine_that_counts_at_the_end_alone_is_asked_for_that(engine: FakeEngine) -> None:
    async def strict(request: Request, wire: Wire) -> None:
        if "continuous_usage_stats" in request.body["stream_options"]:
            await wire.reply(400, {"error": {"message": "extra fields not permitted: continuous_usage_stats"}})
            return
        await says("ok")(request, wire)

    engine.script = strict
    async with ChatSession(engine.connection()) as session:
        assert (await ask(session, "hi"))[1].completion_tokens == 1
        await ask(session, "again")
    assert [len(request.body["stream_options"]) for request in engine.requests] == [2, 1, 1]


async def test_a_picture_goes_along_and_stays_in_the_conversation(engine: FakeEngine) -> None:
    image = Image("a.png", "image/png", b"\x89PNG")
    async with ChatSession(engine.connection()) as session:
        await ask(session, "what is it?", image=image)
        await ask(session, "sure?")
        with pytest.raises(UsageError, match="takes no pictures"):
            await ask(ChatSession(engine.connection(ModelKind.COMPLETION)), "x", image=image)
    asked = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
        {"type": "text", "text": "what is it?"},
    ]
    first, second = (request.body["messages"] for request in engine.requests)
    assert first == [{"role": "user", "content": asked}]
    assert [message["content"] for message in second] == [asked, "hello", "sure?"]


async def test_all_settings_reach_the_engine(engine: FakeEngine) -> None:
    sampling = Sampling(0.5, 0.9, 40, 0.05, 1.1, 99, 7, ("END", "\n\n"), False)
    async with ChatSession(engine.connection()) as session:
        await ask(session, "hi", sampling)
    body = engine.requests[0].body
    assert {name: body[name] for name in body if name not in ("model", "messages", "stream", "stream_options")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_tokens": 99,
        "seed": 7,
        "stop": ["END", "\n\n"],
        "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
    }


async def test_a_conversation_can_go_on_from_another_place(engine: FakeEngine) -> None:
    async with ChatSession(engine.connection()) as session:
        for prompt in ("one", "two", "three"):
            await ask(session, prompt)
        session.go_on_from(session.turns[:1])
        await ask(session, "other")
        assert [turn.prompt for turn in session.turns] == ["one", "other"]
    assert [message["content"] for message in engine.requests[-1].body["messages"]] == ["one", "hello", "other"]
