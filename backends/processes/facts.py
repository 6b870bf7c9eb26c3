"""What a shim wrote down about its processes, and whether those still live: the keeper's view."""

from __future__ import annotations

import json
import os
import signal as signals
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from backends.processes import procfs
from backends.processes.spec import SCHEMA
from backends.snapshots import Missing

SHIM_NAME = "gpubox-shim"
"""What the kernel calls a shim."""

Phase = Literal["starting", "running", "stopping", "exited"]


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, told from any other that had or will have its pid: `start_ticks` counts clock ticks since boot."""

    boot_id: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class StepExit:
    """How a step's main process ended: `code`, or the `signal` that killed it; `at` is Unix seconds."""

    at: float
    code: int | None
    signal: int | None
    step: str


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """One `process.json`; docs/architecture.md says what each field means."""

    shim: Identity
    guard: Identity
    engine: Identity | None
    step: str
    launched_at: float
    phase: Phase
    stop_asked_at: float | None
    exit: StepExit | None
    error: str | None
    log: Path
    dropped_lines: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The newest line that the engine rewrote in place; `at` is Unix seconds."""

    at: float
    text: str


@cache
def current_boot_id() -> str:
    """Return the id of this boot of the machine; raises OSError."""
    return procfs.boot_id()


def identity_of(pid: int) -> Identity | None:
    """Return who has this pid now; None where nobody does."""
    ticks = procfs.start_ticks(pid)
    return None if ticks is None else Identity(current_boot_id(), pid, ticks)


def is_alive(identity: Identity) -> bool:
    """Return whether this very process lives; a zombie is dead."""
    if identity.boot_id != current_boot_id():
        return False
    found = procfs.stat(identity.pid)
    return found is not None and found[2] == identity.start_ticks and found[0] not in "ZX"


def age_s(identity: Identity) -> float:
    """Return how long ago a process of this boot was started, by a clock that nobody can set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - identity.start_ticks / os.sysconf("SC_CLK_TCK")


def open_pidfd(identity: Identity) -> int | None:
    """Return a pidfd of this very process, readable once it ends; None where it is gone. The caller closes it."""
    if identity.boot_id != current_boot_id():
        return None
    try:
        fd = os.pidfd_open(identity.pid)
    except OSError:
        return None
    # The pidfd now holds the pid: whoever has it cannot change between this check and a later signal.
    if not is_alive(identity):
        os.close(fd)
        return None
    return fd


def signal(identity: Identity, number: int) -> bool:
    """Send a signal to this very process; False where it is gone. Raises PermissionError."""
    fd = open_pidfd(identity)
    if fd is None:
        return False
    try:
        signals.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def read_facts(path: Path) -> ProcessFacts | Missing:
    """Read a `process.json`; where it is absent or makes no sense, say why."""
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        if raw["schema"] != SCHEMA:
            return Missing(f"{path} has schema {raw['schema']}, this gpubox reads {SCHEMA}")
        boot_id, engine, end = raw["boot_id"], raw["engine"], raw["exit"]
        return ProcessFacts(
            shim=Identity(boot_id, **raw["shim"]),
            guard=Identity(boot_id, **raw["guard"]),
            engine=Identity(boot_id, **engine) if engine else None,
            step=raw["step"],
            launched_at=raw["launched_at"],
            phase=raw["phase"],
            stop_asked_at=raw["stop_asked_at"],
            exit=StepExit(**end) if end else None,
            error=raw["error"],
            log=Path(raw["log"]),
            dropped_lines=raw["dropped_lines"],
        )
    except OSError as error:
        return Missing(f"{path}: {error.strerror}")
    except (ValueError, TypeError, KeyError) as error:
        return Missing(f"{path} is not a shim's record: {error!r}")


def ask_again(lock: Path) -> bool:
    """Ask the shim that holds a server's lock to write its facts anew; False where none holds it, or not to be found.

    For facts that were damaged on disk. The kernel tells who holds a lock.
    """
    try:
        inode = lock.stat().st_ino
        rows = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return False
    for row in rows:
        if len(row) > 5 and row[1] == "FLOCK" and row[4].isdecimal() and row[5].rpartition(":")[2] == str(inode):
            shim = identity_of(int(row[4]))
            if shim is not None and _name(shim.pid) == SHIM_NAME:
                return signal(shim, signals.SIGUSR1)
    return False


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def read_progress(path: Path) -> Progress | None:
    """Read a `progress.json`; None where there is none, or none that makes sense."""
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        return Progress(at=raw["at"], text=raw["text"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
