"""Who a process is, for the lists of those that hold GPU memory."""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import psutil

COMMAND_LIMIT = 200
ANOTHER_CONTAINER = "hidden (another container)"
ANOTHER_USER = "hidden (another user)"
UNKNOWN_USER = "?"

DESCRIBED_FOR_S = 10.0
"""How long a description is kept: a process may give itself another command line without becoming another one."""
DESCRIBED_LIMIT = 4096

PART_BYTES = 4096

_SECRET_OPTION = re.compile(r"(--?(?:[\w-]*[-_])?(?:key|token|password|secret))(=.*)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as /proc shows it: `comm` is its short name, `tty` 0 where it has no terminal."""

    pid: int
    comm: str
    state: str
    parent: int
    session: int
    tty: int
    start_ticks: int

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended: a zombie has."""
        return self.state not in "ZX"


def see(pid: int) -> Seen | None:
    """Return what /proc shows of a process; None where there is none of that pid to be seen from here."""
    line = _read(f"/proc/{pid}/stat")
    if line is None:
        return None
    # The command's name stands in parentheses and may itself hold spaces and parentheses.
    begin, end = line.find(b"(") + 1, line.rfind(b")")
    fields = line[end + 2 :].split()
    comm = line[begin:end].decode(errors="replace")
    return Seen(pid, comm, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[4]), int(fields[19]))


def _read(path: str) -> bytes | None:
    """Read a small file of /proc, which is done for every process again and again; None where it is not told."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(file, PART_BYTES):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(file)


def line_of(pid: int, look: Callable[[int], Seen | None] = see) -> Iterator[Seen]:
    """Yield a process, its parent, and so on up to where /proc ends; `look` tells what is known of a pid."""
    known: set[int] = set()
    while pid > 0 and pid not in known and (seen := look(pid)) is not None:
        known.add(pid)
        yield seen
        pid = seen.parent


def cwd_of(pid: int) -> str | None:
    """Return a process's working folder; one that was removed ends in ` (deleted)`. None where it is not told."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - asked of each process of a user
    except OSError:
        return None


def argv_of(pid: int) -> list[str]:
    """Return a process's command line; empty where it has none, or none that may be read."""
    words = (_read(f"/proc/{pid}/cmdline") or b"").rstrip(b"\0").split(b"\0")
    return [word.decode(errors="replace") for word in words] if words != [b""] else []


def uid_of(pid: int) -> int | None:
    """Return whose a process is; None where it is gone."""
    try:
        return os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116 - asked of every process
    except OSError:
        return None


def resident_bytes(pid: int) -> int:
    """Return how much of the host's memory a process holds; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def started_at(start_ticks: int) -> float:
    """Return the Unix time at which a process started, from its clock ticks since boot."""
    return _booted_at() + start_ticks / os.sysconf("SC_CLK_TCK")


@cache
def _booted_at() -> float:
    return psutil.boot_time()


_described: dict[tuple[int, int, str], tuple[float, tuple[str, str]]] = {}


def describe(pid: int) -> tuple[str, str]:
    """Return the command line (secrets masked, at most COMMAND_LIMIT characters) and the user of a process.

    NVML may tell pids of the host or of other containers, which do not exist here: those are called hidden. Answers
    are kept for some seconds, since all of them are asked for each second.
    """
    seen = see(pid)
    if seen is None:
        return (ANOTHER_USER if _exists(pid) else ANOTHER_CONTAINER), UNKNOWN_USER
    key, now = (pid, seen.start_ticks, seen.comm), time.monotonic()
    kept = _described.get(key)
    if kept is not None and now - kept[0] < DESCRIBED_FOR_S:
        return kept[1]
    if len(_described) >= DESCRIBED_LIMIT:
        _described.clear()
    told = (command_line(argv_of(pid)) or seen.comm)[:COMMAND_LIMIT], user_of(pid)
    _described[key] = (now, told)
    return told


def user_of(pid: int) -> str:
    """Return the name of the user whose process it is, or `?`."""
    try:
        return _user_name(psutil.Process(pid).uids().real)
    except psutil.Error:
        return UNKNOWN_USER


def command_line(words: Sequence[str]) -> str:
    """Join a command line into one printable line, with `***` in place of the values of options such as `--api-key`."""
    shown: list[str] = []
    masking = False
    for word in words:
        option = _SECRET_OPTION.fullmatch(word)
        if option:
            shown.append(f"{option[1]}=***" if option[2] else option[1])
            masking = option[2] is None
        elif word.startswith("-"):
            shown.append(word)
            masking = False
        else:
            shown.append("***" if masking else word)
    joined = "".join(letter if letter.isprintable() else " " for letter in " ".join(shown))
    return " ".join(joined.split())


def _exists(pid: int) -> bool:
    """Tell whether there is such a process although /proc does not show it (`hidepid`)."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@lru_cache(maxsize=256)
def _user_name(uid: int) -> str:
    """Names come from LDAP on some boxes, too slowly to ask every second."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
