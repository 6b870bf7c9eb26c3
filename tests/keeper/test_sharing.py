"""Servers that share a GPU: the sums hold, starts happen one after another, and two homes know of each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.errors import GpuBusyError
from backends.snapshots import Server, ServerState
from tests.gpu.conftest import NvmlStub, StubGpu, nvml_library  # noqa: F401
from tests.keeper.conftest import Box, box_in, fake_profile, kill_and_wait


@pytest.fixture
def box(nvml_library: Path, tmp_path: Path) -> Iterator[Box]:  # noqa: F811
    stub = NvmlStub(nvml_library, tmp_path / "nvml.ini")
    stub.show([StubGpu()] * 2)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LD_LIBRARY_PATH", "GPUBOX_NVML_STUB"):
            patch.setenv(name, stub.environ()[name])
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with box_in(tmp_path / "home") as box:
            yield box


def sharing(name: str, utilization: float = 0.4, *, share: bool = True, **args: object) -> dict[str, Any]:
    return parted(fake_profile(name, **args), utilization, share=share)


def parted(profile: dict[str, Any], utilization: float = 0.4, *, share: bool = True) -> dict[str, Any]:
    profile |= {"gpus": 1, "share": share}
    profile["args"]["gpu_memory_utilization"] = utilization
    return profile


def at_the_gate(server: Server) -> bool:
    return server.state is ServerState.QUEUED and server.stage is not None and server.stage.name == "turn"


def test_starts_on_one_gpu_happen_one_after_another(box: Box) -> None:
    assert box.start(parted(box.held_profile("first")), gpus=("0",)).state is ServerState.QUEUED
    box.until(lambda server: server.state is ServerState.STARTING, "first")
    assert box.start(sharing("second"), gpus=("0",)).state is ServerState.QUEUED
    waiting = box.until(lambda server: at_the_gate(server) and bool(server.stage and server.stage.detail), "second")
    assert waiting.stage is not None
    assert waiting.stage.detail == "another server starts there"
    assert waiting.pid is None or "gate" in Path(f"/proc/{waiting.pid}/cmdline").read_text()
    box.let_start("first")
    second = box.until(ServerState.READY, "second")
    first = box.server("first")
    assert first.state is ServerState.READY
    assert first.ready_at is not None
    assert second.ready_at is not None
    assert first.ready_at < second.ready_at
    gpu = box.client.snapshot().box.gpus[0]
    assert {grant.server for grant in gpu.grants} == {"first", "second"}
    assert gpu.holder == "first, second"


def test_the_sums_of_what_is_granted_hold_and_one_who_does_not_share_is_alone(box: Box) -> None:
    box.start(sharing("first", 0.6), gpus=("0",))
    with pytest.raises(GpuBusyError, match="not granted yet, the profile wants"):
        box.start(sharing("second", 0.5), gpus=("0",))
    with pytest.raises(GpuBusyError, match="held by server first"):
        box.start(sharing("second", 0.3, share=False), gpus=("0",))
    box.start(sharing("alone", 0.3, share=False), gpus=("1",))
    with pytest.raises(GpuBusyError, match="alone does not share it"):
        box.start(sharing("second", 0.3), gpus=("1",))
    box.start(sharing("second", 0.3), gpus=("auto",))
    assert box.server("second").gpu_indices == (0,)


def test_a_queued_server_outlives_the_keeper_and_can_be_stopped(box: Box) -> None:
    box.start(sharing("first", start=60.0), gpus=("0",))
    box.until(lambda server: server.state is ServerState.STARTING, "first")
    box.start(sharing("second"), gpus=("0",))
    box.until(at_the_gate, "second")
    kill_and_wait(box.client.snapshot().keeper.pid)  # type: ignore[union-attr]
    box.start(sharing("third", 0.1), gpus=("1",))
    assert box.until(at_the_gate, "second").state is ServerState.QUEUED
    assert box.server("first").state is ServerState.STARTING
    box.client.stop("second")
    assert box.until(lambda server: not server.is_live, "second").state is ServerState.STOPPED
    box.client.stop("first", force=True)
    box.until(lambda server: not server.is_live, "first")
    assert box.client.snapshot().box.gpus[0].grants == ()


def test_a_failed_start_lets_the_next_one_through(box: Box) -> None:
    box.start(parted(box.held_profile("first", fail="no such thing")), gpus=("0",))
    box.until(lambda server: server.state is ServerState.STARTING, "first")
    box.start(sharing("second"), gpus=("0",))
    box.until(at_the_gate, "second")
    box.let_start("first")
    box.until(ServerState.READY, "second")
    assert box.server("first").state is ServerState.FAILED


def test_two_homes_never_give_one_gpu_away_twice(box: Box, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        ledger = box.environ["GPUBOX_LEDGER"] = str(box.home / "ledger")
        box.start(fake_profile("mine") | {"gpus": 1}, gpus=("0",))
        with box_in(tmp_path / "other") as other:
            patch.setenv("GPUBOX_LEDGER", ledger)
            with pytest.raises(GpuBusyError, match=r"GPU 0 is held by server mine of \w+"):
                other.start(fake_profile("theirs") | {"gpus": 1}, gpus=("0",))
            assert other.start(fake_profile("theirs") | {"gpus": 1}, gpus=("auto",)).gpu_indices == (1,)
            other.until(ServerState.READY, "theirs")
            status = json.loads(box.gpubox("status", "--json").stdout)
            grants = {
                gpu["index"]: [(one["server"], one["ours"]) for one in gpu["grants"]] for gpu in status["box"]["gpus"]
            }
            assert grants == {0: [("mine", True)], 1: [("theirs", False)]}
            kill_and_wait(other.client.snapshot().keeper.pid)  # type: ignore[union-attr]
            with pytest.raises(GpuBusyError, match="held by server theirs of"):
                box.start(fake_profile("again") | {"gpus": 1}, gpus=("1",))
