"""A log's bytes as lines, and what stands in a line: its time, the process that wrote it, its level.

Standard library only and quick to import: the searching child (`scan.py`) starts with this and nothing else of ours.
"""

from __future__ import annotations

import os
import re
from itertools import accumulate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STAMP_LENGTH = 29
LONGEST_SHOWN = 8192
"""So many characters of a line are shown, and looked through for what is to be marked."""

BLOCK_BYTES = 1 << 16
LONGEST_LINE_BYTES = 1 << 20
"""What a line holds beyond that is not shown; the shim writes none longer than 64 KiB."""

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
"""A level's rank is its place in here plus one; 0 is no level."""

RANKS = {name: rank for rank, name in enumerate(LEVELS, 1)} | {"FATAL": 5}
ERROR = RANKS["ERROR"]
INFO = RANKS["INFO"]
OWN = "gpubox"

_GLOG = {"I": 2, "W": 3, "E": 4, "F": 5}
_OVERLAP = 4096
_CONTROL = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CONTROL_BYTES = [bytes([code]) for code in (*range(10), *range(11, 32), 127)]
_C1_BYTES = re.compile(rb"\xc2[\x80-\x9f]")
_HEAD = re.compile(
    r"(?:\((?P<process>[\w-]+)(?: rank=\d+)? pid=\d+\) )?"
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL|FATAL)(?=[: ])"
    r"|(?P<glog>[IWEF])\d{4} \d\d:\d\d:\d\d"
    r"|(?P<trace>Traceback \(most recent call)"
    r"|(?P<own>gpubox: ))?"
)


def text_start(line: str) -> int:
    """Return where a line's text begins, after its time stamp where it has one."""
    stamped = line[10:11] == "T" and line[STAMP_LENGTH : STAMP_LENGTH + 1] == " " and line[:4].isdecimal()
    return STAMP_LENGTH + 1 if stamped else 0


def heading(line: str) -> tuple[str | None, int]:
    """Return the process that a line names, and the rank of its level; None and 0 where it names none.

    A traceback begins an error. Lines of gpubox itself are information, of the process `gpubox`; a line with a level
    and no process is nobody's: ''.
    """
    found = _HEAD.match(line, text_start(line))
    assert found is not None
    process, level = found["process"], found["level"]
    if level:
        return process or "", RANKS[level]
    if found["glog"]:
        return process or "", _GLOG[found["glog"]]
    if found["own"]:
        return OWN, INFO
    return process, ERROR if found["trace"] else 0


def clean(text: str) -> str:
    """Take out control characters and escape sequences, and turn tabs into blanks."""
    return _CONTROL.sub("", text).expandtabs()


def is_clean(data: bytes) -> bool:
    """Say whether `clean` would change nothing."""
    # One look per byte is twenty times quicker than a regular expression for all of them.
    if any(byte in data for byte in _CONTROL_BYTES):
        return False
    return data.isascii() or _C1_BYTES.search(data) is None


def read_block(fd: int, number: int, size: int, block_bytes: int = BLOCK_BYTES) -> tuple[int, bytes]:
    """Read the lines that begin in a block of a file of which `size` bytes are known.

    Returns the offset of the first of them, and their bytes: whole lines, but for a last one that has no line feed yet
    or is longer than anyone shows. Nothing but `fd` is needed: blocks of `block_bytes` lie where they lie.
    """
    start = number * block_bytes
    stop = min(size, start + block_bytes)
    if start >= stop:
        return min(start, size), b""
    before = 1 if start else 0
    data = os.pread(fd, min(size, stop + _OVERLAP) - start + before, start - before)
    first = data.find(b"\n", 0, stop - start) + 1 if before else 0
    if before and not first:
        return stop, b""
    end = data.find(b"\n", stop - start + before - 1) + 1
    while not end and start - before + len(data) < size and len(data) < LONGEST_LINE_BYTES + block_bytes:
        more = os.pread(fd, min(block_bytes, size - start + before - len(data)), start - before + len(data))
        if not more:
            break
        at = more.find(b"\n") + 1
        end = len(data) + at if at else 0
        data += more
    return start - before + first, data[first : end or len(data)]


def split_lines(data: bytes) -> tuple[list[int], list[str]]:
    """Turn a block's bytes into its lines: where in them each begins, and its clean text."""
    raw = data.split(b"\n")
    if not raw[-1]:
        raw.pop()
    ats = list(accumulate([len(line) + 1 for line in raw[:-1]], initial=0)) if raw else []
    if is_clean(data):
        lines = data.decode("utf-8", "replace").split("\n")
        if not lines[-1]:
            lines.pop()
    else:
        lines = [clean(line.decode("utf-8", "replace")) for line in raw]
    return ats, lines


class Rule:
    """Which lines are wanted: of `level` (a rank) or worse, and of one of `processes` (of all, if empty).

    A line without a level or a process belongs to the line above. What that one was is carried from line to line as a
    state: bit 0, its level is wanted; bit 1, its process is.
    """

    def __init__(self, level: int = 0, processes: Sequence[str] = ()) -> None:
        self.level = level
        self.processes = frozenset(processes)
        self.filters = level > 1 or bool(processes)
        self.initial = (1 if level <= INFO else 0) | (0 if processes else 2)

    def state_after(self, line: str, state: int) -> int:
        """Return the state once `line` has been read."""
        process, rank = heading(line)
        if rank:
            state = (state & 2) | (rank >= self.level)
        if process is not None and self.processes:
            state = (state & 1) | (2 if process in self.processes else 0)
        return state

    def pick(
        self, lines: Sequence[str], state: int, search: Callable[[str], object] | None = None
    ) -> tuple[list[int], int]:
        """Return the places of the wanted lines, of those only that `search` finds, and the state after the last."""
        picked = []
        filters = self.filters
        for place, line in enumerate(lines):
            if filters:
                state = self.state_after(line, state)
                if state != 3:
                    continue
            if search is None or search(line[text_start(line) :]):
                picked.append(place)
        return picked, state

    def state_before(self, lines: Sequence[str]) -> int | None:
        """Return the state after `lines` if they tell it, whatever came before them; None where they do not."""
        needs_level, needs_process = self.level > 1, bool(self.processes)
        state = self.initial
        for line in reversed(lines):
            process, rank = heading(line)
            if rank and needs_level:
                state = (state & 2) | (rank >= self.level)
                needs_level = False
            if process is not None and needs_process:
                state = (state & 1) | (2 if process in self.processes else 0)
                needs_process = False
            if not needs_level and not needs_process:
                return state
        return None
