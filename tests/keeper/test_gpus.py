"""Who gets which GPU: the keeper and the command line on a box of four GPUs, which a stub of the driver shows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from backends.errors import KeeperError
from backends.processes.facts import identity_of, is_alive
from backends.snapshots import Server, ServerState
from tests.gpu.conftest import MIB, NvmlStub, StubGpu, nvml_library, uuid_of  # noqa: F401
from tests.keeper.conftest import PATIENCE_S, Box, box_in, fake_profile

GIB = 1024 * MIB
SHORT_OF_PATIENCE = """
from backends.keeper import __main__ as keeper, boxwatch
boxwatch.MEMORY_BACK_S = 1.0
keeper.main()
"""


@pytest.fixture(scope="module")
def gpu_box(
    nvml_library: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Box, NvmlStub]]:
    home = tmp_path_factory.mktemp("home")
    stub = NvmlStub(nvml_library, home / "nvml.ini")
    stub.show([StubGpu()] * 4)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LD_LIBRARY_PATH", "GPUBOX_NVML_STUB"):
            patch.setenv(name, stub.environ()[name])
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with box_in(home) as box:
            yield box, stub


@pytest.fixture
def stub(gpu_box: tuple[Box, NvmlStub]) -> NvmlStub:
    return gpu_box[1]


@pytest.fixture
def box(gpu_box: tuple[Box, NvmlStub]) -> Iterator[Box]:
    box, stub = gpu_box
    yield box
    stub.show([StubGpu()] * 4)
    box.sweep()


def gpu_profile(name: str = "fake", count: int = 1, **args: object) -> dict[str, Any]:
    profile = fake_profile(name, **args) | {"gpus": count}
    if count > 1:
        profile["args"]["tensor_parallel_size"] = count
    return profile


def visible(server: Server) -> str:
    """Return what the engine sees in CUDA_VISIBLE_DEVICES."""
    assert server.pid is not None
    process = psutil.Process(server.pid)
    # Told of between fork and exec it still has its guard's environment.
    assert sees(lambda: "CUDA_DEVICE_ORDER" in process.environ())
    environ = process.environ()
    assert environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    return environ["CUDA_VISIBLE_DEVICES"]


def started(box: Box, name: str = "fake") -> Server:
    return box.until(lambda server: server.pid is not None, name)


def launch(box: Box, name: str, *wishes: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return box.gpubox("--headless", "--profile", name, *wishes, code=code)


def processes_of(box: Box, gpu: int) -> dict[int, str | None]:
    """Return the server of each process on a GPU, by pid, as `status --json` tells it."""
    told = json.loads(box.gpubox("status", "--json").stdout)["box"]["gpus"][gpu]
    return {process["pid"]: process["server"] for process in told["processes"]}


def gpus_shown(box: Box) -> dict[str, str]:
    """Return what `status` says of each GPU's holder, by index."""
    lines = box.gpubox("status").stdout.split("\n\n")[1].splitlines()
    at = lines[0].index("HELD BY")
    return {line.split()[0]: line[at:] for line in lines[1:]}


def sees(condition: Callable[[], bool]) -> bool:
    """Look until something is so, and return whether it is."""
    deadline = time.monotonic() + PATIENCE_S
    while not (so := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return so


def keeps(box: Box) -> int | None:
    """Return the pid of the keeper that answers."""
    with contextlib.suppress(KeeperError):
        info = box.client.snapshot().keeper
        return info.pid if info else None
    return None


def test_named_gpus_are_the_engines_and_nobody_elses(box: Box) -> None:
    for name in ("fake", "other"):
        box.keep_profile(gpu_profile(name))
    done = launch(box, "fake", "--gpus", "1")
    assert "fake: starting /models/fake on GPU 1, port" in done.stderr
    server = box.server()
    assert visible(server) == "1"
    assert (server.gpus, server.gpu_indices) == ((uuid_of(1),), (1,))
    assert "cuda '1'" in Path(server.log_path or "").read_text()
    assert gpus_shown(box) == {"0": "free", "1": "fake", "2": "free", "3": "free"}

    busy = launch(box, "other", "--gpus", "1", code=5)
    assert (
        busy.stderr
        == "gpubox: GPU 1 is held by server fake\n  → gpubox stop fake, or let it give way: gpubox switch other\n"
    )
    absent = launch(box, "other", "--gpus", "9", code=4)
    assert absent.stderr == "gpubox: there is no GPU 9: this box has GPUs 0–3\n"
    assert "no UUID begins with GPU-beef" in launch(box, "other", "--gpus", "GPU-beef", code=4).stderr
    assert "names no GPU" in launch(box, "other", "--gpus", "first", code=2).stderr
    assert "the profile needs 1 GPU, 2 were named" in launch(box, "other", "--gpus", "2,3", code=2).stderr
    launch(box, "other", "--gpus", uuid_of(2)[:12], "--wait", "0", code=7)
    assert visible(started(box, "other")) == "2"


def test_auto_takes_the_most_room_and_never_a_gpu_that_is_in_use(box: Box, stub: NvmlStub) -> None:
    stranger = box.spawn_other("sleep", "600")
    held = (stranger.pid, 20 * GIB, "compute")
    stub.show([StubGpu({"memory_used": 20 * GIB}, (held,)), StubGpu({"memory_used": 2 * GIB}), StubGpu(), StubGpu()])
    names = ("one", "two", "three", "four")
    for name in names:
        box.keep_profile(gpu_profile(name))
    both = [box.spawn("--headless", "--profile", name, "--gpus", "auto", "--json") for name in names[:2]]
    told = [json.loads(child.communicate(timeout=PATIENCE_S)[0]) for child in both]
    assert sorted(server["gpu_indices"] for server in told) == [[2], [3]]
    third = launch(box, "three")
    assert visible(box.server("three")) == "1"
    assert "GPU 1 137.8 GiB free: all others are taken" in third.stderr
    refused = launch(box, "four", code=5).stderr
    assert refused.startswith("gpubox: the profile needs 1 GPU, none of 4 can be had: ")
    assert f"GPU 0 is in use by pid {stranger.pid} sleep (" in refused
    assert "GPU 1 is held by server three" in refused


def test_a_model_in_two_halves_gets_two_gpus(box: Box, stub: NvmlStub) -> None:
    stub.show([StubGpu({"memory_used": 100 * GIB}), StubGpu({"mig": 1}), StubGpu(), StubGpu()])
    box.start(gpu_profile(count=2))
    assert visible(started(box)) == "2,3"
    box.keep_profile(gpu_profile("other", count=2))
    assert "GPU 1 cannot be assigned (MIG is enabled" in launch(box, "other", code=5).stderr
    assert "GPU 0 has 39.8 of 139.8 GiB free" in launch(box, "other", "--gpus", "0,1", code=5).stderr
    box.client.stop("fake", force=True)
    box.until(ServerState.STOPPED)
    box.start(gpu_profile("named", count=2), gpus=("3", "2"))
    assert visible(started(box, "named")) == "3,2"


def test_a_mig_gpu_is_shown_and_refused_with_the_reason(box: Box, stub: NvmlStub) -> None:
    stub.show([StubGpu({"mig": 1}), StubGpu()])
    box.keep_profile(gpu_profile())
    refused = launch(box, "fake", "--gpus", "0", code=4).stderr
    assert refused.startswith("gpubox: GPU 0 cannot be assigned: MIG is enabled: gpubox assigns whole GPUs")
    assert gpus_shown(box)["0"].startswith("MIG is enabled")
    launch(box, "fake")
    assert visible(box.server()) == "1"


def test_the_askers_cuda_visible_devices_bounds_what_it_gets(box: Box) -> None:
    for name in ("fake", "other"):
        box.keep_profile(gpu_profile(name))
    launch(box, "other", "--wait", "0", code=7)  # this one starts the keeper, which has no such bounds
    box.environ["CUDA_VISIBLE_DEVICES"] = "2,3"
    refused = launch(box, "fake", "--gpus", "1", code=4).stderr
    assert refused == "gpubox: GPU 1 cannot be assigned: outside CUDA_VISIBLE_DEVICES=2,3\n"
    launch(box, "fake", "--wait", "0", code=7)
    assert visible(started(box)) == "2"
    assert visible(started(box, "other")) == "0"
    box.environ["CUDA_VISIBLE_DEVICES"] = ""
    box.keep_profile(gpu_profile("third"))
    assert "CUDA_VISIBLE_DEVICES is set and empty" in launch(box, "third", code=4).stderr


def test_a_process_of_a_server_is_told_from_strangers(box: Box, stub: NvmlStub) -> None:
    box.start(gpu_profile(child=True), gpus=("1",))
    server = box.until(ServerState.READY)
    (child,) = psutil.Process(server.pid).children()  # in a session of its own, as vLLM's EngineCore
    on_one = ((server.pid or 0, GIB, "compute"), (child.pid, 70 * GIB, "compute"), (os.getpid(), GIB, "compute"))
    stub.show([StubGpu(processes=((os.getpid(), GIB, "compute"),)), StubGpu({"memory_used": 72 * GIB}, on_one)])
    assert sees(lambda: len(processes_of(box, 1)) == 3)
    assert processes_of(box, 1) == {server.pid: "fake", child.pid: "fake", os.getpid(): None}
    assert processes_of(box, 0) == {os.getpid(): None}
    shown = gpus_shown(box)
    assert shown["0"].startswith(f"pid {os.getpid()} ")
    assert shown["1"] == "fake"


def test_a_gpu_that_is_lost_under_a_server_is_told(box: Box, stub: NvmlStub) -> None:
    box.start(gpu_profile(), gpus=("1",))
    box.until(ServerState.READY)
    stub.show([StubGpu(), StubGpu({"lost": 15}), StubGpu(), StubGpu()])
    assert sees(lambda: "bus" in gpus_shown(box)["1"])
    shown = gpus_shown(box)
    assert shown["0"] == "free"
    assert shown["1"].startswith("fake; it fell off the bus (NVML: GPU is lost)")
    assert box.server().state is ServerState.READY
    told = box.gpubox("stop", "fake").stderr
    assert told.startswith("fake stopped, but whether its memory is back is not known: GPU 1: it fell off the bus")


def test_stopped_means_that_the_memory_is_back(box: Box, stub: NvmlStub) -> None:
    box.start(gpu_profile(), gpus=("1",))
    server = box.until(ServerState.READY)
    engine = identity_of(server.pid or 0)
    assert engine is not None
    stub.show([StubGpu(), StubGpu({"memory_used": 80 * GIB})])
    child = box.spawn("stop", "fake")
    assert sees(lambda: not is_alive(engine))
    for _ in range(5):
        assert box.server().state is ServerState.STOPPING
        time.sleep(0.1)
    assert child.poll() is None
    stub.show([StubGpu(), StubGpu({"memory_used": 300 * MIB})])
    _, told = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0
    assert told.startswith("fake stopped; its memory is back (")


def test_memory_that_does_not_come_back_is_told(box: Box, stub: NvmlStub) -> None:
    if box.client.is_up():
        box.client.shutdown()
    keeper = subprocess.Popen([sys.executable, "-P", "-c", SHORT_OF_PATIENCE], env=box.environ, cwd="/")
    try:
        assert sees(lambda: keeps(box) == keeper.pid)
        box.start(gpu_profile(), gpus=("1",))
        box.until(ServerState.READY)
        stub.show([StubGpu(), StubGpu({"memory_used": 80 * GIB})])
        told = box.gpubox("stop", "fake").stderr
        assert told.startswith("fake stopped, but GPU memory has not come back after 1 s: GPU 1 +80.0 GiB (")
    finally:
        keeper.kill()
        keeper.wait()


def test_a_restart_finds_its_gpu_by_uuid(box: Box, stub: NvmlStub) -> None:
    box.start(gpu_profile(), gpus=("2",))
    started(box)
    box.client.stop("fake", force=True)
    box.until(ServerState.STOPPED)
    stub.show([StubGpu({"uuid": uuid_of(index)}) for index in (1, 2, 3)])  # the driver counts anew without GPU 0
    box.client.restart("fake")
    server = started(box)
    assert (server.gpus, server.gpu_indices, visible(server)) == ((uuid_of(2),), (1,), "1")
