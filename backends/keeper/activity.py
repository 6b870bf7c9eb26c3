"""What a process tree uses up, and what it waits for, as /proc shows it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from backends.keeper.progress import Activity
from backends.processes import procfs

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_RANKS = re.compile(r"world_size=(?:[2-9]|\d\d+) rank=|using nccl==|NCCL")
_SYSCALLS = {0: "read", 7: "poll", 42: "connect", 61: "wait4", 73: "flock", 202: "futex", 232: "epoll_wait"}
"""On x86-64, of those that a process may hang in."""

NOTHING_SEEN = "nothing that can be seen"


def read_activity(root: int, gpu_bytes: int = 0) -> Activity:
    """Return what all descendants of `root` have used up so far and hold; `gpu_bytes` is added as it is."""
    pids = [pid for pid, _ in procfs.descendants(root)]
    readings = [one for pid in pids if (one := _reading(pid)) is not None]
    return Activity(
        pids=frozenset(pids),
        cpu_s=sum(cpu_s for cpu_s, _, _, _ in readings),
        io_bytes=sum(io for _, io, _, _ in readings),
        disk_bytes=sum(disk for _, _, disk, _ in readings),
        memory_bytes=sum(memory for _, _, _, memory in readings),
        gpu_bytes=gpu_bytes,
    )


def waits_for(root: int, lock_folders: Iterable[Path], last_line: str) -> str:
    """Return what the tree below `root` waits for, as far as that can be told.

    A process that somebody has stopped comes first, then a lock that another process holds (`lock_folders` are where
    the engine's library keeps some), a disk, other ranks (by the `last_line` of the log), the network, and what the
    kernel says.
    """
    pids = [pid for pid, _ in procfs.descendants(root)]
    return (
        _stopped(pids)
        or _lock(pids, lock_folders)
        or _disk(pids)
        or ("the other ranks" if _RANKS.search(last_line) else "")
        or _network(pids)
        or _in_kernel(pids)
        or NOTHING_SEEN
    )


def _reading(pid: int) -> tuple[float, int, int, int] | None:
    """Return CPU seconds, bytes moved, read from a disk, and resident, of a process; None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        resident = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):
        return None
    io = _io(pid)
    disk = io.get("read_bytes", 0)
    return (int(fields[11]) + int(fields[12])) / _TICKS, io.get("rchar", 0) + io.get("wchar", 0) + disk, disk, resident


def _io(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}


def _stopped(pids: Sequence[int]) -> str:
    for pid in pids:
        found = procfs.stat(pid)
        if found is not None and found[0] in "Tt":
            return f"SIGCONT: pid {pid} has been stopped"
    return ""


def _lock(pids: Sequence[int], folders: Iterable[Path]) -> str:
    """Tell of a lock that is not the tree's: one it blocks on, or one in a folder whose locks it polls for."""
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return ""
    holders = {line[0]: int(line[4]) for line in lines if "->" not in line}
    for line in lines:
        if "->" in line and int(line[5]) in pids and (holder := holders.get(line[0], 0)) not in pids:
            return _held(f"a lock{_name_of(int(line[5]), line[6])}", holder)
    inodes = {int(line[5].rpartition(":")[2]): int(line[4]) for line in lines if "->" not in line}
    for folder in folders:
        for path in folder.glob("*.lock"):
            with contextlib.suppress(OSError):
                holder = inodes.get(path.stat().st_ino, 0)
                if holder and holder not in pids:
                    return _held(f"the lock {path.name}", holder)
    return ""


def _held(what: str, pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return f"{what} that another process holds"
    return f"{what} that pid {pid} ({command}) holds"


def _name_of(pid: int, device_and_inode: str) -> str:
    """Return the name of the file that `pid` has open with this inode, where it can be seen."""
    inode = int(device_and_inode.rpartition(":")[2])
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if link.stat().st_ino == inode:
                    return f" on {link.readlink().name}"
    return ""


def _disk(pids: Sequence[int]) -> str:
    for pid in pids:
        found = procfs.stat(pid)
        if found is not None and found[0] == "D":
            where = _wchan(pid)
            return f"the disk (pid {pid} sleeps uninterruptibly{f' in {where}' if where else ''})"
    return ""


def _network(pids: Sequence[int]) -> str:
    """Tell of a connection to another host, one that is not there yet first."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            for connection in psutil.Process(pid).net_connections("tcp"):
                here, there = connection.laddr, connection.raddr
                if there and there.ip != here.ip and not there.ip.startswith(("127.", "::1", "::ffff:127.")):
                    host = f"[{there.ip}]" if ":" in there.ip else there.ip
                    connects = connection.status == psutil.CONN_SYN_SENT
                    if connects or connection.status == psutil.CONN_ESTABLISHED:
                        found.append((not connects, f"{host}:{there.port}{' to answer' if not connects else ''}"))
    if not found:
        return ""
    established, address = min(found)
    return address if established else f"a connection to {address}"


def _in_kernel(pids: Sequence[int]) -> str:
    """Tell where the youngest process's main thread is in the kernel, where that may be seen."""
    for pid in reversed(pids):
        if where := _wchan(pid):
            return f"{NOTHING_SEEN} (pid {pid} is in {where})"
        with contextlib.suppress(OSError, ValueError):
            number = Path(f"/proc/{pid}/syscall").read_text().split()[0]
            if os.uname().machine == "x86_64" and (name := _SYSCALLS.get(int(number))):
                return f"{NOTHING_SEEN} (pid {pid} is in {name})"
    return ""


def _wchan(pid: int) -> str:
    try:
        where = Path(f"/proc/{pid}/wchan").read_text().strip()
    except OSError:
        return ""
    return "" if where == "0" else where
