"""What servers of ours may leave behind, and what becomes of it: as the keeper tells it to clients."""

from __future__ import annotations

from dataclasses import dataclass

from backends.snapshots import Missing


@dataclass(frozen=True, slots=True)
class Orphan:
    """A process that a server of ours left behind; `gpus` are the indices of those on which it holds `gpu_bytes`.

    `start_ticks` tells it from any other process of that pid; `started_at` is Unix seconds.
    """

    pid: int
    start_ticks: int
    server: str
    command: str
    user: str
    gpus: tuple[int, ...]
    gpu_bytes: int | Missing
    host_bytes: int
    started_at: float


@dataclass(frozen=True, slots=True)
class Reaped:
    """What became of a process: the signal that ended it, and how many shared-memory files it left were removed."""

    pid: int
    signal: str
    shared_memory_files: int
