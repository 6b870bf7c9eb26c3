"""Where there are NVIDIA GPUs: our figures against nvidia-smi's, our reading of CUDA_VISIBLE_DEVICES against CUDA's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from backends.gpus.host import HostReader
from backends.gpus.nvml import Nvml
from backends.gpus.sampler import BoxSampler
from backends.gpus.visibility import visible_uuids
from backends.snapshots import Box, Missing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver here"),
]

MIB = 2**20
HELD_BYTES = 4096 * MIB

HOLD = f"""
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
context, memory = ctypes.c_void_p(), ctypes.c_void_p()
for code in (
    cuda.cuInit(0),
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
    cuda.cuCtxSetCurrent(context),
    cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t({HELD_BYTES})),
):
    assert code == 0, code
print("held", flush=True)
sys.stdin.read()
"""

SEEN = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
count, seen = ctypes.c_int(0), []
if cuda.cuInit(0) == 0:
    cuda.cuDeviceGetCount(ctypes.byref(count))
for index in range(count.value):
    device, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetUuid(uuid, device)
    seen.append(bytes(uuid).hex())
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def sampler() -> BoxSampler:
    return BoxSampler(Nvml(), HostReader())


@pytest.fixture(scope="module")
def box(sampler: BoxSampler) -> Box:
    return sampler.sample()


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that holds memory on the first GPU."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def nvidia_smi(*fields: str) -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [[cell.strip() for cell in line.split(",")] for line in lines]


def test_gpus_are_those_of_nvidia_smi(box: Box) -> None:
    rows = nvidia_smi("index", "uuid", "name", "memory.total", "power.limit", "driver_version")
    assert [
        [str(g.index), g.uuid, g.name, str(mib(g.memory_total_bytes)), f"{g.power_limit_w:.2f}", box.driver_version]
        for g in box.gpus
    ] == rows


def test_used_memory_is_what_nvidia_smi_shows(sampler: BoxSampler, holder: subprocess.Popen[str]) -> None:
    before = nvidia_smi("memory.used", "memory.free")
    gpus = sampler.sample().gpus
    for gpu, (used, free) in zip(gpus, before, strict=True):
        assert abs(mib(gpu.memory_used_bytes) - int(used)) <= 2
        assert abs(mib(gpu.memory_free_bytes) - int(free)) <= 2
    assert mib(gpus[0].memory_used_bytes) * MIB >= HELD_BYTES
    processes = gpus[0].processes
    assert not isinstance(processes, Missing)
    ours = [process for process in processes if process.pid == holder.pid]
    assert [process.kind for process in ours] == ["compute"]
    assert mib(ours[0].memory_bytes) * MIB >= HELD_BYTES


def test_every_figure_of_a_data_center_gpu_is_told(box: Box) -> None:
    for gpu in box.gpus:
        assert not [
            field for field in ("utilization", "temperature_c", "power_w") if isinstance(getattr(gpu, field), Missing)
        ]


def mib(amount: int | Missing) -> int:
    assert not isinstance(amount, Missing)
    return amount // MIB


PATTERNS = [
    *["", "0", "1", "0,1", "1,0", "0,9,1", "9", "-1", "0,-1,1", "NoDevFiles", "0,0", "1,0,1", "0 , 1", " 1", "0,,1"],
    *[",1", "0,1,", "1gpu,0", "+1", "01", "0x1", "1.5", "0;1", "1 0", "all", "none", "99999999999999999999"],
    *["{a}", "{b}", "{b},{a}", "{a}x", " {a}", "{a} ", "{a} ,{b}", "{a}, {b}", "{a},{a}", "{a},1", "1,{a}", "{a},0"],
    *["{A}", "{bare}", "{a10}", "{b10}", "{a10},{b10}", "{a10},{a}", "{same}", "GPU-", "{a},GPU-ffffffff,{b}"],
    *["{a10}x", "{a10} ,{b10}", "{a10}-", "{a}-0", "{nodash}", "{a10}x,{b}"],
    *["GPU-ffffffff,{a}", "MIG-{a}", "MIG-GPU-x/0/0", "{a},MIG-x", "gpu-{bare}"],
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_cuda_sees_what_we_say_it_sees(box: Box, pattern: str) -> None:
    a, b = box.gpus[0].uuid, box.gpus[-1].uuid
    same = os.path.commonprefix([a, b]) if a != b else "GPU-"
    nodash = "GPU-" + a[4:].replace("-", "")
    value = pattern.format(a=a, b=b, A=a.upper(), bare=a[4:], a10=a[:12], b10=b[:12], same=same, nodash=nodash)
    environ = os.environ | {"CUDA_VISIBLE_DEVICES": value, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    done = subprocess.run([sys.executable, "-c", SEEN], env=environ, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert [uuid.removeprefix("GPU-").replace("-", "") for uuid in visible_uuids(box.gpus, value)] == seen
