"""What is left when shim and guard are killed at the same moment: found on the GPU and off it, shown, ended by name."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from backends import paths
from backends.errors import ConflictError
from backends.processes.facts import Identity, identity_of, is_alive, read_facts
from backends.snapshots import Missing, Owner, ServerState
from tests.gpu.conftest import MIB, NvmlStub, StubGpu, nvml_library  # noqa: F401
from tests.keeper.conftest import PATIENCE_S, Box, box_in, fake_profile

GIB = 1024 * MIB
SHARES_MEMORY = """
import sys
from multiprocessing import resource_tracker, shared_memory
one = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(one._name, "shared_memory")
print(one.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def lasting(
    nvml_library: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Box, NvmlStub]]:
    home = tmp_path_factory.mktemp("home")
    stub = NvmlStub(nvml_library, home / "nvml.ini")
    stub.show([StubGpu()] * 2)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LD_LIBRARY_PATH", "GPUBOX_NVML_STUB"):
            patch.setenv(name, stub.environ()[name])
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with box_in(home) as box:
            yield box, stub


@pytest.fixture
def stub(lasting: tuple[Box, NvmlStub]) -> NvmlStub:
    return lasting[1]


@pytest.fixture
def box(lasting: tuple[Box, NvmlStub]) -> Iterator[Box]:
    box, stub = lasting
    yield box
    stub.show([StubGpu()] * 2)
    for orphan in box.client.orphans():
        box.client.reap(orphan.pid, orphan.start_ticks)
    box.sweep()


def leave_behind(box: Box) -> Identity:
    """Start a server whose engine has a child in another session; kill shim and guard at once; return that child."""
    box.start(fake_profile(child=True))
    server = box.until(ServerState.READY)
    (child,) = psutil.Process(server.pid).children()
    identity = identity_of(child.pid)
    assert identity is not None
    facts = read_facts(next((paths.state_dir() / "servers" / "fake").glob("*/process.json")))
    assert not isinstance(facts, Missing)
    for one in (facts.shim, facts.guard):
        os.kill(one.pid, signal.SIGSTOP)  # neither must see the other go
    for one in (facts.shim, facts.guard):
        os.kill(one.pid, signal.SIGKILL)
    box.until(lambda s: not s.is_live)
    deadline = time.monotonic() + PATIENCE_S
    while [one.pid for one in box.client.orphans()] != [child.pid]:  # until the engine's main process is gone, too
        assert time.monotonic() < deadline, box.client.orphans()
        time.sleep(0.05)
    assert is_alive(identity)
    return identity


def show(box: Box, stub: NvmlStub, *gpus: StubGpu) -> None:
    """Have the driver show these GPUs, and the keeper see them."""
    stub.show(gpus)
    wanted = [{pid for pid, _, _ in gpu.processes} for gpu in gpus]
    deadline = time.monotonic() + PATIENCE_S
    while [
        {one.pid for one in gpu.processes} if not isinstance(gpu.processes, Missing) else None
        for gpu in box.client.snapshot().box.gpus
    ] != wanted:
        assert time.monotonic() < deadline, wanted
        time.sleep(0.05)


def gpus(box: Box) -> list[dict[str, object]]:
    return list(json.loads(box.gpubox("status", "--json").stdout)["box"]["gpus"])


def test_an_orphan_on_a_gpu_is_shown_and_reaped(box: Box, stub: NvmlStub) -> None:
    left = leave_behind(box)
    busy = StubGpu({"memory_used": 59 * GIB}, ((left.pid, 58 * GIB, "compute"),))
    show(box, stub, StubGpu(), busy)
    (orphan,) = box.client.orphans()
    assert (orphan.server, orphan.start_ticks) == ("fake", left.start_ticks)
    told_once = [event for event in box.client.history() if event.kind == "orphan" and str(left.pid) in event.text]
    assert len(told_once) == 1
    told = gpus(box)[1]
    shares = [(one["owner"], one["who"], one["memory_bytes"]) for one in told["shares"]]  # type: ignore[attr-defined]
    assert shares == [
        (Owner.ORPHAN, "fake", 58 * GIB),
        (Owner.UNATTRIBUTED, "the driver's own", GIB),
    ]
    text = box.gpubox("status").stdout
    assert f"GPU 1  × orphan of fake pid {left.pid} 58.0 GiB · ░ unattributed 1.0 GiB (the driver's own)" in text
    assert "gpubox reap" in text

    refused = box.gpubox("reap", code=2)
    assert "there is no terminal to ask at, so nothing was done" in refused.stderr
    assert f"{left.pid}" in refused.stderr
    assert "58.0 GiB" in refused.stderr
    assert is_alive(left)

    child = box.spawn("reap", "--yes")
    assert child.stderr is not None
    assert child.stderr.readline().startswith("LEFT BY")
    while f"pid {left.pid} is gone (SIGKILL)" not in (line := child.stderr.readline()):
        assert line, "it ended without saying so"
    assert not is_alive(left)
    stub.show([StubGpu()] * 2)
    assert "memory that came back: GPU 1 59.0 GiB" in child.communicate(timeout=PATIENCE_S)[1]
    assert child.returncode == 0
    assert box.gpubox("reap").stderr == "no orphans: no server of yours has left a process behind\n"
    assert json.loads(box.gpubox("reap", "--json").stdout) == []


def test_an_orphan_without_a_gpu_is_found_too_and_asked_about(box: Box) -> None:
    left = leave_behind(box)
    assert f"fake left pid {left.pid} behind" in box.gpubox("status").stdout
    assert json.loads(box.gpubox("status", "--json").stdout)["orphans"][0]["pid"] == left.pid

    def answered(answer: str) -> int:
        terminal, side = pty.openpty()
        child = box.spawn("reap", stdin=side)
        os.close(side)
        os.write(terminal, f"{answer}\n".encode())
        child.communicate(timeout=PATIENCE_S)
        os.close(terminal)
        return child.returncode

    assert answered("") == 1
    assert answered("no") == 1
    assert is_alive(left)
    assert answered("y") == 0
    assert not is_alive(left)


def test_only_that_very_process_is_ended_and_only_while_it_is_an_orphan(box: Box) -> None:
    box.start(fake_profile(child=True))
    server = box.until(ServerState.READY)
    engine = identity_of(server.pid or 0)
    assert engine is not None
    with pytest.raises(ConflictError, match="has ended already"):
        box.client.reap(engine.pid, engine.start_ticks + 1)
    with pytest.raises(ConflictError, match="no orphan of gpubox"):
        box.client.reap(engine.pid, engine.start_ticks)
    with pytest.raises(ConflictError, match=f"pid {engine.pid} is a process of server fake"):
        box.client.reap(engine.pid, engine.start_ticks, foreign=True)
    here = identity_of(os.getpid())
    assert here is not None
    with pytest.raises(ConflictError, match="is the keeper, or has started it"):
        box.client.reap(here.pid, here.start_ticks, foreign=True)
    other = identity_of(box.spawn_other("sleep", "600").pid)
    assert other is not None
    with pytest.raises(ConflictError, match="holds no GPU memory and is no model server"):
        box.client.reap(other.pid, other.start_ticks, foreign=True)
    assert is_alive(engine)
    assert is_alive(other)


def test_a_foreign_process_is_ended_only_once_its_pid_was_typed(box: Box, stub: NvmlStub) -> None:
    box.start(fake_profile())
    stranger = box.spawn_other("sleep", "600")
    show(box, stub, StubGpu(), StubGpu({"memory_used": 20 * GIB}, ((stranger.pid, 20 * GIB, "compute"),)))
    pid = str(stranger.pid)
    refused = box.gpubox("reap", pid, code=2).stderr
    assert "command  sleep 600" in refused
    assert "GPU 1    20.0 GiB" in refused
    assert "there is no terminal to ask at" in refused
    assert "--yes is for orphans" in box.gpubox("reap", pid, "--yes", code=2).stderr
    assert "nothing was done" in box.gpubox("reap", pid, "--confirm", "1", code=2).stderr
    assert stranger.poll() is None
    child = box.spawn("reap", pid, "--confirm", pid)
    assert stranger.wait(PATIENCE_S) == -signal.SIGTERM
    stub.show([StubGpu()] * 2)
    assert f"pid {pid} is gone (SIGTERM)" in child.communicate(timeout=PATIENCE_S)[1]
    assert child.returncode == 0


def test_what_ignores_sigterm_is_killed(box: Box, stub: NvmlStub) -> None:
    box.start(fake_profile())
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    deaf = box.spawn_other(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert deaf.stdout is not None
    deaf.stdout.readline()
    stub.show([StubGpu({"memory_used": 2 * GIB}, ((deaf.pid, 2 * GIB, "compute"),)), StubGpu()])
    identity = identity_of(deaf.pid)
    assert identity is not None
    assert box.client.reap(identity.pid, identity.start_ticks, foreign=True).signal == "SIGKILL"
    assert deaf.wait(PATIENCE_S) == -signal.SIGKILL


def test_the_shared_memory_that_only_it_used_goes_with_it(box: Box, stub: NvmlStub) -> None:
    box.start(fake_profile())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = box.spawn_other(sys.executable, "-c", SHARES_MEMORY, **pipes)
    assert holder.stdout is not None
    name = holder.stdout.readline().strip()
    path = Path("/dev/shm") / name
    stub.show([StubGpu({"memory_used": 2 * GIB}, ((holder.pid, 2 * GIB, "compute"),)), StubGpu()])
    identity = identity_of(holder.pid)
    assert identity is not None
    try:
        assert path.exists()
        reaped = box.client.reap(identity.pid, identity.start_ticks, foreign=True)
        assert reaped.shared_memory_files == 1
        assert not path.exists()
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
