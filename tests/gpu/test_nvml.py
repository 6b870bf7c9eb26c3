"""Nvml through pynvml itself, on a compiled stub of the driver's library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from backends.gpu_readings import NOT_WATCHED
from backends.gpus.host import HostReader
from backends.gpus.nvml import NO_DEVICES, VANISHED, Nvml
from backends.gpus.nvml_figures import LOST, NO_MEMORY_FIGURE
from backends.gpus.processes import ANOTHER_CONTAINER
from backends.gpus.sampler import BoxSampler
from backends.snapshots import Box, EccErrors, Gpu, Missing, dump, load
from tests.gpu.conftest import MIB, NvmlStub, StubGpu, uuid_of

ROOT = Path(__file__).parents[2]
NO_SUCH_PID = 2**22 + 1  # above the kernel's largest pid


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def figures(gpu: Gpu) -> list[object]:
    return [
        gpu.memory_used_bytes,
        gpu.memory_free_bytes,
        gpu.utilization,
        gpu.temperature_c,
        gpu.power_w,
        gpu.power_limit_w,
        gpu.processes,
    ]


@pytest.mark.parametrize("count", [1, 4, 8])
def test_reads_every_gpu(nvml_stub: NvmlStub, count: int) -> None:
    nvml_stub.show([StubGpu({"utilization": 10 * index, "temperature": 30 + index}) for index in range(count)])
    reading = Nvml().read()
    assert (reading.no_gpus, reading.driver_version, reading.cuda_version) == (None, "580.65.06", "13.0")
    assert [gpu.uuid for gpu in reading.gpus] == [uuid_of(index) for index in range(count)]
    for index, gpu in enumerate(reading.gpus):
        assert gpu == Gpu(
            index=index,
            uuid=uuid_of(index),
            name="NVIDIA H200",
            memory_total_bytes=143771 * MIB,
            memory_used_bytes=4 * MIB,
            memory_free_bytes=(143771 - 612 - 4) * MIB,
            utilization=index / 10,
            temperature_c=30 + index,
            power_w=76.5,
            power_limit_w=700.0,
            processes=(),
            ecc=EccErrors(0, 0),
            throttling=(),
            xids=NOT_WATCHED,
        )


def test_a_driver_without_gpus(nvml_stub: NvmlStub) -> None:
    nvml_stub.show([])
    reading = Nvml().read()
    assert (reading.gpus, reading.no_gpus, reading.driver_version) == ((), NO_DEVICES, "580.65.06")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "different versions"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "/dev/nvidia"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
        (77, "error 77"),
    ],
)
def test_nvml_that_cannot_be_opened_says_why(nvml_stub: NvmlStub, code: int, says: str) -> None:
    nvml_stub.show([StubGpu()], init=code)
    reading = Nvml().read()
    assert reading.gpus == ()
    assert reading.no_gpus is not None
    assert says in reading.no_gpus
    assert "\n" not in reading.no_gpus


@pytest.mark.parametrize(
    ("reading", "field"),
    [
        ("utilization", "utilization"),
        ("temperature", "temperature_c"),
        ("power_mw", "power_w"),
        ("power_limit_mw", "power_limit_w"),
    ],
)
def test_a_figure_that_is_not_supported_leaves_the_others(nvml_stub: NvmlStub, reading: str, field: str) -> None:
    nvml_stub.show([StubGpu({reading: "!3"})])
    gpu = Nvml().read().gpus[0]
    assert getattr(gpu, field) == Missing("not supported by this GPU")
    assert [figure for figure in figures(gpu) if isinstance(figure, Missing)] == [getattr(gpu, field)]
    assert gpu.refusal is None


def test_memory_shared_with_the_host_is_missing(nvml_stub: NvmlStub) -> None:
    nvml_stub.show([StubGpu({"memory_total": "!3"})])
    gpu = Nvml().read().gpus[0]
    assert gpu.memory_total_bytes == gpu.memory_used_bytes == gpu.memory_free_bytes == Missing(NO_MEMORY_FIGURE)
    assert gpu.temperature_c == 31


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH])
def test_an_old_driver_counts_the_reserve_as_used(nvml_stub: NvmlStub, code: int) -> None:
    nvml_stub.show([StubGpu({"memory_v2": f"!{code}"})])
    gpu = Nvml().read().gpus[0]
    assert gpu.memory_used_bytes == 616 * MIB
    assert gpu.memory_free_bytes == (143771 - 616) * MIB


def test_mig_is_shown_and_refused(nvml_stub: NvmlStub) -> None:
    nvml_stub.show([StubGpu(), StubGpu({"mig": 1, "utilization": "!3"}), StubGpu({"mig": "!3"})])
    plain, sliced, old = Nvml().read().gpus
    assert (plain.mig, plain.refusal, old.mig, old.refusal) == (False, None, False, None)
    assert sliced.mig
    assert sliced.refusal is not None
    assert sliced.refusal.startswith("MIG is enabled: ")
    assert "-i 1 -mig 0" in sliced.refusal


def test_processes_are_named_and_counted_once(nvml_stub: NvmlStub) -> None:
    own, hidden = os.getpid(), NO_SUCH_PID
    listed = (
        (own, 100 * MIB, "compute"),
        (own, 100 * MIB, "graphics"),
        (hidden, 300 * MIB, "mps"),
        (1, 5 * MIB, "graphics"),
    )
    nvml_stub.show([StubGpu(processes=listed)])
    processes = Nvml().read().gpus[0].processes
    assert not isinstance(processes, Missing)
    assert [(p.pid, p.memory_bytes, p.kind) for p in processes] == [
        (hidden, 300 * MIB, "compute"),
        (own, 100 * MIB, "compute"),
        (1, 5 * MIB, "graphics"),
    ]
    assert (processes[0].command, processes[0].user) == (ANOTHER_CONTAINER, "?")
    assert "pytest" in processes[1].command or "python" in processes[1].command
    assert processes[1].user not in ("", "?")


def test_a_process_under_mig_is_listed_for_each_instance(nvml_stub: NvmlStub) -> None:
    nvml_stub.show([StubGpu({"mig": 1}, processes=((NO_SUCH_PID, 10, "compute"), (NO_SUCH_PID, 20, "compute")))])
    processes = Nvml().read().gpus[0].processes
    assert not isinstance(processes, Missing)
    assert [p.memory_bytes for p in processes] == [30]


def test_memory_of_a_process_that_is_not_told_is_missing(nvml_stub: NvmlStub) -> None:
    nvml_stub.show([StubGpu(processes=((NO_SUCH_PID, -1, "compute"), (os.getpid(), 7, "compute")))])
    processes = Nvml().read().gpus[0].processes
    assert not isinstance(processes, Missing)
    assert [p.pid for p in processes] == [os.getpid(), NO_SUCH_PID]
    assert isinstance(processes[1].memory_bytes, Missing)


def test_process_lists_of_older_drivers_and_of_none(nvml_stub: NvmlStub) -> None:
    held = ((NO_SUCH_PID, 10, "compute"),)
    nvml_stub.show(
        [StubGpu({"processes_v3": "!13"}, held), StubGpu({"processes_v3": "!3", "processes_v2": "!3"}, held)]
    )
    old, none = Nvml().read().gpus
    assert not isinstance(old.processes, Missing)
    assert [p.memory_bytes for p in old.processes] == [10]
    assert none.processes == Missing("not supported by this GPU")


@pytest.mark.parametrize("key", ["lost", "handle", "utilization"])
def test_a_gpu_that_falls_off_the_bus_stays_listed(nvml_stub: NvmlStub, key: str) -> None:
    nvml = Nvml()
    nvml_stub.show([StubGpu(), StubGpu(), StubGpu()])
    before = nvml.read().gpus
    lost = 15 if key == "lost" else "!15" if key == "utilization" else 15
    nvml_stub.show([StubGpu(), StubGpu({key: lost}), StubGpu()])
    after = nvml.read().gpus
    assert after[0] == before[0]
    assert after[2] == before[2]
    assert (after[1].index, after[1].uuid, after[1].name) == (1, uuid_of(1), "NVIDIA H200")
    assert figures(after[1]) == [Missing(LOST)] * 7
    assert after[1].refusal == LOST
    assert after[1].memory_total_bytes == 143771 * MIB

    nvml_stub.show([StubGpu(), StubGpu(), StubGpu()])
    assert nvml.read().gpus == before


def test_a_gpu_lost_before_the_first_reading(nvml_stub: NvmlStub) -> None:
    nvml = Nvml()
    nvml_stub.show([StubGpu({"handle": 15}), StubGpu()])
    lost, whole = nvml.read().gpus
    assert (lost.index, lost.name, lost.refusal) == (0, "unknown GPU", LOST)
    assert whole.refusal is None
    nvml_stub.show([StubGpu(), StubGpu()])
    assert [gpu.uuid for gpu in nvml.read().gpus] == [uuid_of(0), uuid_of(1)]


def test_a_gpu_that_the_driver_no_longer_lists(nvml_stub: NvmlStub) -> None:
    nvml = Nvml()
    nvml_stub.show([StubGpu(), StubGpu()])
    nvml.read()
    nvml_stub.show([StubGpu({"uuid": uuid_of(1)})])  # the driver numbers anew: the second is the first now
    here, gone = nvml.read().gpus
    assert (here.index, here.uuid, here.refusal) == (0, uuid_of(1), None)
    assert (gone.index, gone.uuid, gone.refusal) == (0, uuid_of(0), VANISHED)


def test_a_driver_that_was_reloaded_is_opened_again_within_the_reading(nvml_stub: NvmlStub) -> None:
    nvml = Nvml(Clock())
    for session in range(1, 5):
        nvml_stub.show([StubGpu({"temperature": 40 + session})], session=session)
        assert [gpu.temperature_c for gpu in nvml.read().gpus] == [40 + session]


def test_a_driver_that_is_gone_is_asked_ever_less_often(nvml_stub: NvmlStub) -> None:
    clock = Clock()
    nvml = Nvml(clock)
    nvml_stub.show([StubGpu(), StubGpu()])
    nvml.read()
    nvml_stub.show([StubGpu(), StubGpu()], session=1, init=9)
    for _ in range(8):
        reading = nvml.read()
        assert [gpu.index for gpu in reading.gpus] == [0, 1]
        assert reading.no_gpus is None
        assert all(gpu.refusal is not None and "modprobe" in gpu.refusal for gpu in reading.gpus)
        clock.now += 30
    clock.now -= 30
    nvml_stub.show([StubGpu(), StubGpu()], session=1)
    clock.now += 29
    assert nvml.read().gpus[0].refusal is not None
    clock.now += 1
    assert [gpu.refusal for gpu in nvml.read().gpus] == [None, None]


def test_persistence_mode(nvml_stub: NvmlStub) -> None:
    nvml_stub.show([StubGpu(), StubGpu({"persistence": 0}), StubGpu({"persistence": "!3"})])
    nvml = Nvml()
    nvml.read()
    assert nvml.persistence() == {
        uuid_of(0): True,
        uuid_of(1): False,
        uuid_of(2): Missing("not supported by this GPU"),
    }


def test_a_sample_joins_gpus_and_host(nvml_stub: NvmlStub) -> None:
    nvml_stub.show([StubGpu()])
    box = BoxSampler(Nvml(), HostReader(), clock=lambda: 5.0).sample()
    assert (box.at, box.driver_version, box.cuda_version, box.simulated) == (5.0, "580.65.06", "13.0", False)
    assert [gpu.uuid for gpu in box.gpus] == [uuid_of(0)]
    assert box.host.memory_available_bytes > 0
    assert load(Box, dump(box)) == box


READ = """
import json
from backends.gpu_readings import NOT_WATCHED
from backends.gpus.host import HostReader
from backends.gpus.nvml import Nvml
reading = Nvml().read()
print(json.dumps({"uuids": [gpu.uuid for gpu in reading.gpus], "no_gpus": reading.no_gpus}))
"""


def test_a_process_of_its_own_loads_the_stub_by_name(nvml_stub: NvmlStub) -> None:
    nvml_stub.show([StubGpu()] * 2)
    assert _read_in_a_new_process(nvml_stub.environ()) == {"uuids": [uuid_of(0), uuid_of(1)], "no_gpus": None}


def test_no_library_at_all(tmp_path: Path) -> None:
    broken = tmp_path / "libnvidia-ml.so.1"  # found first, and no library: as on a machine that has none
    broken.write_text("")
    answer = _read_in_a_new_process(os.environ | {"LD_LIBRARY_PATH": str(tmp_path)})
    assert answer["uuids"] == []
    assert "libnvidia-ml.so.1" in str(answer["no_gpus"])


def _read_in_a_new_process(environ: dict[str, str]) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_links_and_numa_nodes_tell_which_gpus_are_near(nvml_stub: NvmlStub) -> None:
    def at(link: int | None, node: int | None) -> StubGpu:
        return StubGpu({"nvlink": link, "numa": node})

    nvml_stub.show([at(1, 0), at(2, 0), at(1, 1), at(None, None)])
    gpus = Nvml().read().gpus
    assert [gpu.nvlink for gpu in gpus] == [(uuid_of(2),), (), (uuid_of(0),), ()]
    assert [gpu.same_node for gpu in gpus] == [(uuid_of(1),), (uuid_of(0),), (), ()]
