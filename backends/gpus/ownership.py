"""Whose memory on a GPU is, to the last MiB: servers, runs, foreign processes, orphans, and what nobody accounts for.

A process is a server's while it descends from the server's shim, which as a subreaper keeps all that it ever started.
An orphan is what lives on after shim and guard were both killed: it still stands in the launch's folder, or in a
session of the launch's, has no terminal, and the launch was never written down as ended. Markers in command line and
environment would not do: vLLM's children rewrite both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from backends.gpus.processes import (
    ANOTHER_CONTAINER,
    Seen,
    argv_of,
    cwd_of,
    describe,
    line_of,
    resident_bytes,
    see,
    started_at,
    uid_of,
)
from backends.orphans import Orphan
from backends.processes import procfs
from backends.processes.facts import ProcessFacts, current_boot_id, is_alive, read_facts
from backends.snapshots import Box, Gpu, GpuProcess, Missing, Owner, Share

DRIVERS_OWN = "the driver's own"
DRIVERS_OWN_BYTES = 1 << 30
"""More than this beyond what the processes hold is not the driver's own."""

UNSEEN = "no process is listed for it: a container may hide its pids"
ELSEWHERE = "in another container, whose pids mean nothing here"
PROBABLY_ORPHAN = "its parent is gone: probably an orphan"

FACTS_LIMIT = 1024

_facts: dict[Path, tuple[tuple[int, int, int], ProcessFacts]] = {}
_DELETED = " (deleted)"
_KEEPERS_OWN = ("gpubox-shim", "gpubox-guard")
_INITS = ("systemd", "init", "tini", "dumb-init", "docker-init", "catatonit", "s6-svscan", "containerd-shim")


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose a process is: `server` names the server of ours that it belongs to, or was left by."""

    owner: Owner
    server: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class DeadLaunch:
    """A launch whose shim and guard are both gone although it never ended: what is left of it are orphans."""

    server: str
    folder: Path
    since_ticks: int
    sessions: frozenset[int]


def dead_launches(servers: Path) -> tuple[DeadLaunch, ...]:
    """Return the launches below the folder of all servers that may have left processes behind."""
    found = []
    for path in servers.glob("*/*/process.json"):
        facts = _facts_at(path)
        if isinstance(facts, Missing) or facts.phase == "exited" or facts.shim.boot_id != current_boot_id():
            continue
        if is_alive(facts.shim) or is_alive(facts.guard):
            continue
        # A session's number is not given away again while a process of the session lives.
        sessions = {one.pid for one in (facts.shim, facts.guard, facts.engine) if one is not None}
        launch = DeadLaunch(path.parent.parent.name, path.parent, facts.shim.start_ticks, frozenset(sessions))
        found.append(launch)
    return tuple(found)


def _facts_at(path: Path) -> ProcessFacts | Missing:
    """Return what a shim wrote down, parsed again only where it has been written again: that is always a new file."""
    try:
        found = path.stat()
    except OSError as error:
        return Missing(f"{path}: {error.strerror}")
    written = found.st_ino, found.st_mtime_ns, found.st_size
    known = _facts.get(path)
    if known is not None and known[0] == written:
        return known[1]
    facts = read_facts(path)
    if len(_facts) >= FACTS_LIMIT:
        _facts.clear()
    if not isinstance(facts, Missing):
        _facts[path] = written, facts
    return facts


class Origins:
    """Tells whose processes are at one moment; `roots` are the shims' pids with their servers' names.

    `servers` is the folder below which each server has one for each launch. Make a new one for each reading.
    """

    def __init__(self, servers: Path, roots: Mapping[int, str]) -> None:
        self._servers = os.path.realpath(servers)
        self._roots = roots
        self._dead = dead_launches(servers)
        self._seen: dict[int, Seen | None] = {}

    def see(self, pid: int) -> Seen | None:
        """Return what /proc shows of a process; processes have ancestors in common, and each is looked at once."""
        if pid not in self._seen:
            self._seen[pid] = see(pid)
        return self._seen[pid]

    def of(self, pid: int) -> Origin:
        """Return whose a process is."""
        line = list(line_of(pid, self.see))
        if not line:
            hidden = describe(pid)[0] == ANOTHER_CONTAINER
            return Origin(Owner.UNATTRIBUTED if hidden else Owner.FOREIGN)
        server = next((self._roots[one.pid] for one in line if one.pid in self._roots), None)
        if server is not None:
            return Origin(Owner.SERVER, server)
        left_by = self._left_by(line)
        if left_by is not None:
            return Origin(Owner.ORPHAN, left_by)
        return Origin(Owner.FOREIGN, note=PROBABLY_ORPHAN if _has_lost_its_parent(line) else "")

    def orphans(self, box: Box) -> tuple[Orphan, ...]:
        """Return all that servers of ours have left behind, on GPUs or not; looks at each process of this user."""
        held: dict[int, list[tuple[int, int | Missing]]] = {}
        for gpu in box.gpus:
            for process in () if isinstance(gpu.processes, Missing) else gpu.processes:
                held.setdefault(process.pid, []).append((gpu.index, process.memory_bytes))
        found = []
        for pid in procfs.pids():
            if uid_of(pid) != os.geteuid() or not self._may_be_left(pid):
                continue
            origin, seen = self.of(pid), self.see(pid)
            if origin.owner is not Owner.ORPHAN or origin.server is None or seen is None:
                continue
            command, user = describe(pid)
            figures = [size for _, size in held.get(pid, ())]
            unknown = next((size for size in figures if isinstance(size, Missing)), None)
            found.append(
                Orphan(
                    pid=pid,
                    start_ticks=seen.start_ticks,
                    server=origin.server,
                    command=command,
                    user=user,
                    gpus=tuple(index for index, _ in held.get(pid, ())),
                    gpu_bytes=unknown or sum(size for size in figures if not isinstance(size, Missing)),
                    host_bytes=resident_bytes(pid),
                    started_at=started_at(seen.start_ticks),
                )
            )
        return tuple(found)

    def _may_be_left(self, pid: int) -> bool:
        """Tell cheaply whether a process is worth a closer look."""
        if (cwd_of(pid) or "").startswith(self._servers + os.sep):
            return True
        seen = self.see(pid) if self._dead else None
        return seen is not None and any(seen.session in launch.sessions for launch in self._dead)

    def _left_by(self, line: list[Seen]) -> str | None:
        """Return the server that has left a process behind; None where none has."""
        process = line[0]
        # Nothing that a shim starts ever has a terminal; a person's shell that stands in the folder has one.
        if process.tty != 0 or not process.is_alive or any(one.comm in _KEEPERS_OWN for one in line):
            return None
        folder = cwd_of(process.pid)
        for launch in self._dead:
            stands_in_it = folder is not None and Path(folder.removesuffix(_DELETED)).is_relative_to(
                os.path.realpath(launch.folder)
            )
            if process.start_ticks >= launch.since_ticks and (
                stands_in_it or (process.session in launch.sessions and uid_of(process.pid) == os.geteuid())
            ):
                return launch.server
        if folder is not None and folder.endswith(_DELETED) and folder.startswith(self._servers + os.sep):
            inner = Path(folder.removesuffix(_DELETED)).relative_to(self._servers)
            return inner.parts[0] if len(inner.parts) > 1 else None
        return None


def attributed(box: Box, origins: Origins) -> Box:
    """Return the box with an owner for each process, and for each GPU's memory in use to whom it goes."""
    return replace(box, gpus=tuple(_attributed(gpu, origins) for gpu in box.gpus))


def _attributed(gpu: Gpu, origins: Origins) -> Gpu:
    if not isinstance(gpu.processes, Missing):
        gpu = replace(gpu, processes=tuple(_with_origin(process, origins) for process in gpu.processes))
    return replace(gpu, shares=shares_of(gpu))


def _with_origin(process: GpuProcess, origins: Origins) -> GpuProcess:
    origin, seen = origins.of(process.pid), origins.see(process.pid)
    return replace(
        process,
        owner=origin.owner,
        server=origin.server,
        note=origin.note,
        start_ticks=seen.start_ticks if seen else None,
    )


def shares_of(gpu: Gpu) -> tuple[Share, ...]:
    """Divide a GPU's memory in use among its owners, the largest first; the parts sum up to `memory_used_bytes`.

    What processes do not account for is unattributed, and said so. Where the used memory itself is not known, only
    what processes hold is told.
    """
    used = gpu.memory_used_bytes
    if isinstance(gpu.processes, Missing):
        return () if isinstance(used, Missing) else (Share(Owner.UNATTRIBUTED, gpu.processes.reason, used),)
    shares = _grouped(gpu.processes)
    if isinstance(used, Missing):
        return _sorted(shares)
    known = [share for share in shares if isinstance(share.memory_bytes, int)]
    rest = used - sum(share.memory_bytes for share in known if isinstance(share.memory_bytes, int))
    if rest < 0:
        return _sorted([*(share for share in shares if share not in known), *_trimmed(known, used)])
    if rest > 0:
        untold = [pid for share in shares if isinstance(share.memory_bytes, Missing) for pid in share.pids]
        shares.append(Share(Owner.UNATTRIBUTED, _why_unattributed(rest, untold), rest))
    return _sorted(shares)


def _grouped(processes: Iterable[GpuProcess]) -> list[Share]:
    groups: dict[tuple[Owner, str, bool], Share] = {}
    for process in processes:
        who, told = _who(process), isinstance(process.memory_bytes, int)
        before = groups.get((process.owner, who, told))
        share = Share(process.owner, who, process.memory_bytes, (process.pid,))
        if before is not None and isinstance(before.memory_bytes, int) and isinstance(process.memory_bytes, int):
            total = before.memory_bytes + process.memory_bytes
            share = replace(before, memory_bytes=total, pids=(*before.pids, process.pid))
        elif before is not None:
            share = replace(before, pids=(*before.pids, process.pid))
        groups[process.owner, who, told] = share
    return list(groups.values())


def _who(process: GpuProcess) -> str:
    if process.owner is Owner.UNATTRIBUTED:
        return ELSEWHERE
    if process.owner is not Owner.FOREIGN:
        return process.server or process.command
    return f"{process.user} {process.command}" + (" (graphics)" if process.kind == "graphics" else "")


def _why_unattributed(rest_bytes: int, untold: list[int]) -> str:
    if untold:
        pids = ", ".join(map(str, untold))
        return f"the driver does not tell how much of it pid {pids} holds"
    return DRIVERS_OWN if rest_bytes <= DRIVERS_OWN_BYTES else UNSEEN


def _trimmed(shares: list[Share], used_bytes: int) -> list[Share]:
    """Cut shares in proportion: processes are read a moment after the total, and may have grown by then."""
    total = sum(share.memory_bytes for share in shares if isinstance(share.memory_bytes, int))
    cut = [
        replace(share, memory_bytes=share.memory_bytes * used_bytes // total)
        for share in shares
        if isinstance(share.memory_bytes, int)
    ]
    lost = used_bytes - sum(share.memory_bytes for share in cut if isinstance(share.memory_bytes, int))
    first = cut[0].memory_bytes
    return [replace(cut[0], memory_bytes=lost + (first if isinstance(first, int) else 0)), *cut[1:]]


def _sorted(shares: list[Share]) -> tuple[Share, ...]:
    def key(share: Share) -> tuple[int, str]:
        return (1 if isinstance(share.memory_bytes, Missing) else -share.memory_bytes), share.who

    return tuple(sorted(shares, key=key))


def _has_lost_its_parent(line: list[Seen]) -> bool:
    """Tell whether an engine process of vLLM's was handed to an init: its API server is gone."""
    if not line[0].comm.startswith("VLLM::") or line[0].comm.startswith("VLLM::API"):
        return False
    parent = line[1] if len(line) > 1 else None
    if parent is None:
        return True
    with contextlib.suppress(IndexError):
        program = Path(argv_of(parent.pid)[0]).name
        # In a container the API server itself may be process 1.
        if program.startswith(("python", "vllm", "VLLM")):
            return False
    return parent.pid == 1 or parent.comm in _INITS
