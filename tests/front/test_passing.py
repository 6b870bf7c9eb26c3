"""What goes through a front: both ways as it comes, whole or visibly broken, and given up at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from backends.front.link import FrontMode
from tests.front.conftest import LONG_S, Front, Shared, Stage, until

CHAT = "/v1/chat/completions"


def post(client: aiohttp.ClientSession, front: Front, **wish: Any) -> Any:
    return client.post(front.url + CHAT, json=wish)


async def test_an_event_arrives_before_the_next_one_is_made(shared: Shared, client: aiohttp.ClientSession) -> None:
    engine, front = await shared.pair()
    async with post(client, front, events=3, wait=True) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        for number in range(3):
            await engine.tell("POST", "/go")
            line = await answer.content.readuntil(b"\n\n")
            assert json.loads(line.removeprefix(b"data: "))["n"] == number
        assert await answer.content.read() == b"data: [DONE]\n\n"


async def test_a_request_arrives_before_its_body_is_whole(shared: Shared, client: aiohttp.ClientSession) -> None:
    engine, front = await shared.pair()
    may_go_on = asyncio.Event()

    async def parts() -> Any:
        yield b"a" * 1000
        await may_go_on.wait()
        yield b"b" * 1000

    asking = asyncio.create_task(client.post(front.url + CHAT, data=parts()).__aenter__())
    await until(lambda: engine.seen("body"), "the first part reached the engine")
    may_go_on.set()
    told = await (await asking).json()
    assert told["size"] == 2000
    assert told["sha256"] == hashlib.sha256(b"a" * 1000 + b"b" * 1000).hexdigest()


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_large_body_arrives_whole(shared: Shared, client: aiohttp.ClientSession, is_chunked: bool) -> None:
    _, front = await shared.pair()
    body = os.urandom(12 << 20)

    async def parts() -> Any:
        for at in range(0, len(body), 100_000):
            yield body[at : at + 100_000]

    async with client.post(front.url + "/v1/audio/transcriptions", data=parts() if is_chunked else body) as answer:
        assert (await answer.json())["sha256"] == hashlib.sha256(body).hexdigest()


async def test_a_large_answer_waits_for_its_client(stage: Stage) -> None:
    engine, front = await stage.pair()
    size = 200 << 20
    body = json.dumps({"bytes": size}).encode()
    reader, writer = await asyncio.open_connection(front.config.host, front.config.port, limit=1 << 16)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.5)  # in which an engine could send all of it
    assert not engine.seen("done")
    resident = int(Path(f"/proc/{front.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident < 150 << 20
    left = size
    while left:
        left -= len(await reader.read(1 << 20))
    writer.close()


async def test_an_answer_has_its_headers_and_a_request_those_that_are_the_engines(
    shared: Shared, client: aiohttp.ClientSession
) -> None:
    engine, front = await shared.pair()
    headers = {
        "Authorization": "Bearer k",
        "Connection": "keep-alive, X-Mine",
        "X-Mine": "this hop's",
        "TE": "trailers",
        "X-Request-Id": "7",
        "Upgrade": "h2c",
    }
    async with client.post(front.url + CHAT + "?a=1&b=%26", json={"model": "m"}, headers=headers) as answer:
        assert answer.status == 200
        assert (await answer.json())["model"] == "m"
        assert "aiohttp" in answer.headers["Server"]  # that of the program in the engine's place
    row = engine.seen("request")[0]
    seen = {name.lower(): value for name, value in row["headers"]}
    assert row["target"] == CHAT + "?a=1&b=%26"
    assert seen["host"] == f"127.0.0.1:{front.config.port}"
    assert (seen["authorization"], seen["x-request-id"]) == ("Bearer k", "7")
    assert not {"connection", "x-mine", "te", "upgrade", "keep-alive"} & set(seen)


async def test_answers_without_a_body_and_old_clients(shared: Shared, client: aiohttp.ClientSession) -> None:
    _, front = await shared.pair()
    async with post(client, front, none=True) as answer:
        assert (answer.status, await answer.read()) == (204, b"")
    async with client.head(front.url + "/v1/models") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 0
    body = json.dumps({"events": 2}).encode()
    raw = await front.exchange(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    head, _, content = raw.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert content.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_waits_for_leave_to_send_gets_it(shared: Shared) -> None:
    engine, front = await shared.pair()
    reader, writer = await asyncio.open_connection(front.config.host, front.config.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    async with asyncio.timeout(LONG_S):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert "expect" not in {name.lower() for name, _ in engine.seen("request")[0]["headers"]}
    writer.close()


async def test_an_engine_that_refuses_early_is_heard(shared: Shared, client: aiohttp.ClientSession) -> None:
    _, front = await shared.pair()
    reader, writer = await asyncio.open_connection(front.config.host, front.config.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Refuse: 413\r\nContent-Length: 9000000\r\n\r\nabc")
    async with asyncio.timeout(LONG_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()
    async with post(client, front) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("rest", [b"", b"no length\r\n"])
async def test_a_request_that_stops_in_its_middle_is_given_up(stage: Stage, rest: bytes) -> None:
    engine, front = await stage.pair(hold_s=0.5)
    reader, writer = await asyncio.open_connection(front.config.host, front.config.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await until(lambda: engine.seen("body"), "the engine reads it")
    writer.write(rest)
    async with asyncio.timeout(LONG_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    await until(lambda: engine.seen("aborted"), "the engine has given it up")
    await front.has(in_flight=0)
    writer.close()


@pytest.mark.parametrize("wish", [{"hang": True}, {"events": 1000, "pause_s": 0.01}])
async def test_a_client_that_leaves_has_its_request_given_up(
    shared: Shared, client: aiohttp.ClientSession, wish: dict[str, Any]
) -> None:
    engine, front = await shared.pair()
    asking = asyncio.create_task(post(client, front, **wish).__aenter__())
    await front.has(in_flight=1)
    await until(lambda: engine.seen("body"), "the engine works on it")
    if "events" in wish:
        await (await asking).content.readany()
        asking.result().close()
    else:
        asking.cancel()
    await until(lambda: engine.seen("aborted"), "the engine has given it up")
    await front.has(in_flight=0)


async def test_a_stream_whose_engine_dies_ends_with_an_error(stage: Stage, client: aiohttp.ClientSession) -> None:
    _, front = await stage.pair()
    async with post(client, front, events=5, die_after=2) as answer:
        events = (await answer.read()).decode().split("\n\n")
    told = [json.loads(event.partition("data: ")[2]) for event in events if "data: " in event]
    assert [event["n"] for event in told[:-1]] == [0, 1]
    assert told[-1]["error"]["type"] == "engine_lost"
    assert "bob" in told[-1]["error"]["message"]
    assert "[DONE]" not in "".join(events)


async def test_openais_client_raises_for_a_stream_whose_engine_dies(stage: Stage) -> None:
    import openai

    _, front = await stage.pair()
    async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as asker:
        stream = await asker.chat.completions.create(
            model="m", messages=[], stream=True, extra_body={"events": 5, "die_after": 2}
        )
        with pytest.raises(openai.APIError, match="in the middle of its answer"):
            async for _ in stream:
                pass


async def test_an_engine_that_dies_before_it_answers_is_told(stage: Stage, client: aiohttp.ClientSession) -> None:
    engine, front = await stage.pair()
    asking = asyncio.create_task(post(client, front, hang=True).__aenter__())
    await until(lambda: engine.seen("body"), "the engine works on it")
    engine.kill()
    answer = await asking
    assert answer.status == 502
    assert (await answer.json())["error"]["code"] == 502


async def test_a_plain_answer_that_breaks_off_is_no_whole_answer(stage: Stage, client: aiohttp.ClientSession) -> None:
    _, front = await stage.pair()
    with pytest.raises(aiohttp.ClientError):
        async with post(client, front, bytes=100_000, break_at=5000) as answer:
            await answer.read()


async def test_connections_to_the_engine_are_used_again(stage: Stage, client: aiohttp.ClientSession) -> None:
    engine, front = await stage.pair()
    for number in range(20):
        wish: dict[str, Any] = {"events": 3} if number % 2 else {"model": "m"}
        async with post(client, front, **wish) as answer:
            await answer.read()
    assert engine.seen("request")[-1]["connections"] == 1


async def test_a_connection_that_the_engine_has_closed_is_not_used(stage: Stage, client: aiohttp.ClientSession) -> None:
    engine, front = await stage.pair("--keep-alive", "0.05")
    for number in range(4):
        async with post(client, front, model="m") as answer:
            assert answer.status == 200
        assert len(engine.seen("request")) == number + 1
        await asyncio.sleep(0.06 + 0.02 * number)


async def test_many_streams_at_once(stage: Stage, client: aiohttp.ClientSession) -> None:
    _, front = await stage.pair()

    async def one() -> int:
        async with post(client, front, events=10, pause_s=0.02) as answer:
            content: bytes = await answer.read()
            return content.count(b"data: ")

    assert set(await asyncio.gather(*(one() for _ in range(256)))) == {11}
    state = await front.link.state()
    assert (state.in_flight, state.held, state.requests_total) == (0, 0, 256)
    assert state.mode is FrontMode.PASS
    assert state.last_request_at is not None
