"""CPU and memory of the box, as far as this process may use them."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil

from backends.snapshots import Host, Missing

_V1_UNLIMITED_BYTES = 1 << 60


class HostReader:
    """Reads CPU and memory without waiting: the CPU's utilization is that since the reading before.

    Where a cgroup (container, Slurm job) allows less memory than the machine has, that is the box's memory.
    """

    def __init__(self, cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
        self._cgroups = cgroups
        self._own = own
        self._has_read = False

    def read(self) -> Host:
        """Return the host at this moment."""
        total, available = self.memory()
        return Host(
            hostname=socket.gethostname(),
            cpu_count=psutil.cpu_count() or 1,
            cpu_utilization=self._cpu_utilization(),
            load_1m=_load_1m(),
            memory_total_bytes=total,
            memory_available_bytes=available,
        )

    def memory(self) -> tuple[int, int]:
        """Return the bytes of memory that there are, and those to be had."""
        memory = psutil.virtual_memory()
        total, available = memory.total, memory.available
        for limit, used in self._memory_limits():
            total = min(total, limit)
            available = min(available, max(0, limit - used))
        return total, available

    def _cpu_utilization(self) -> float | Missing:
        percent = psutil.cpu_percent(interval=None)
        if not self._has_read:
            self._has_read = True
            return Missing("this is the first reading")
        return min(1.0, percent / 100)

    def _memory_limits(self) -> list[tuple[int, int]]:
        """Return limit and use (bytes) of each cgroup of this process that has a limit; cache to reclaim is no use."""
        limits = []
        for folder, limit_name, used_name, cache_name in self._memory_groups():
            limit = _number(folder / limit_name)
            used = _number(folder / used_name)
            if limit is not None and used is not None and limit < _V1_UNLIMITED_BYTES:
                limits.append((limit, max(0, used - _stat(folder / "memory.stat", cache_name))))
        return limits

    def _memory_groups(self) -> list[tuple[Path, str, str, str]]:
        try:
            lines = self._own.read_text().splitlines()
        except OSError:
            return []
        groups: list[tuple[Path, str, str, str]] = []
        for line in lines:
            number, controllers, path = line.split(":", 2)
            if number == "0":
                groups += [(f, "memory.max", "memory.current", "inactive_file") for f in _upward(self._cgroups, path)]
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                groups += [(folder, *names) for folder in _upward(self._cgroups / "memory", path)]
        return groups


def _upward(root: Path, path: str) -> list[Path]:
    """Return the cgroup's folder and all above it; in a container only some of them exist."""
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # `max` is no limit
        return None


def _stat(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _load_1m() -> float | Missing:
    try:
        return psutil.getloadavg()[0]
    except OSError as error:
        return Missing(f"the load is not told: {error.strerror}")
