"""Processes as /proc shows them: who they are, who descends from whom, and how a whole tree is killed.

The shim runs this: standard library only, and no import that costs memory (`typing`, `dataclasses`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: object) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"prctl {option}")


def become_subreaper() -> None:
    """Have every orphan among this process's descendants reparented to it; raises OSError."""
    _prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def die_with_parent() -> None:
    """Have this process killed when the thread that forked it ends; raises OSError."""
    _prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def rename(name: str) -> None:
    """Set the short name (15 bytes) that `ps` and `top` show for this process."""
    _prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()))


def boot_id() -> str:
    """Return the id that the kernel drew when it booted; raises OSError."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def stat(pid: int) -> tuple[str, int, int] | None:
    """Return a process's state letter, parent pid, and start in clock ticks since boot; None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except OSError:
        return None
    # The command's name stands in parentheses and may itself hold spaces and parentheses.
    fields = line[line.rfind(b")") + 2 :].split()
    return fields[0].decode(), int(fields[1]), int(fields[19])


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where it is gone."""
    found = stat(pid)
    return found[2] if found else None


def pids() -> list[int]:
    """Return the pids that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(root: int) -> list[tuple[int, int]]:
    """Return `(pid, start ticks)` of all that descends from `root`, zombies included, parents before their children."""
    children: dict[int, list[tuple[int, int]]] = {}
    for pid in pids():
        found = stat(pid)
        if found:
            children.setdefault(found[1], []).append((pid, found[2]))
    tree = list(children.get(root, ()))
    for pid, _ in tree:
        tree.extend(children.get(pid, ()))
    return tree


def send(pid: int, ticks: int, number: int) -> bool:
    """Signal the very process that started at `ticks`, never a later one with its pid; False where it cannot."""
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            return False
        handle = -1
    try:
        if start_ticks(pid) != ticks:
            return False
        if handle >= 0:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if handle >= 0:
            os.close(handle)
    return True


def kill_descendants(root: int) -> None:
    """Send SIGKILL once to all that now descends from `root`; what was forked meanwhile needs another call."""
    for pid, ticks in descendants(root):
        send(pid, ticks, signal.SIGKILL)


def reap(status_of: dict[int, int]) -> bool:
    """Collect the ended children's wait statuses into `status_of` by pid; return whether any child is left.

    For a subreaper, no child left means no descendant left.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        status_of[pid] = status
