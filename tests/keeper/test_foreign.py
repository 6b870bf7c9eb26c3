"""vLLM servers that were started by hand: found, shown with their figures, talked to, never touched."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import httpx
import pytest

from backends.client import ensure_keeper
from backends.errors import ConflictError, NoSuchServerError
from backends.keeper.foreign import Watched
from backends.keeper.foreign_scan import Found, find_servers, option, serves_vllm
from backends.processes.facts import identity_of, is_alive
from backends.snapshots import Box as BoxReading
from backends.snapshots import Connection, Gpu, GpuProcess, Host, Metrics, Missing, ModelKind, ServerState
from tests.keeper.conftest import FAKE_VLLM, Box, box_in, fake_profile, free_port

SERVE = ["vllm.entrypoints.openai.api_server"]


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with box_in(tmp_path_factory.mktemp("home")) as box:
        yield box


@pytest.fixture
def box(lasting: Box) -> Iterator[Box]:
    yield lasting
    lasting.sweep()


def by_hand(box: Box, port: int, *more: str) -> subprocess.Popen[str]:
    serve = ("-m", "vllm.entrypoints.openai.api_server", "--model", "/models/theirs", "--served-model-name", "theirs")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return box.spawn_other(sys.executable, str(FAKE_VLLM), *serve, "--port", str(port), *more, **quiet)


def names(box: Box) -> list[str]:
    return [server.name for server in box.client.snapshot().servers]


def test_a_server_started_by_hand_is_shown_like_our_own(box: Box) -> None:
    box.start(fake_profile())
    port = free_port()
    child = by_hand(box, port)
    name = f"vllm-{port}"
    box.until(lambda _: name in names(box))
    server = box.until(lambda s: isinstance(s.metrics, Metrics) or s.state is ServerState.READY, name)
    assert (server.state, server.kind, server.model, server.served_name) == (
        ServerState.READY,
        ModelKind.CHAT,
        "/models/theirs",
        "theirs",
    )
    assert server.foreign is not None
    identity = identity_of(child.pid)
    assert identity is not None
    assert (server.foreign.pid, server.foreign.start_ticks) == (identity.pid, identity.start_ticks)
    assert (server.port, server.pid, server.log_path, server.engine_version) == (port, child.pid, None, "0.0.fake")
    assert server.foreign.command.startswith(sys.executable)
    told = {one["name"]: one for one in json.loads(box.gpubox("status", "--json").stdout)["servers"]}
    assert told[name]["foreign"]["pid"] == child.pid
    assert told["fake"]["foreign"] is None
    connection = box.client.connection(name)
    assert connection == Connection(f"http://127.0.0.1:{port}/v1", "theirs", ModelKind.CHAT)
    asked = {"messages": [{"role": "user", "content": "hi"}]}
    answer = httpx.post(f"{connection.base_url}/chat/completions", json=asked, trust_env=False).json()
    assert answer["choices"][0]["message"]["content"] == "You asked: hi"

    watching = box.spawn("status", "--watch")
    try:
        box.until(lambda s: isinstance(s.metrics, Metrics) and s.metrics.kv_cache_usage == 0.25, name)
        assert box.client.series(f"/v1/servers/{name}").at
    finally:
        watching.kill()

    for request in (box.client.stop, box.client.restart, box.client.forget):
        with pytest.raises(ConflictError, match=rf"{name} was started by hand \(pid {child.pid}, .*does not touch it"):
            request(name)
    assert box.gpubox("stop", name, code=10).stderr.startswith(f"gpubox: {name} was started by hand (pid {child.pid}, ")
    box.gpubox("stop", "--all")
    assert is_alive(identity)

    child.kill()
    child.wait()
    box.until(lambda _: name not in names(box))
    with pytest.raises(NoSuchServerError):
        box.client.connection(name)


def test_what_does_not_answer_yet_is_starting_and_says_why(box: Box) -> None:
    box.start(fake_profile())
    port = free_port()
    by_hand(box, port, "--fake-start", "600")
    box.until(lambda _: f"vllm-{port}" in names(box))
    server = box.server(f"vllm-{port}")
    assert server.state is ServerState.STARTING
    assert server.stage is not None
    assert (server.stage.name, server.stage.detail) == ("waits for an answer", "its port is not open yet")


def test_a_keeper_that_has_just_begun_knows_it_at_once(box: Box) -> None:
    box.start(fake_profile())
    port = free_port()
    child = by_hand(box, port)
    box.until(lambda _: f"vllm-{port}" in names(box))
    box.until(ServerState.READY, f"vllm-{port}")
    box.client.shutdown()
    while box.client.is_up():
        time.sleep(0.02)
    ensure_keeper(box.client)
    with pytest.raises(ConflictError, match=rf"pid {child.pid}, "):
        box.client.stop(f"vllm-{port}")
    assert box.client.connection(f"vllm-{port}").served_name == "theirs"


def test_a_server_of_ours_that_has_the_name_keeps_it(box: Box) -> None:
    port = free_port()
    box.start(fake_profile(f"vllm-{port}"))
    by_hand(box, port)
    box.until(lambda _: f"vllm-{port}-2" in names(box), f"vllm-{port}")
    assert box.server(f"vllm-{port}").foreign is None
    assert box.server(f"vllm-{port}-2").foreign is not None


def test_servers_of_a_shim_and_of_another_home_are_not_foreign(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.start(fake_profile(child=True))
    server = box.until(ServerState.READY)
    other = by_hand(box, free_port())
    servers = box.home / "nothing"

    def found() -> set[int]:
        return {one.pid for one in find_servers(servers, {})}

    box.until(lambda _: other.pid in found())
    assert server.pid not in found()
    monkeypatch.setenv("GPUBOX_HOME", "/another")
    assert other.pid not in found()


@pytest.mark.parametrize(
    ("argv", "is_one"),
    [
        (["vllm", "serve", "m"], True),
        (["/usr/bin/python3.12", "/usr/bin/vllm", "serve", "m"], True),
        (["/opt/python3", "-m", *SERVE, "--model", "m"], True),
        (["/opt/python3", "-u", "-m", *SERVE], True),
        (["VLLM::APIServer_0"], True),
        (["VLLM::EngineCore"], False),
        (["bash", "-c", "vllm serve m"], False),
        (["timeout", "60", "python", "-m", *SERVE], False),
        (["uv", "run", "vllm", "serve", "m"], False),
        (["vim", "vllm", "serve"], False),
        (["vllm", "bench", "serve"], False),
        (["python", "train.py", "--out", "vllm", "serve"], False),
        ([], False),
    ],
)
def test_only_a_servers_own_process_is_taken_for_one(argv: Sequence[str], is_one: bool) -> None:
    assert serves_vllm(argv) is is_one


def test_options_are_read_in_every_form() -> None:
    argv = ["vllm", "serve", "m", "--port", "1", "--served_model_name=x", "--api-key"]
    assert (option(argv, "--port"), option(argv, "--served-model-name"), option(argv, "--api-key")) == ("1", "x", None)
    assert option(argv, "--host") is None


class Played:
    """An engine's answers by path, as a test sets them; what is not set does not answer."""

    def __init__(self, **answers: tuple[int, object]) -> None:
        self.answers = answers

    async def get(self, path: str) -> tuple[int, bytes]:
        name = path.rpartition("/")[2]
        if name not in self.answers:
            raise ConnectionError("nothing answers")
        status, body = self.answers[name]
        return status, body.encode() if isinstance(body, str) else json.dumps(body).encode()

    async def post(self, path: str, body: object, *, timeout_s: float | None = None) -> tuple[int, bytes]:
        return 404, b""


def watched(**changes: object) -> Watched:
    found = Found(4711, 1, "alice", "vllm serve m", "127.0.0.1", 8000, "m", "m", False, True, frozenset({4711, 4712}))
    return Watched(replace(found, **changes), "vllm-8000")  # type: ignore[arg-type]


def state_of(one: Watched) -> ServerState:
    return one.server.state


async def test_a_server_that_wants_a_key_tells_its_health_and_figures() -> None:
    one = watched()
    await one.ask(Played(models=(401, {}), health=(200, ""), metrics=(200, "vllm:num_requests_running 2\n")))
    assert (one.server.state, one.server.has_api_key, one.server.kind) == (ServerState.READY, True, ModelKind.UNKNOWN)
    assert isinstance(one.server.metrics, Metrics)
    assert one.server.metrics.running == 2


async def test_sleep_silence_and_return_are_told() -> None:
    one, asleep = watched(), 'vllm:engine_sleep_state{sleep_state="weights_offloaded"} 1\n'
    card = {"data": [{"id": "name", "root": "org/model", "max_model_len": 64}]}
    engine = Played(models=(200, card), health=(200, ""), is_sleeping=(404, {}), version=(200, {}), metrics=(200, ""))
    await one.ask(Played())
    assert state_of(one) is ServerState.STARTING
    await one.ask(engine)
    assert (one.server.state, one.server.served_name, one.server.model) == (ServerState.READY, "name", "org/model")
    assert one.server.ready_at is not None
    engine.answers["metrics"] = (200, asleep)
    await one.ask(engine)
    assert state_of(one) is ServerState.SLEEPING
    for _ in range(5):
        await one.ask(Played())
    assert state_of(one) is ServerState.UNRESPONSIVE
    engine.answers["metrics"] = (200, "")
    await one.ask(engine)
    assert state_of(one) is ServerState.READY


def test_its_gpus_are_those_on_which_its_processes_hold_memory() -> None:
    one, none = watched(), Missing("not read")
    gpus = tuple(
        Gpu(
            index, f"GPU-{index}", "H200", none, none, none, none, none, none, none, (GpuProcess(pid, "x", "alice", 1),)
        )
        for index, pid in ((0, 1), (1, 4712), (2, 4711))
    )
    one.place(one.found, BoxReading(0.0, Host("h", 1, none, none, 1, 1), gpus))
    assert (one.server.gpus, one.server.gpu_indices) == (("GPU-1", "GPU-2"), (1, 2))
