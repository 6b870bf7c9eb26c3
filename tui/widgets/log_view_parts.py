"""The files that one start's log consists of, and the lines in their bytes."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backends.processes.logs import parts

_CONTROL = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CONTROL_BYTES = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of the log is known: lines `first` up to, not including, `end`; both only ever move outwards or on.

    `is_whole` says that the oldest line is known too; `problem` why the file cannot be read, if so.
    """

    first: int
    end: int
    size_bytes: int
    is_whole: bool
    exists: bool
    problem: str | None


@dataclass(slots=True, eq=False)
class Part:
    """One open file of the log; `size` is how far it has been taken in."""

    fd: int
    inode: tuple[int, int]
    size: int


def opened(path: Path) -> Part:
    """Open a part, of which nothing is taken in yet; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    status = os.fstat(fd)
    return Part(fd, (status.st_dev, status.st_ino), 0)


def split_lines(data: bytes) -> list[str]:
    """Turn a block into its lines; each piece of bytes between line feeds is one, whatever it holds."""
    lines = data.decode("utf-8", "replace").split("\n")
    if data.endswith(b"\n"):
        lines.pop()
    return [_CONTROL.sub("", line).expandtabs() for line in lines] if _CONTROL_BYTES.search(data) else lines


def clean(data: bytes) -> str:
    """Turn the bytes of one line into text without tabs and control characters."""
    return _CONTROL.sub("", data.decode("utf-8", "replace")).expandtabs()


def listing(path: Path) -> list[tuple[tuple[int, int], Path]]:
    """Return the parts on disk, newest first; looks again where it met them while they were being renamed."""
    found, again = _scan(path), _scan(path)
    while found != again:
        found, again = again, _scan(path)
    return found


def _scan(path: Path) -> list[tuple[tuple[int, int], Path]]:
    found = []
    for part in reversed(parts(path)):
        with suppress(FileNotFoundError):
            status = part.stat()
            found.append(((status.st_dev, status.st_ino), part))
    return found
