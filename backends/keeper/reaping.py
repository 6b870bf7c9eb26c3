"""Ending what is not a server's: orphans of ours at once, foreign processes where somebody asked for that very one.

Whoever is asked for is told by pid and start ticks, looked at again, and signalled through a pidfd: never a later
process that was given its pid.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from backends import paths
from backends.errors import ConflictError
from backends.gpus.ownership import Origin, Origins
from backends.gpus.processes import describe, line_of
from backends.keeper.launching import readable
from backends.orphans import Reaped
from backends.processes import procfs
from backends.processes.facts import Identity, current_boot_id, open_pidfd
from backends.processes.shm import FOLDER, PREFIXES, used_by
from backends.snapshots import Box, Missing, Owner

T = TypeVar("T")
R = TypeVar("R")

TERM_S = 5.0
"""How long a foreign process has to end by itself before it is killed."""

KILL_S = 10.0
LOOK_LIMIT_S = 2.0


class Reaper:
    """Ends processes one request at a time; `roots` are the shims' pids with their servers' names."""

    def __init__(self, roots: Callable[[], Mapping[int, str]]) -> None:
        self._roots = roots

    async def reap(self, box: Box, pid: int, start_ticks: int, *, foreign: bool, known: frozenset[int]) -> Reaped:
        """End a process and return once it is gone.

        Without `foreign` it must be an orphan of ours. With it, it must hold memory on a GPU of `box`, or be one of
        the `known` model servers. Raises ConflictError where it is neither, where it has ended, and where it may not
        be signalled.
        """
        identity = Identity(current_boot_id(), pid, start_ticks)
        handle = open_pidfd(identity)
        if handle is None:
            raise ConflictError(f"pid {pid} has ended already", "gpubox status shows what is there now")
        try:
            origin = await asyncio.to_thread(_origin, pid, self._roots())
            if foreign:
                _check_foreign(box, pid, origin, known)
            elif origin.owner is not Owner.ORPHAN:
                raise ConflictError(f"pid {pid} is no orphan of gpubox", "gpubox reap lists those that there are")
            memory = await _in_time(used_by, pid)
            sent = await _end(handle, pid, gently=foreign)
        finally:
            os.close(handle)
        removed = await _in_time(_clean, memory) if memory else None
        return Reaped(pid, sent, removed or 0)


def _origin(pid: int, roots: Mapping[int, str]) -> Origin:
    return Origins(paths.state_dir() / "servers", roots).of(pid)


def _check_foreign(box: Box, pid: int, origin: Origin, known: frozenset[int]) -> None:
    if origin.owner is Owner.SERVER:
        raise ConflictError(f"pid {pid} is a process of server {origin.server}", f"gpubox stop {origin.server}")
    ours = {os.getpid(), *(seen.pid for seen in line_of(os.getpid()))}
    if pid in ours:
        raise ConflictError(f"pid {pid} is the keeper, or has started it", "gpubox shutdown ends the keeper")
    on_gpu = {p.pid for gpu in box.gpus if not isinstance(gpu.processes, Missing) for p in gpu.processes}
    if pid not in on_gpu | known and origin.owner is not Owner.ORPHAN:
        raise ConflictError(f"pid {pid} holds no GPU memory and is no model server", "gpubox leaves it alone")


async def _end(handle: int, pid: int, *, gently: bool) -> str:
    """Signal a process until it is gone; returns the name of the last signal that it was sent."""
    steps = [(signal.SIGTERM, TERM_S)] if gently else []
    for number, patience_s in (*steps, (signal.SIGKILL, KILL_S)):
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return number.name
        except PermissionError:
            _, user = describe(pid)
            raise ConflictError(f"pid {pid} is {user}'s: only {user} or root can end it", f"ask {user}") from None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await readable(handle)
                return number.name
    raise ConflictError(
        f"pid {pid} was killed, but has not ended after {KILL_S:.0f} s: it hangs in the kernel",
        "a driver that hangs needs a reset of its GPU, or a reboot",
    )


async def _in_time(look: Callable[[T], R], subject: T) -> R | None:
    """Run a look through /proc in a thread, which hangs where the driver does; None where it takes too long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_LIMIT_S):
            return await asyncio.to_thread(look, subject)
    return None


def _clean(memory: set[tuple[int, int]]) -> int:
    """Remove the shared-memory files among `memory` (device, inode) that nobody uses any more; returns how many."""
    left = {}
    for path in Path(FOLDER).iterdir():
        with contextlib.suppress(OSError):
            status = path.lstat()
            if path.name.startswith(PREFIXES) and status.st_uid == os.geteuid():
                left[status.st_dev, status.st_ino] = path
    left = {identity: path for identity, path in left.items() if identity in memory}
    for pid in procfs.pids() if left else ():
        for identity in used_by(pid):
            left.pop(identity, None)
    removed = 0
    for path in left.values():
        with contextlib.suppress(OSError):
            path.unlink()
            removed += 1
    return removed
