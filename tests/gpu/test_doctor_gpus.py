"""What the doctor says of a box's driver and GPUs, which the stub of NVML shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.checks import Check
from backends.gpus import checks
from backends.gpus.checks import gpu_checks
from backends.gpus.nvml import Nvml
from tests.gpu.conftest import MIB, NvmlStub, StubGpu, uuid_of

ROOT = Path(__file__).parents[2]


def examine(environ: dict[str, str] | None = None) -> dict[str, Check]:
    nvml = Nvml()
    return {check.name: check for check in gpu_checks(nvml, nvml.read(), environ or {})}


def test_a_healthy_box(nvml_stub: NvmlStub) -> None:
    nvml_stub.show([StubGpu(), StubGpu()])
    assert examine() == {
        check.name: check
        for check in (
            Check("driver", True, "580.65.06, for CUDA up to 13.0"),
            Check("GPU 0", True, "NVIDIA H200, 140.4 GiB, 139.8 free"),
            Check("GPU 1", True, "NVIDIA H200, 140.4 GiB, 139.8 free"),
            Check("in use", True, "no process is on any GPU"),
            Check("visible GPUs", True, "all: CUDA_VISIBLE_DEVICES is not set"),
        )
    }


def test_each_gpus_trouble_is_told(nvml_stub: NvmlStub) -> None:
    held = ((os.getpid(), 7 * MIB, "compute"),)
    nvml_stub.show(
        [StubGpu({"mig": 1}), StubGpu({"lost": 15}), StubGpu({"persistence": 0}), StubGpu({"memory_total": "!3"}, held)]
    )
    found = examine({"CUDA_VISIBLE_DEVICES": "1,2"})
    assert (found["GPU 0"].ok, found["GPU 0"].remedy) == (None, "sudo nvidia-smi -i 0 -mig 0")
    assert (found["GPU 1"].ok, "fell off the bus" in found["GPU 1"].found) == (False, True)
    assert (found["GPU 2"].ok, found["GPU 2"].remedy) == (None, "sudo nvidia-smi -pm 1")
    assert (found["GPU 3"].ok, found["GPU 3"].found) == (True, "NVIDIA H200, memory not told")
    assert (found["in use"].ok, f"GPU 3: pid {os.getpid()}" in found["in use"].found) == (None, True)
    assert (found["visible GPUs"].ok, "leaves 1, 2 of 4" in found["visible GPUs"].found) == (None, True)


@pytest.mark.parametrize(("has_card", "ok"), [(True, False), (False, None)])
def test_no_driver_is_broken_only_where_there_is_a_card(
    nvml_stub: NvmlStub, monkeypatch: pytest.MonkeyPatch, has_card: bool, ok: bool | None
) -> None:
    monkeypatch.setattr(checks, "has_nvidia_hardware", lambda: has_card)
    nvml_stub.show([], init=9)
    (check,) = examine().values()
    assert (check.ok, "not loaded" in check.found) == (ok, True)


@pytest.mark.parametrize(("gpu", "code"), [(StubGpu(), 0), (StubGpu({"lost": 15}), 1)])
def test_the_command_ends_with_1_where_something_is_broken(
    nvml_stub: NvmlStub, tmp_path: Path, gpu: StubGpu, code: int
) -> None:
    nvml_stub.show([gpu, StubGpu()])
    environ = nvml_stub.environ() | {"HF_HUB_OFFLINE": "1", "GPUBOX_HOME": str(tmp_path)}
    environ["TRITON_LIBCUDA_PATH"] = str(tmp_path)  # -lcuda is then a warning at worst
    printed = run(environ, json_output=False)
    assert printed.returncode == code
    assert f"{'✗' if code else '✓'} GPU 0  " in printed.stdout
    as_json = run(environ, json_output=True)
    assert as_json.returncode == code
    answer = json.loads(as_json.stdout)
    assert answer["ok"] is (code == 0)
    assert {"name": "driver", "ok": True, "found": "580.65.06, for CUDA up to 13.0", "remedy": ""} in answer["checks"]
    assert uuid_of(0) not in as_json.stderr


def run(environ: dict[str, str], *, json_output: bool) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from tui.headless.doctor import doctor; sys.exit(doctor({json_output}, None))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False
    )
