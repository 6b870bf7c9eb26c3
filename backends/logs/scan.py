"""The searching child: reads a log's files block by block, and says how many wanted lines begin in each.

Run as `python -I -P -S /abs/scan.py` by `scanner.py`. On standard input come JSON lines: first what is wanted
(`{"level", "processes", "pattern", "flags", "block_bytes", "parent"}`), then `["part", serial, fd, size, is_final]` as
the log grows (`fd` is the parent's), `["drop", serial]`, and once `["from", serial, offset]`. Lines from there down to
the end are searched first, then those above, from there upwards. Results are RECORDs. It ends with its standard input,
so that no death of its parent leaves it behind. Run with `match`, it answers `matcher.py` instead.
"""

from __future__ import annotations

import os
import re
import select
import struct
import sys
import time
import types

if __name__ == "__main__":
    # Isolated mode has no folder of ours on sys.path, and must not get one: our siblings come from beside this file.
    _here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib is slow to import
    for _name, _folder in (("backends", os.path.dirname(_here)), ("backends.logs", _here)):  # noqa: PTH120
        _package = types.ModuleType(_name)
        _package.__path__ = [_folder]
        sys.modules[_name] = _package

import json

from backends.logs.patience import Patient
from backends.logs.text import INFO, LEVELS, Rule, is_clean, read_block, split_lines, text_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RECORD = struct.Struct("<IIIB")
"""Serial of the part, block, wanted lines found in it (more than before), and the state before its first line."""

SAME_BLOCK = 254
"""In place of a state: the block was told of before, there is more in it now."""

NEWS = 0
"""In place of a serial: the block field says `REACHED_END`, `ALL_DONE`, or that more lines were `GIVEN_UP`."""

REACHED_END, ALL_DONE, GIVEN_UP = 1, 2, 3

TELL_EVERY_S = 0.03
OLDER_BLOCKS = 16
LOOK_BACK_BLOCKS = 16


class File:
    """A part of the log, as the child sees it."""

    def __init__(self, serial: int, fd: int) -> None:
        self.serial = serial
        self.fd = fd
        self.size = 0
        self.is_final = False


class Search:
    """Where the search is, and the quick ways past blocks that hold nothing wanted."""

    def __init__(self, spec: dict[str, Any]) -> None:
        pattern = spec["pattern"]
        compiled = None if pattern is None else re.compile(pattern, spec["flags"])
        self.rule = Rule(spec["level"], spec["processes"])
        self._patient = Patient(compiled) if compiled else None
        self._given_up = 0
        self.block_bytes: int = spec["block_bytes"]
        self.files: list[File] = []
        self._parent: int = spec["parent"]
        self._folds = compiled is not None and bool(compiled.flags & re.IGNORECASE)
        self._needle = needle_of(pattern, compiled.flags).encode() if compiled else b""
        self._words = _words_from(self.rule.level) if self.rule.level > INFO and not self.rule.processes else ()
        self._newer: list[int] | None = None
        self._older: list[int] | None = None
        self._told = -1
        self._state = self.rule.initial
        self._out: list[bytes] = []
        self._out_at = 0.0
        self._ended = self._finished = False

    def hear(self, message: list[Any]) -> None:
        """Take a message of the parent's."""
        if message[0] == "part":
            _, serial, fd, size, is_final = message
            file = next((one for one in self.files if one.serial == serial), None)
            if file is None:
                file = File(serial, os.open(f"/proc/{self._parent}/fd/{fd}", os.O_RDONLY))
                self.files.append(file)
            file.size, file.is_final = size, is_final
        elif message[0] == "drop":
            self._drop(next((n for n, one in enumerate(self.files) if one.serial == message[1]), -1))
        else:
            _, serial, offset = message
            at = next((n for n, one in enumerate(self.files) if one.serial == serial), 0)
            block = offset // self.block_bytes
            self._newer, self._older = [at, block * self.block_bytes], [at, block]
            self._state = self._state_before(at, block)

    def _drop(self, at: int) -> None:
        if at < 0:
            return
        os.close(self.files.pop(at).fd)
        self._told = -1
        for cursor in (self._newer, self._older):
            if cursor is not None and cursor[0] > at:
                cursor[0] -= 1
            elif cursor is not None and cursor[0] == at:
                cursor[:] = [at, 0] if cursor is self._newer else [0, 0]

    def step(self) -> bool:
        """Search a little more; returns whether there may be more to do."""
        if self._newer is None or self._older is None:
            return False
        busy = self._search_newer(self._newer)
        if not busy:
            if not self._ended:
                self._ended = True
                self._out.append(RECORD.pack(NEWS, REACHED_END, 0, 0))
            busy = self._search_older(self._older)
            if not busy and not self._finished:
                self._finished = True
                self._out.append(RECORD.pack(NEWS, ALL_DONE, 0, 0))
        if self._patient and self._patient.given_up > self._given_up:
            self._out.append(RECORD.pack(NEWS, GIVEN_UP, self._patient.given_up - self._given_up, 0))
            self._given_up = self._patient.given_up
        now = time.monotonic()
        if self._out and (not busy or now - self._out_at >= TELL_EVERY_S):
            self._out_at = now
            os.write(1, b"".join(self._out))
            self._out.clear()
        return busy

    def _search_newer(self, cursor: list[int]) -> bool:
        at, offset = cursor
        if at >= len(self.files):
            return False
        file = self.files[at]
        if offset >= file.size:
            if file.is_final and at + 1 < len(self.files):
                cursor[:] = [at + 1, 0]
                self._told = -1
                return True
            return False
        number = offset // self.block_bytes
        first, data = read_block(file.fd, number, file.size, self.block_bytes)
        data = data[max(0, offset - first) :]
        first = max(first, offset)
        end = first + len(data)
        if end >= file.size and not file.is_final and not data.endswith(b"\n"):
            end = first + data.rfind(b"\n") + 1  # The last line is still being written.
            data = data[: end - first]
            if not data:
                return False
        before = self._state
        hits, self._state = self._count(data, before)
        cursor[1] = max(end, min(file.size, (number + 1) * self.block_bytes)) if end < file.size else end
        self._tell(file, number, hits, SAME_BLOCK if number == self._told else before)
        self._told = number
        return True

    def _search_older(self, cursor: list[int]) -> bool:
        at, block = cursor
        if block <= 0:
            if at <= 0:
                return False
            file = self.files[at - 1]
            cursor[:] = [at - 1, -(-file.size // self.block_bytes)]
            return True
        first = max(0, block - OLDER_BLOCKS)
        file, state = self.files[at], self._state_before(at, first)
        found = []
        for number in range(first, block):
            before = state
            _, data = read_block(file.fd, number, file.size, self.block_bytes)
            hits, state = self._count(data, before)
            found.append((number, hits, before))
        for number, hits, before in reversed(found):
            self._tell(file, number, hits, before)
        cursor[1] = first
        return True

    def _tell(self, file: File, number: int, hits: int, state: int) -> None:
        self._out.append(RECORD.pack(file.serial, number, hits, state))

    def _state_before(self, at: int, block: int) -> int:
        """Return the state that the lines before a block leave."""
        if not self.rule.filters:
            return self.rule.initial
        for _ in range(LOOK_BACK_BLOCKS):
            if block == 0:
                if at == 0:
                    break
                at -= 1
                block = -(-self.files[at].size // self.block_bytes)
                continue
            block -= 1
            _, data = read_block(self.files[at].fd, block, self.files[at].size, self.block_bytes)
            state = self.rule.state_before(split_lines(data)[1])
            if state is not None:
                return state
        return self.rule.initial

    def _count(self, data: bytes, state: int) -> tuple[int, int]:
        """Return how many lines of a block are wanted, and the state after it."""
        plain = data.isascii() and is_clean(data)
        if self._words and not state & 1 and plain and not self._has_level(data):
            return 0, state
        if self._needle and plain and not self.rule.filters:
            return self._count_quickly(data), state
        if self._needle and plain and not self.rule.processes and self._needle not in self._folded(data):
            # What the lines are is still to be known, for the block after it.
            after = self.rule.state_before(split_lines(data)[1])
            return 0, state if after is None else after
        search = self._patient.search if self._patient else None
        picked, state = self.rule.pick(split_lines(data)[1], state, search)
        return len(picked), state

    def _has_level(self, data: bytes) -> bool:
        """Say whether a line of the wanted level may be in there."""
        if any(word in data for word in self._words):
            return True
        if data[10:11] != b"T":
            return True
        last = data.rfind(b"\n", 0, len(data) - 1) + 1
        days = {data[5:7] + data[8:10], data[last + 5 : last + 7] + data[last + 8 : last + 10]}
        letters = (b"E", b"F") if self.rule.level > INFO + 1 else (b"W", b"E", b"F")
        return any(letter + day + b" " in data for letter in letters for day in days)

    def _folded(self, data: bytes) -> bytes:
        return data.lower() if self._folds else data

    def _count_quickly(self, data: bytes) -> int:
        """Count lines with a match in ASCII text, looking only at those that hold what any match holds."""
        folded, needle = self._folded(data), self._needle
        assert self._patient is not None
        search, hits = self._patient.search, 0
        at = folded.find(needle)
        while at >= 0:
            end = data.find(b"\n", at)
            end = len(data) if end < 0 else end
            line = data[data.rfind(b"\n", 0, at) + 1 : end].decode("ascii")
            if search(line[text_start(line) :]):
                hits += 1
            at = folded.find(needle, end)
        return hits


def needle_of(pattern: str, flags: int) -> str:
    """Return the longest text that stands in every match of `pattern`, in small letters where case does not matter.

    Empty where there is none that is sure, or where it has other than ASCII characters.
    """
    best = run = ""
    try:
        for kind, what in getattr(re, "_parser").parse(pattern, flags):  # noqa: B009 - it is not public
            run = run + chr(what) if str(kind) == "LITERAL" else ""
            best = max(best, run, key=len)
    except Exception:  # Whatever changes in there: without a needle it only takes longer.
        return ""
    if not best.isascii() or not best.isprintable():
        return ""
    return best.lower() if flags & re.IGNORECASE else best


def _words_from(level: int) -> tuple[bytes, ...]:
    return (*(name.encode() for name in LEVELS[level - 1 :]), b"FATAL", b"Traceback (most recent call")


def main() -> None:
    """Search as told until standard input ends."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    rest, search, busy = b"", None, False
    while True:
        if not busy or poll.poll(0):
            data = os.read(0, 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if search is None:
                    search = Search(json.loads(line))
                else:
                    search.hear(json.loads(line))
        busy = search is not None and search.step()


def match() -> None:
    """Answer one JSON line each about lines until standard input ends; the first tells the pattern and its flags."""
    spec = json.loads(sys.stdin.readline())
    patient = Patient(re.compile(spec["pattern"], spec["flags"]))
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(patient.answer(asked["texts"], asked["budget_s"], places=asked["places"])), flush=True)


if __name__ == "__main__":
    try:
        match() if sys.argv[1:] == ["match"] else main()
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(0)
