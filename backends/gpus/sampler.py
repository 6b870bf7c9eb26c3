"""One reading of the whole box: its GPUs through a `GpuReader`, its CPU and memory through a `HostReader`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from backends.gpus.host import HostReader
from backends.snapshots import Box, Gpu, Missing


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What the driver tells of all GPUs at one moment; `no_gpus` says why `gpus` is empty."""

    gpus: tuple[Gpu, ...]
    no_gpus: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryNow:
    """A GPU's memory at one moment: what is in use, and what is free beside what the driver keeps for itself."""

    used_bytes: int
    free_bytes: int


class GpuReader(Protocol):
    """Where readings of GPUs come from; they may block, and never raise for what the driver answers."""

    def read(self) -> GpuReading:
        """Read all GPUs now."""
        ...

    def memory(self, uuids: Sequence[str]) -> dict[str, MemoryNow | Missing]:
        """Read nothing but the memory of GPUs, by UUID; at any time, in any thread."""
        ...

    def held(self, uuids: Sequence[str]) -> dict[str, dict[int, int]]:
        """Read nothing but what processes hold of GPUs, in bytes by UUID and pid; at any time, in any thread."""
        ...


class BoxSampler:
    """Reads the box; blocking, so the keeper calls it in a thread."""

    def __init__(self, gpus: GpuReader, host: HostReader, clock: Callable[[], float] = time.time) -> None:
        self._gpus = gpus
        self._host = host
        self._clock = clock

    def sample(self) -> Box:
        """Return the box at this moment; `ownership` fills in owners and shares, the keeper grants."""
        reading = self._gpus.read()
        return Box(
            at=self._clock(),
            host=self._host.read(),
            gpus=reading.gpus,
            no_gpus=reading.no_gpus,
            driver_version=reading.driver_version,
            cuda_version=reading.cuda_version,
        )

    def memory(self, uuids: Sequence[str]) -> dict[str, MemoryNow | Missing]:
        """Return nothing but the memory of GPUs, by UUID; any thread may call it at any time."""
        return self._gpus.memory(uuids)

    def held(self, uuids: Sequence[str]) -> dict[str, dict[int, int]]:
        """Return what processes hold of GPUs, in bytes by UUID and pid; any thread may call it at any time."""
        return self._gpus.held(uuids)

    def host_available_bytes(self) -> int:
        """Return how much of the host's memory is to be had; any thread may call it at any time."""
        return self._host.memory()[1]
