"""How a front begins, what it keeps to itself, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from backends.errors import GpuboxError
from backends.front.config import PORT_IN_USE, FrontConfig, read_config
from backends.front.link import FrontMode
from backends.processes.facts import Identity
from tests.front.conftest import KEY, LONG_S, ROOT, Front, Stage, StandIn, until
from tests.keeper.conftest import free_port

CHAT = "/v1/chat/completions"


def test_a_configuration_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config = FrontConfig(
        "bob", "::1", 8000, Path("/e.sock"), Path("/c.sock"), Identity("boot", 3, 4), 7.5, True, "VLLM_API_KEY"
    )
    config.write(path)
    assert read_config(path) == config
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"host": ""}, {"port": "x"}, {"engine_shim": None}, {"engine_socket": None}]
)
def test_a_configuration_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "config.json"
    FrontConfig("bob", "::1", 8000, Path("/e"), Path("/c"), Identity("boot", 3, 4)).write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(GpuboxError, match=str(path)):
        read_config(path)


async def test_a_port_that_somebody_else_has_is_told(stage: Stage) -> None:
    engine = stage.engine()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        front = stage.front(engine, port=port)
        assert await front.ended() == PORT_IN_USE
    assert front.said == f"[Errno 98] Address already in use: 127.0.0.1:{port}\n"


async def test_a_front_listens_where_it_was_told_alone_and_for_its_user_alone(stage: Stage) -> None:
    _, front = await stage.pair()
    control = front.config.control_socket
    assert control.stat().st_mode & 0o777 == 0o600
    assert control.parent.stat().st_mode & 0o777 == 0o700
    listening = [line.split() for line in Path(f"/proc/{front.process.pid}/net/tcp").read_text().splitlines()[1:]]
    mine = [row[1] for row in listening if row[1].endswith(f":{front.config.port:04X}") and row[3] == "0A"]
    assert mine == [f"0100007F:{front.config.port:04X}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_front_that_is_stopped_answers_everybody_and_ends(
    stage: Stage, client: aiohttp.ClientSession, number: int
) -> None:
    _, front = await stage.pair()
    stream = await client.post(front.url + CHAT, json={"events": 9, "wait": True})
    silent = asyncio.create_task(client.post(front.url + CHAT, json={"hang": True}).__aenter__())
    await front.has(in_flight=2)
    await front.link.set_mode(FrontMode.HOLD)
    held = asyncio.create_task(client.post(front.url + CHAT, json={}).__aenter__())
    await front.has(held=1)
    front.process.send_signal(number)
    assert await front.ended() == 0
    assert b"bob is gone (it is stopped)" in await stream.read()
    for asking in (silent, held):
        answer = await asking
        assert answer.status == 503
        assert (await answer.json())["error"]["type"] == "server_ended"
    assert not front.config.control_socket.exists()


async def test_a_front_ends_with_its_engine(stage: Stage, client: aiohttp.ClientSession) -> None:
    _, front = await stage.pair()
    stream = await client.post(front.url + CHAT, json={"events": 9, "wait": True})
    stage.shim.kill()
    stage.shim.wait()
    assert await front.ended() == 0
    assert b"bob is gone (its engine has ended)" in await stream.read()
    late = Front(stage.folder, replace(front.config, port=free_port()), {})
    assert await late.ended() == 0
    assert late.said == "the front of bob ends: its engine has ended\n"


async def test_a_front_that_was_replaced_leaves_the_other_its_socket(stage: Stage) -> None:
    engine, front = await stage.pair()
    other = stage.front(engine, control_socket=front.config.control_socket)
    async with asyncio.timeout(LONG_S):
        while True:
            with suppress(OSError):  # while the socket changes hands
                if (await front.link.state()).pid == other.process.pid:
                    break
            await asyncio.sleep(0.01)
    front.process.terminate()
    assert await front.ended() == 0
    assert (await other.link.state()).pid == other.process.pid


async def test_a_front_whose_keeper_is_silent_begins_with_the_engines_own_word(stage: Stage) -> None:
    folder = stage.folder / "other"
    folder.mkdir()
    awake, asleep = stage.engine(), stage.adopt(StandIn(folder, "--asleep").start())
    passing, waiting = stage.front(awake), stage.front(asleep, wakes=True)
    await until(lambda: "bob: pass\n" in passing.said, "the front lets requests through")
    await until(lambda: "bob: asleep\n" in waiting.said, "the front knows that the engine sleeps")
    state = await waiting.link.state()
    assert (state.mode, state.wakes, state.requests_total, state.last_request_at) == (FrontMode.ASLEEP, True, 0, None)


async def test_no_key_is_ever_written_down(stage: Stage, client: aiohttp.ClientSession) -> None:
    engine, front = await stage.pair(api_key_env="FRONT_KEY", environ={"FRONT_KEY": KEY})
    bearer = f"Bearer {KEY}"
    for mode in (FrontMode.PASS, FrontMode.ASLEEP):
        await front.link.set_mode(mode, wakes=False)
        async with client.post(front.url + CHAT, json={}, headers={"Authorization": bearer}):
            pass
    await front.exchange(f"GET /v1/x HTTP/1.1\r\nAuthorization: {bearer}\0\r\n\r\n".encode())
    await front.exchange(f"GET /{KEY} HTTP/1.1\r\n{KEY}\r\n\r\n".encode())
    await front.link.set_mode(FrontMode.PASS)
    engine.kill()
    async with client.post(front.url + CHAT, json={}, headers={"Authorization": bearer}) as answer:
        assert answer.status == 503
        assert (await answer.json())["error"]["type"] == "engine_unreachable"
    front.process.terminate()
    assert await front.ended() == 0
    assert KEY not in front.said
    assert KEY not in (stage.folder / "front0" / "config.json").read_text()


def test_the_keepers_side_of_a_front_needs_no_web_server() -> None:
    code = "import sys, backends.front.link, backends.front.config; print([m for m in sys.modules if 'aiohttp' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr
