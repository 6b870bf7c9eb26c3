"""One server that sleeps and wakes, with a real keeper, a real front, and a stand-in for vLLM on stand-ins for GPUs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from backends import paths
from backends.client import ensure_keeper
from backends.errors import ConflictError, GpuboxError, UsageError
from backends.processes.facts import ProcessFacts, is_alive, read_facts
from backends.snapshots import Missing, Server, ServerState, SwitchRequest
from tests.gpu.conftest import NvmlStub, StubGpu, nvml_library, uuid_of  # noqa: F401
from tests.keeper.conftest import PATIENCE_S, Box, box_in, fake_profile, kill_and_wait

GIB = 2**30
NEEDS = 100 * GIB
LEFT = 1_800_000_000


@pytest.fixture(scope="module")
def stub(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> NvmlStub:  # noqa: F811
    return NvmlStub(nvml_library, tmp_path_factory.mktemp("stub") / "nvml.ini")


@pytest.fixture(scope="module")
def lasting(stub: NvmlStub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    stub.show([StubGpu()])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LD_LIBRARY_PATH", "GPUBOX_NVML_STUB"):
            patch.setenv(name, stub.environ()[name])
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with box_in(tmp_path_factory.mktemp("home")) as box:
            yield box


@pytest.fixture
def box(lasting: Box, stub: NvmlStub) -> Box:
    lasting.sweep()
    stub.show([StubGpu()])
    return lasting


def sleeper(name: str = "fake", **args: object) -> dict[str, Any]:
    """A profile whose server sleeps; what of `args` is a key of profiles goes there."""
    profile = fake_profile(name, **({"gpu_bytes": NEEDS} | {key: args[key] for key in args if key not in KEYS}))
    profile |= {"gpus": 1, "sleep": True, "model": model()} | {key: args[key] for key in args if key in KEYS}
    profile["args"]["gpu_memory_utilization"] = 0.75
    return profile


def model() -> str:
    """A folder with weights, so that how much host memory they take is known."""
    folder = paths.private(paths.cache_dir() / "model")
    (folder / "model.safetensors").write_bytes(b"\0" * 4096)
    return str(folder)


KEYS = ("ttl", "wake_on_request", "prime", "drain_s", "port", "restart")


def begin(box: Box, profile: dict[str, Any], environ: dict[str, str] | None = None) -> Server:
    stub = os.environ["GPUBOX_NVML_STUB"]
    return box.start(profile, {"GPUBOX_NVML_STUB": stub} | (environ or {}), gpus=("0",))


def ready(box: Box, profile: dict[str, Any]) -> Server:
    begin(box, profile)
    return box.until(lambda server: server.state is ServerState.READY or not server.is_live, profile["name"])


def asleep(box: Box, name: str = "fake", level: int = 1) -> Server:
    box.client.sleep(name, level)  # type: ignore[arg-type]
    return box.until(ServerState.SLEEPING, name)


def wake(box: Box, name: str = "fake") -> Server:
    box.client.switch(SwitchRequest(name))
    return box.until(ServerState.READY, name)


def ask(server: Server, path: str = "/v1/chat/completions", timeout_s: float = PATIENCE_S) -> tuple[int, Any]:
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def granted(box: Box) -> dict[str, int | None]:
    return {grant.server: grant.memory_bytes for grant in box.client.snapshot().box.gpus[0].grants}


def kept(box: Box) -> bool:
    """Whether it is granted no more than it keeps asleep; how much that is shows a reading of the second before."""
    memory = granted(box)["fake"]
    return memory is not None and LEFT <= memory <= 2 * GIB


def told(box: Box, kind: str, name: str = "fake") -> list[str]:
    history = json.loads(box.client.request("GET", "/v1/history"))
    return [event["text"] for event in history if (event["server"], event["kind"]) == (name, kind)]


def front(box: Box, name: str = "fake") -> ProcessFacts:
    """What the shim of the newest front says."""
    assert sees(lambda: list(paths.server_dir(name).glob("*/front/process.json")))
    facts = read_facts(max(paths.server_dir(name).glob("*/front/process.json")))
    assert not isinstance(facts, Missing)
    return facts


def engine_socket() -> str:
    uds: str = json.loads((paths.server_dir("fake") / "server.json").read_text())["uds"]
    return uds


def sees(probe: Callable[[], object]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if probe():
            return True
        time.sleep(0.02)
    return False


def test_it_sleeps_and_wakes_and_its_memory_with_it(box: Box) -> None:
    server = ready(box, sleeper(pin_bytes=64 << 20))
    assert (server.can_sleep, server.sleep, server.idle) == (True, None, None)
    assert ask(server)[1]["choices"][0]["message"]["content"] == "You asked: hi"
    whole = granted(box)["fake"]
    assert whole is not None
    assert whole > NEEDS
    sleeping = asleep(box)
    assert sleeping.sleep is not None
    assert (sleeping.sleep.level, sleeping.stage) == (1, None)
    assert 64 << 20 <= sleeping.host_bytes < 96 << 20
    assert sees(lambda: kept(box))
    assert sees(lambda: box.client.snapshot().box.gpus[0].memory_used_bytes < 3 * GIB)  # type: ignore[operator]
    status, said = ask(server)
    assert status == 503
    assert said["error"]["type"] == "server_asleep"
    awake = wake(box)
    assert (awake.sleep, awake.stage, awake.pid, awake.host_bytes) == (None, None, server.pid, sleeping.host_bytes)
    assert sees(lambda: granted(box)["fake"] == whole)
    assert ask(server)[0] == 200
    asleep(box, level=2)
    wake(box)
    assert ask(server)[1]["choices"][0]["message"]["content"] == "You asked: hi"
    assert sees(lambda: len(told(box, "asleep")) == 2)


def test_what_gives_nothing_to_whoever_is_outside(box: Box) -> None:
    server = ready(box, sleeper())
    for path in ("/sleep?level=1", "/wake_up", "/collective_rpc"):
        assert ask(server, path)[0] == 404
    assert Path(engine_socket()).parent.stat().st_mode & 0o077 == 0
    assert box.server().state is ServerState.READY


def test_no_sleep_where_there_is_none(box: Box) -> None:
    box.start(fake_profile("plain"))
    box.until(ServerState.READY, "plain")
    with pytest.raises(ConflictError, match="cannot sleep"):
        box.client.sleep("plain", 1)
    begin(box, sleeper(hold=str(box.home / "never")))
    with pytest.raises(ConflictError, match=r"fake is (queued|starting)"):
        box.client.sleep("fake", 1)


def test_nobody_wakes_without_room(box: Box, stub: NvmlStub) -> None:
    server = ready(box, sleeper())
    asleep(box)
    other = box.spawn_other("sleep", "600")
    held = StubGpu(processes=((other.pid, 80 * GIB, "compute"),), readings={"memory_used": 80 * GIB})
    stub.show([held])
    with contextlib.suppress(GpuboxError):
        box.client.switch(SwitchRequest("fake"))
    assert sees(lambda: not box.client.snapshot().switches)
    assert box.server().state is ServerState.SLEEPING
    assert sees(lambda: kept(box))
    assert ask(server)[0] == 503
    stub.show([StubGpu()])
    wake(box)


def test_one_that_fails_to_wake_is_ended_and_tells_why(box: Box) -> None:
    profile = sleeper(wake_fails=True) | {"restart": {"policy": "on-failure", "max_attempts": 3, "backoff_s": 1.0}}
    server = ready(box, profile)
    asleep(box)
    box.client.switch(SwitchRequest("fake"))
    failed = box.until(lambda one: not one.is_live)
    assert failed.state is ServerState.FAILED
    assert "out of memory" in (failed.cause or "")
    assert failed.card is not None
    assert failed.sleep is None
    assert sees(lambda: granted(box) == {})
    assert sees(lambda: not psutil.pid_exists(server.pid or 0))
    assert sees(lambda: box.client.snapshot().box.gpus[0].memory_used_bytes < GIB)  # type: ignore[operator]


def test_a_crash_asleep_is_seen_at_once(box: Box) -> None:
    server = ready(box, sleeper(core=True))
    asleep(box)
    (core,) = psutil.Process(server.pid).children()
    kill_and_wait(core.pid)
    box.until(ServerState.UNRESPONSIVE)
    failed = box.until(lambda one: not one.is_live)
    assert failed.state is ServerState.FAILED
    assert sees(lambda: granted(box) == {})
    assert sees(lambda: not is_alive(front(box).shim))


def test_it_is_stopped_asleep_and_while_it_falls_asleep_or_wakes(box: Box) -> None:
    ready(box, sleeper())
    asleep(box)
    box.client.stop("fake")
    assert box.until(lambda one: not one.is_live).state is ServerState.STOPPED
    ready(box, sleeper(first_sleep=60.0))
    box.client.sleep("fake", 1)
    box.until(lambda one: one.stage is not None and one.stage.name == "sleep")
    box.client.stop("fake", force=True)
    assert box.until(lambda one: not one.is_live).state is ServerState.STOPPED
    ready(box, sleeper(wake=60.0))
    asleep(box)
    box.client.switch(SwitchRequest("fake"))
    box.until(ServerState.WAKING)
    box.client.stop("fake", force=True)
    stopped = box.until(lambda one: not one.is_live)
    assert stopped.state is ServerState.STOPPED
    assert stopped.cause is None
    assert sees(lambda: not is_alive(front(box).shim))


def test_another_keeper_goes_by_what_the_engine_says(box: Box) -> None:
    server = ready(box, sleeper(first_sleep=1.5, wake=1.5))
    box.client.sleep("fake", 1)
    box.until(lambda one: one.stage is not None and one.stage.name == "sleep")
    assert next_keeper(box).state in (ServerState.FALLING_ASLEEP, ServerState.SLEEPING)
    sleeping = box.until(ServerState.SLEEPING)
    assert sees(lambda: kept(box))
    assert sleeping.sleep is not None
    assert ask(server)[0] == 503
    assert next_keeper(box).state is ServerState.SLEEPING
    assert box.until(ServerState.SLEEPING).pid == server.pid
    assert ask(server)[0] == 503
    box.client.switch(SwitchRequest("fake"))
    box.until(lambda one: one.stage is not None and one.stage.name == "wake")
    assert next_keeper(box).state in (ServerState.WAKING, ServerState.READY)
    box.until(ServerState.READY)
    assert ask(server)[0] == 200
    assert sees(lambda: not kept(box))


def test_a_wake_that_a_keeper_has_left_half_done_is_carried_on(box: Box) -> None:
    server = ready(box, sleeper(reload=1.0))
    asleep(box, level=2)
    box.client.switch(SwitchRequest("fake"))
    box.until(lambda one: one.stage is not None and one.stage.name == "weights")
    assert next_keeper(box).state in (ServerState.WAKING, ServerState.READY)
    box.until(ServerState.READY)
    assert ask(server)[1]["choices"][0]["message"]["content"] == "You asked: hi"


def next_keeper(box: Box) -> Server:
    keeper = box.client.snapshot().keeper
    assert keeper is not None
    kill_and_wait(keeper.pid)
    ensure_keeper(box.client)
    return box.server()


def test_a_front_that_is_killed_comes_back_and_the_engine_goes_on(box: Box) -> None:
    server = ready(box, sleeper())
    first = front(box)
    os.kill(first.shim.pid, signal.SIGKILL)
    assert sees(lambda: is_alive(front(box).shim) and front(box).shim != first.shim)
    assert sees(lambda: answers(server) == 200)
    asleep(box)
    second = front(box)
    assert second.engine is not None
    os.kill(second.engine.pid, signal.SIGKILL)
    assert sees(lambda: is_alive(front(box).shim) and front(box).shim != second.shim)
    assert sees(lambda: answers(server) == 503)
    assert box.server().state is ServerState.SLEEPING
    assert box.server().pid == server.pid
    wake(box)
    assert answers(server) == 200


def answers(server: Server) -> int:
    try:
        return ask(server)[0]
    except (OSError, http.client.HTTPException):
        return 0


@pytest.mark.parametrize("any_port", [False, True])
def test_a_port_that_somebody_else_has_is_found_out(box: Box, any_port: bool) -> None:
    hold = box.home / "port.go"
    hold.unlink(missing_ok=True)
    stub = os.environ["GPUBOX_NVML_STUB"]
    wishes = {"port": 0} if any_port else {}
    port = box.start(sleeper(hold=str(hold)), {"GPUBOX_NVML_STUB": stub}, gpus=("0",), **wishes).port
    box.until(lambda one: one.state is ServerState.STARTING)
    assert sees(lambda: front(box).engine is not None)
    os.kill(front(box).shim.pid, signal.SIGKILL)
    taker = None
    deadline = time.monotonic() + PATIENCE_S
    while taker is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            taker = socket.create_server(("127.0.0.1", port))
    assert taker is not None
    with taker:
        if any_port:
            hold.touch()
            server = box.until(lambda one: one.state is ServerState.READY and one.port != port)
            assert ask(server)[0] == 200
        else:
            failed = box.until(lambda one: not one.is_live)
            assert failed.state is ServerState.FAILED
            assert "in use" in (failed.cause or "")


def test_idle_for_its_ttl_it_sleeps_with_nobody_looking_and_a_request_wakes_it(box: Box) -> None:
    server = ready(box, sleeper(ttl=0.05, wake_on_request=True))
    idle = box.until(lambda one: one.idle is not None).idle
    assert idle is not None
    assert idle.ttl_s == 3.0
    sleeping = box.until(ServerState.SLEEPING)
    assert sleeping.idle is None
    assert ask(server)[1]["choices"][0]["message"]["content"] == "You asked: hi"


def test_work_keeps_it_awake(box: Box) -> None:
    server = ready(box, sleeper(ttl=0.05, running=1))
    time.sleep(4)
    shown = box.server()
    assert shown.state is ServerState.READY
    assert shown.idle is not None
    assert (shown.idle.ttl_s, shown.idle.since) == (3.0, None)
    assert server.pid == shown.pid


def test_requests_that_run_end_before_it_sleeps_or_are_cut_off_with_an_error(box: Box) -> None:
    server = ready(box, sleeper(token_s=0.8, drain_s=30.0))
    done: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: done.append(ask(server)))
    asking.start()
    assert sees(lambda: works(box))
    asleep(box)
    asking.join()
    assert done[0][0] == 200
    wake(box)
    box.client.stop("fake", force=True)
    box.until(lambda one: not one.is_live)
    server = ready(box, sleeper(token_s=60.0, drain_s=0.2))
    done.clear()
    asking = threading.Thread(target=lambda: done.append(ask(server)))
    asking.start()
    assert sees(lambda: works(box))
    asleep(box)
    asking.join()
    assert done[0][0] == 503
    assert sees(lambda: told(box, "aborted"))


def works(box: Box) -> bool:
    metrics = box.server().metrics
    return not isinstance(metrics, Missing) and metrics.running == 1


def test_primed_it_has_slept_once(box: Box) -> None:
    begin(box, sleeper(prime=True, pin_bytes=64 << 20))
    assert sees(lambda: told(box, "primed"))
    server = box.until(ServerState.READY)
    assert "primed in" in told(box, "primed")[-1]
    assert ask(server)[0] == 200


def test_a_warm_spare_starts_once_there_is_room_and_sleeps_at_once(box: Box) -> None:
    ready(box, sleeper())
    stub = os.environ["GPUBOX_NVML_STUB"]
    box.start(sleeper("spare"), {"GPUBOX_NVML_STUB": stub}, gpus=("0",), asleep=True)
    waiting = box.until(lambda one: one.stage is not None and bool(one.stage.detail), "spare")
    assert (waiting.state, "GiB" in (waiting.stage.detail if waiting.stage else "")) == (ServerState.QUEUED, True)
    assert sees(lambda: granted(box).get("spare") == 2 * GIB)
    asleep(box)
    box.until(ServerState.SLEEPING, "spare")
    assert sees(lambda: set(granted(box).values()) <= {LEFT, 2 * GIB})
    wake(box)
    assert box.server("spare").state is ServerState.SLEEPING
    with pytest.raises(UsageError, match="cannot be started asleep"):
        box.start(fake_profile("never") | {"gpus": 1}, gpus=("0",), asleep=True)


def test_restarted_asleep_it_has_its_whole_room_again(box: Box) -> None:
    server = ready(box, sleeper())
    whole = granted(box)["fake"]
    asleep(box)
    box.client.restart("fake")
    again = box.until(lambda one: one.state is ServerState.READY and one.pid != server.pid)
    assert sees(lambda: granted(box)["fake"] == whole)
    assert ask(again)[0] == 200


def test_an_engine_that_somebody_else_put_to_sleep_is_shown_so(box: Box) -> None:
    ready(box, sleeper())
    by_hand(engine_socket(), "/sleep?level=2")
    sleeping = box.until(ServerState.SLEEPING)
    assert sleeping.sleep is not None
    assert sleeping.sleep.level == 2
    assert sees(lambda: (granted(box)["fake"] or NEEDS) < 3 * GIB)
    by_hand(engine_socket(), "/wake_up")
    box.until(ServerState.READY)
    assert sees(lambda: (granted(box)["fake"] or 0) > NEEDS)


def by_hand(path: str, target: str) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(PATIENCE_S)
        door.connect(path)
        door.sendall(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        assert b" 200 " in door.recv(4096)
