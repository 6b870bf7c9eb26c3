"""Reading a log of any size in bounded memory: its parts in order, a long one's middle only where engines die in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backends.processes.logs import parts

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 16 << 20
TAIL_BYTES = 32 << 20
LONGEST_LINE_BYTES = 16 << 10

_DEADLY = (
    b"failed to start",
    b"hit an exception",
    b"fatal error",
    b"out of memory",
    b"Out of memory",
    b"died unexpectedly",
    b"exited unexpectedly",
    b"non-default args",
)


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line as it stands in part number `part` (from 0) of a log, at `number` (from 1) of that part."""

    part: int
    number: int
    text: str


def log_parts(path: Path) -> list[Path]:
    """Return the files that make up a log, oldest first; raises OSError where there is none."""
    found = parts(path)
    if not found:
        path.stat()
    return found


def raw_lines(files: list[Path]) -> Iterator[RawLine]:
    """Yield lines with their numbers: all of a log's head and tail, and of its middle the blocks where an engine died.

    Lines longer than 16 KiB are cut. Raises OSError.
    """
    sizes = [file.stat().st_size for file in files]
    total, passed = sum(sizes), 0
    for part, (file, size) in enumerate(zip(files, sizes, strict=True)):
        yield from _part_lines(file, part, passed, total)
        passed += size


def _part_lines(file: Path, part: int, passed: int, total: int) -> Iterator[RawLine]:
    number, rest, cut, read_next = 1, b"", False, False
    with file.open("rb", buffering=0) as source:
        while block := source.read(BLOCK_BYTES):
            at, passed = passed, passed + len(block)
            is_middle = at >= HEAD_BYTES and passed <= total - TAIL_BYTES
            deadly = is_middle and any(sign in block for sign in _DEADLY)
            if is_middle and not deadly and not read_next:
                # The line that runs into this block was not seen whole, nor is the one that leaves it.
                number, rest, cut = number + block.count(b"\n"), b"", True
                continue
            read_next = deadly
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            for line in lines:
                if not cut:
                    yield RawLine(part, number, line[:LONGEST_LINE_BYTES].decode("utf-8", "replace"))
                number, cut = number + 1, False
            if len(rest) > LONGEST_LINE_BYTES:
                rest = rest[:LONGEST_LINE_BYTES]
    if rest and not cut:
        yield RawLine(part, number, rest.decode("utf-8", "replace"))
