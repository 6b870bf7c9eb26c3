"""A stand-in for the NVIDIA driver: nvml_stub.c compiled once, and the box it shows written by each test."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pynvml
import pytest

MIB = 2**20
SOURCE = Path(__file__).with_name("nvml_stub.c")


@dataclass(frozen=True)
class StubGpu:
    """One GPU's section; `readings` replace or, with None, leave out what an idle H200 answers. `!N` is error N."""

    readings: dict[str, object] = field(default_factory=dict)
    processes: tuple[tuple[int, int, str], ...] = ()

    def section(self, index: int) -> list[str]:
        idle: dict[str, object] = {
            "uuid": uuid_of(index),
            "name": "NVIDIA H200",
            "bus": f"00000000:{0x18 + index:02X}:00.0",
            "memory_total": 143771 * MIB,
            "memory_reserved": 612 * MIB,
            "memory_used": 4 * MIB,
            "utilization": 0,
            "temperature": 31,
            "power_mw": 76_500,
            "power_limit_mw": 700_000,
            "persistence": 1,
            "mig": 0,
            "capability": 90,
            "clock": 345,
            "memory_clock": 3201,
            "pstate": 0,
            "compute_mode": 0,
            "display": 0,
            "ecc_corrected": 0,
            "ecc_uncorrected": 0,
            "throttle": 1,
            "events": 31,
        }
        readings = idle | self.readings
        lines = [f"{key} = {value}" for key, value in readings.items() if value is not None]
        return ["[gpu]", *lines, *(f"process = {pid} {size} {kind}" for pid, size, kind in self.processes)]


def uuid_of(index: int) -> str:
    return f"GPU-{index:08x}-1111-2222-3333-444444444444"


@dataclass(frozen=True)
class NvmlStub:
    """The compiled library and the file that it answers from."""

    library: Path
    scenario: Path

    def show(self, gpus: Sequence[StubGpu] = (), **system: object) -> None:
        """Replace the whole box, but for what stand-in engines hold of it (`living`).

        `system` may set driver, cuda, init (an error code) and session.
        """
        lines = [f"{key} = {value}" for key, value in ({"driver": "580.65.06", "cuda": 13000} | system).items()]
        with self.scenario.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held = self._held()
            for index, gpu in enumerate(gpus):
                lines += gpu.section(index) + held.get(index, [])
            new = self.scenario.with_suffix(".new")
            new.write_text("\n".join(lines) + "\n")
            new.replace(self.scenario)

    def _held(self) -> dict[int, list[str]]:
        """Return the lines that engines have written into each GPU's section."""
        sections = self.scenario.read_text().split("[gpu]\n")[1:] if self.scenario.exists() else []
        living = {
            at: [line for line in text.splitlines() if line.startswith("living")] for at, text in enumerate(sections)
        }
        return {index: lines for index, lines in living.items() if lines}

    def environ(self) -> dict[str, str]:
        """Return the environment in which a process of its own loads the stub as its libnvidia-ml.so.1."""
        return os.environ | {"LD_LIBRARY_PATH": str(self.library.parent), "GPUBOX_NVML_STUB": str(self.scenario)}


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the NVML stub")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    # No soname: a process in which the stub was loaded by its path must still find the driver's own library by name.
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
    return library


@pytest.fixture
def nvml_stub(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlStub:
    """The stub in place of the driver's library within this process; it shows a driver that is not loaded."""
    stub = NvmlStub(nvml_library, tmp_path / "nvml.ini")
    monkeypatch.setenv("GPUBOX_NVML_STUB", str(stub.scenario))
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(nvml_library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return stub
