"""What a front does while its engine starts, sleeps or gives way, and how the keeper has its say."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from backends.front.link import Drained, FrontMode
from tests.front.conftest import KEY, Front, Shared, Stage, StandIn, until

CHAT = "/v1/chat/completions"


def post(client: aiohttp.ClientSession, front: Front, wish: Any = None, **headers: str) -> asyncio.Task[Any]:
    return asyncio.create_task(client.post(front.url + CHAT, json=wish or {"model": "m"}, headers=headers).__aenter__())


async def error_of(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    error: dict[str, Any] = (await answer.json())["error"]
    assert set(error) == {"message", "type", "code"}
    assert error["code"] == answer.status
    return error


async def test_a_front_refuses_until_its_engine_listens(stage: Stage, client: aiohttp.ClientSession) -> None:
    engine = StandIn(stage.folder)
    front = stage.front(engine)
    await front.comes_to(FrontMode.STARTING)
    for path in ("/health", "/metrics", "/v1/models", CHAT):
        async with client.get(front.url + path) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "5"
            assert (await error_of(answer))["type"] == "server_starting"
    stage.adopt(engine.start())
    await front.begins(FrontMode.PASS)
    assert (await post(client, front)).status == 200
    await front.link.set_mode(FrontMode.STARTING)
    assert (await post(client, front)).status == 503


async def test_held_requests_go_through_once_they_may(shared: Shared, client: aiohttp.ClientSession) -> None:
    engine, front = await shared.pair()
    state = await front.link.set_mode(FrontMode.HOLD, reason="it wakes")
    assert (state.mode, state.reason) == (FrontMode.HOLD, "it wakes")
    asking = [post(client, front) for _ in range(3)]
    await front.has(held=3, in_flight=0)
    for path, status in (("/health", 200), ("/metrics", 200), ("/v1/models", 200)):
        async with client.get(front.url + path) as answer:
            assert answer.status == status
    assert not [row for row in engine.seen("request") if row["target"] == CHAT]
    await front.link.set_mode(FrontMode.PASS)
    assert [(await one).status for one in asking] == [200, 200, 200]
    await front.has(held=0, in_flight=0)


async def test_a_request_is_not_held_for_ever(stage: Stage, client: aiohttp.ClientSession) -> None:
    _, front = await stage.pair(hold_s=0.3)
    await front.link.set_mode(FrontMode.ASLEEP, wakes=True, reason="no room")
    answer = await post(client, front)
    assert answer.status == 503
    error = await error_of(answer)
    assert (error["type"], error["message"]) == ("server_not_ready", "bob did not come to serve within 0.3 s (no room)")
    await front.has(held=0)


async def test_a_sleeping_server_says_how_it_wakes(shared: Shared, client: aiohttp.ClientSession) -> None:
    _, front = await shared.pair()
    await front.link.set_mode(FrontMode.ASLEEP)
    answer = await post(client, front)
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    error = await error_of(answer)
    assert (error["type"], error["message"]) == ("server_asleep", "bob is asleep; `gpubox switch bob` wakes it")
    for path, status in (("/health", 503), ("/metrics", 200), ("/v1/models", 200)):
        async with client.get(front.url + path) as other:
            assert other.status == status


async def test_a_request_for_a_sleeping_server_has_it_woken(stage: Stage, client: aiohttp.ClientSession) -> None:
    _, front = await stage.pair("--asleep", wakes=True)
    hearing = asyncio.create_task(front.link.wanted())
    async with client.get(front.url + "/health") as answer:
        assert answer.status == 200
    assert not hearing.done()
    asking = [post(client, front)]
    assert await hearing == 1
    # It is told once, although the request still waits; then the next one is.
    hearing = asyncio.create_task(front.link.wanted())
    await front.has(held=1)
    await asyncio.sleep(0.1)
    assert not hearing.done()
    asking.append(post(client, front))
    assert await hearing == 2
    # Another keeper knows of none of it.
    assert await type(front.link)(front.config.control_socket).wanted() == 2
    await front.link.set_mode(FrontMode.HOLD)
    hearing = asyncio.create_task(front.link.wanted())
    asking.append(post(client, front))
    await front.has(held=3)
    assert not hearing.done()
    await front.link.set_mode(FrontMode.PASS)
    assert [(await one).status for one in asking] == [200] * 3
    hearing.cancel()


async def test_who_has_not_the_key_wakes_nobody(stage: Stage, client: aiohttp.ClientSession) -> None:
    _, front = await stage.pair("--asleep", wakes=True, api_key_env="FRONT_KEY", environ={"FRONT_KEY": KEY})
    hearing = asyncio.create_task(front.link.wanted())
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
        answer = await post(client, front, **headers)
        assert (answer.status, (await error_of(answer))["type"]) == (401, "unauthorized")
    assert not hearing.done()
    asking = post(client, front, Authorization=f"Bearer {KEY}")
    assert await hearing == 1
    await front.link.set_mode(FrontMode.PASS)
    assert (await asking).status == 200


async def test_a_drain_waits_for_what_is_in_flight(shared: Shared, client: aiohttp.ClientSession) -> None:
    engine, front = await shared.pair()
    answers = [await post(client, front, {"events": 2, "wait": True}) for _ in range(2)]
    await front.has(in_flight=2)
    draining = asyncio.create_task(front.link.drain(60, "hold"))
    await front.comes_to(FrontMode.HOLD)
    late = post(client, front)
    await front.has(in_flight=2, held=1)
    for _ in range(4):
        assert not draining.done()
        await engine.tell("POST", "/go")
    drained = await draining
    assert (drained.drained, drained.aborted) == (2, 0)
    assert drained.took_s > 0
    for answer in answers:
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")
    assert not late.done()
    await front.link.set_mode(FrontMode.PASS)
    assert (await late).status == 200


async def test_a_drain_cuts_off_what_does_not_end(shared: Shared, client: aiohttp.ClientSession) -> None:
    engine, front = await shared.pair()
    streams = [await post(client, front, {"events": 9, "wait": True}) for _ in range(2)]
    silent = post(client, front, {"hang": True})
    plain = await post(client, front, {"bytes": 100 << 20})
    ending = await post(client, front, {"events": 1, "wait": True})
    await front.has(in_flight=5)
    draining = asyncio.create_task(front.link.drain(3.0, "asleep", reason="for carol"))
    await front.comes_to(FrontMode.ASLEEP)
    for _ in range(3):  # whoever waited longest is served first
        await engine.tell("POST", "/go")
    drained = await draining
    assert drained == Drained(1, 4, drained.took_s)
    assert drained.took_s >= 3.0
    state = await front.link.state()
    assert (state.in_flight, state.mode) == (0, FrontMode.ASLEEP)
    for stream in streams:
        last = (await stream.read()).decode().strip().split("\n\n")[-1]
        assert json.loads(last.partition("data: ")[2])["error"] == {
            "message": "bob gives way (for carol): the request was cut off",
            "type": "request_aborted",
            "code": 503,
        }
    assert (await ending.read()).endswith(b"data: [DONE]\n\n")
    answer = await silent
    assert (answer.status, (await error_of(answer))["type"]) == (503, "request_aborted")
    with pytest.raises(aiohttp.ClientError):
        await plain.read()
    await until(lambda: len(engine.seen("aborted")) == 4, "the engine has given them up")


async def test_a_drain_whose_keeper_dies_cuts_off_nothing(shared: Shared, client: aiohttp.ClientSession) -> None:
    engine, front = await shared.pair()
    answer = await post(client, front, {"events": 1, "wait": True})
    draining = asyncio.create_task(front.link.drain(1.5, "hold"))
    await front.comes_to(FrontMode.HOLD)
    draining.cancel()
    await asyncio.sleep(1.7)
    await front.has(in_flight=1)
    await engine.tell("POST", "/go")
    assert (await answer.read()).endswith(b"data: [DONE]\n\n")


async def test_a_drain_that_is_called_off_cuts_off_nothing(shared: Shared, client: aiohttp.ClientSession) -> None:
    engine, front = await shared.pair()
    answer = await post(client, front, {"events": 1, "wait": True})
    draining = asyncio.create_task(front.link.drain(1.5, "hold"))
    await front.comes_to(FrontMode.HOLD)
    await front.link.set_mode(FrontMode.PASS)
    assert (await draining).aborted == 0
    await engine.tell("POST", "/go")
    assert (await answer.read()).endswith(b"data: [DONE]\n\n")


async def test_requests_that_were_held_are_in_flight_for_a_drain_that_follows(
    shared: Shared, client: aiohttp.ClientSession
) -> None:
    engine, front = await shared.pair()
    await front.link.set_mode(FrontMode.HOLD)
    asking = [post(client, front, {"events": 1, "wait": True}) for _ in range(20)]
    await front.has(held=20)
    state = await front.link.set_mode(FrontMode.PASS)
    assert (state.held, state.in_flight) == (0, 20)
    draining = asyncio.create_task(front.link.drain(60, "hold"))
    await front.comes_to(FrontMode.HOLD)
    for _ in range(20):
        await engine.tell("POST", "/go")
    drained = await draining
    assert (drained.drained, drained.aborted) == (20, 0)
    for one in asking:
        assert (await (await one).read()).endswith(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_while_held_is_forgotten(shared: Shared, client: aiohttp.ClientSession) -> None:
    engine, front = await shared.pair()
    await front.link.set_mode(FrontMode.HOLD)
    asking = post(client, front)
    await front.has(held=1)
    asking.cancel()
    await front.has(held=0)
    await front.link.set_mode(FrontMode.PASS)
    await front.has(in_flight=0)
    assert not engine.seen("request")


async def test_a_hold_that_its_keeper_has_left_is_ended_by_the_engines_own_word(
    stage: Stage, client: aiohttp.ClientSession
) -> None:
    engine, front = await stage.pair(hold_s=0.3)

    async def comes_to(status: int, kind: str = "") -> None:
        """Ask until the answer is this one, and say nothing to the front meanwhile."""
        while True:
            answer = await post(client, front)
            if answer.status == status and (status == 200 or (await error_of(answer))["type"] == kind):
                return

    await front.link.set_mode(FrontMode.HOLD)
    await comes_to(200)
    await engine.tell("POST", "/sleep")
    await front.link.set_mode(FrontMode.HOLD)
    await comes_to(503, "server_asleep")
    # The keeper died before it put the engine to sleep, or after it had woken it.
    await engine.tell("POST", "/wake_up")
    await comes_to(200)


async def test_the_control_socket_says_what_makes_no_sense(stage: Stage) -> None:
    _, front = await stage.pair()
    with pytest.raises(OSError, match=r"refused /mode: this makes no sense: .*snooze"):
        await front.link.set_mode("snooze")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="refused /drain"):
        await front.link.drain(1, "pass")  # type: ignore[arg-type]
    front.process.kill()
    front.process.wait()
    with pytest.raises(OSError, match="gave no answer"):
        await front.link.state()
