"""How an engine ended, in words; and what only the machine can tell of it: the kernel's kills, who holds a port."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Protocol

SHELL_SIGNALS = 128
"""A shell's and a container's exit code for a signal is that much more than its number."""


class HowItEnded(Protocol):
    """An exit code, or the signal that killed it."""

    @property
    def code(self) -> int | None:
        """Exit code."""
        ...

    @property
    def signal(self) -> int | None:
        """Signal number."""
        ...


def killed_by(ended: HowItEnded | None) -> int | None:
    """Return the signal that ended it, also where a shell tells of it as code 137."""
    if ended is None:
        return None
    if ended.signal is not None:
        return ended.signal
    number = (ended.code or 0) - SHELL_SIGNALS
    return number if number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL) else None


def how_it_ended(ended: HowItEnded | None, *, oom_killed: bool | None = None) -> str:
    """Say how it ended; what is not proved is only perhaps so."""
    if ended is None:
        return "it ended, nobody saw how"
    number = killed_by(ended)
    if number is not None:
        name = signal.Signals(number).name if number in signal.valid_signals() else str(number)
        guess = ""
        if number == signal.SIGKILL and oom_killed is not False:
            guess = f",{'' if oom_killed else ' perhaps'} by the kernel for want of memory"
        return f"killed by {name}{guess}"
    if ended.code == 0:
        return "it ended with exit code 0, though nobody asked it to"
    return f"exit code {ended.code}"


def oom_kills(pid: int) -> int | None:
    """Return how often the kernel has killed for want of memory in the control group of a process; None: not told.

    Taken at a launch and again at its end, a higher number proves such a kill.
    """
    try:
        for row in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, group = row.split(":", 2)
            base = Path("/sys/fs/cgroup") / ("memory" if controllers == "memory" else "")
            if controllers not in ("", "memory"):
                continue
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    for line in (base / group.lstrip("/") / name).read_text().splitlines():
                        if line.startswith("oom_kill "):
                            return int(line.split()[1])
    except (OSError, ValueError):
        return None
    return None


def holder_of(port: int) -> str | None:
    """Return who listens on a TCP port now, as `pid 12 (python, of ann)`; None where nobody does or it is not seen."""
    import psutil

    try:
        listening = [c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and _listens(c)]
    except (psutil.Error, OSError):
        return None
    for pid in listening:
        if pid is None:
            continue
        try:
            process = psutil.Process(pid)
            return f"pid {pid} ({process.name()}, of {process.username()})"
        except psutil.Error:
            return f"pid {pid}"
    return "a process of another user" if listening else None


def _listens(connection: object) -> bool:
    return getattr(connection, "status", "") == "LISTEN"
