"""The files that one start's log consists of, found by what they are rather than by their names, which move."""

from __future__ import annotations

import os
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from backends.processes.logs import parts

_serials = count(1)


@dataclass(slots=True, eq=False)
class Part:
    """One open file of the log.

    Its bytes are those from `base` on in the log as a whole; `size` is how far it is known, `is_final` says that it
    will not grow any more. `breaks` are the line feeds of each block, -1 where they are not counted yet; they are
    counted up to `counted`.
    """

    fd: int
    inode: tuple[int, int]
    base: int
    size: int
    is_final: bool
    counted: int
    breaks: array[int] = field(default_factory=lambda: array("i"))
    lines: int = 0
    ends_open: bool = False
    serial: int = field(default_factory=lambda: next(_serials))

    @property
    def end(self) -> int:
        """Where in the log as a whole it ends."""
        return self.base + self.size


def opened(path: Path, base: int = 0) -> Part:
    """Open a part, of which nothing is known yet; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    status = os.fstat(fd)
    return Part(fd, (status.st_dev, status.st_ino), base, 0, is_final=False, counted=0)


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
