"""A log as a growing row of lines: indexed from its end in a thread of its own, read one block at a time.

Only where blocks of some 64 KB begin is remembered, and a few decoded blocks, so that a log of any size opens at once
and costs next to no memory. The parts that it rotates into (`LOG.1`, `LOG.2`, …) are read as one.
"""

from __future__ import annotations

import os
import re
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tui.widgets.log_view_parts import Extent, Part, clean, listing, opened, split_lines
from tui.widgets.log_view_search import Search

BLOCK_BYTES = 1 << 16
CHUNK_BYTES = 1 << 18
KEPT_BLOCKS = 48
POLL_S = 0.1
TELL_EVERY_S = 1 / 30
OLDER_BLOCKS_A_STEP = 32
SEARCH_STEP_S = 0.02
YIELD_S = 0.001
"""Slept after each step of a search, or the UI loop would wait its turn for the interpreter again and again."""


@dataclass(slots=True, eq=False)
class _Block:
    """Whole lines that lie together in one part; `first` is the number of the first of them."""

    part: Part
    offset: int
    length: int
    first: int
    count: int


class LogSource:
    """Lines of the log at `path`, numbered so that a line keeps its number: what is older than the tail counts below 0.

    `on_change` is called from the reading thread, at most 30 times a second; every other method is called from the UI
    loop and does no I/O. `close` must be called in the end.
    """

    def __init__(self, path: Path, on_change: Callable[[], object], block_bytes: int = BLOCK_BYTES) -> None:
        self.path = path
        self._on_change = on_change
        self._block_bytes = block_bytes
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._parts: list[Part] = []
        self._blocks: list[_Block] = []
        self._cache: OrderedDict[_Block, list[str]] = OrderedDict()
        self._tail = b""
        self._next = 0
        self._older_from: tuple[Part, int] | None = None
        self._exists = False
        self._problem: str | None = None
        self._wanted = (0, 0)
        self._search: Search | None = None
        self._changed = False
        self._told_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"log {path.name}", daemon=True)

    def open(self) -> None:
        """Start reading; a file that does not exist yet is waited for."""
        self._thread.start()

    def close(self) -> None:
        """Let the thread end, without waiting for it."""
        self._closed.set()
        self._running.set()
        self._wake.set()

    def pause(self) -> None:
        """Do nothing until `resume`: nobody looks."""
        self._running.clear()

    def resume(self) -> None:
        """Go on, with what was written meanwhile."""
        self._running.set()
        self._wake.set()

    @property
    def extent(self) -> Extent:
        """How much is known now."""
        with self._lock:
            first = self._blocks[0].first if self._blocks else self._next
            size = sum(part.size for part in self._parts)
            whole = self._exists and self._older_from is None
            return Extent(first, self._next + bool(self._tail), size, whole, self._exists, self._problem)

    def lines(self, first: int, end: int) -> list[str | None]:
        """Return lines `first` to `end` as far as they are in memory, None for the others; `want` fetches those."""
        found: list[str | None] = []
        with self._lock:
            number = first
            while number < end:
                block = self._block_of(number)
                if block is None:
                    found.append(clean(self._tail) if number == self._next and self._tail else None)
                    number += 1
                    continue
                upto = min(end, block.first + block.count)
                cached = self._cache.get(block)
                if cached:
                    found += cached[number - block.first : upto - block.first]
                else:
                    found += [None] * (upto - number)
                number = upto
        return found

    def want(self, first: int, end: int) -> None:
        """Ask for lines `first` to `end`; `on_change` follows once they are there."""
        with self._lock:
            self._wanted = (first, end)
            missing = any(block not in self._cache for block in self._wanted_blocks())
        if missing:
            self._wake.set()

    def search(self, pattern: re.Pattern[str] | None) -> Search | None:
        """Begin a search for `pattern` in all lines, older ones and ones yet to come; None ends it."""
        with self._lock:
            self._search = Search(pattern, self._next) if pattern else None
        self._wake.set()
        return self._search

    def _run(self) -> None:
        polled_at = 0.0
        while not self._closed.is_set():
            self._running.wait()
            busy = self._load_wanted()
            if time.monotonic() - polled_at >= POLL_S:
                polled_at = time.monotonic()
                try:
                    if self._poll():
                        busy, polled_at = True, 0.0
                    self._set_problem(None)
                except FileNotFoundError:
                    self._set_problem(None)
                except OSError as error:
                    self._set_problem(error.strerror or str(error))
            try:
                busy = self._index_older() or busy
                busy = self._search_on() or busy
            except OSError as error:
                self._set_problem(error.strerror or str(error))
                busy = False
            self._tell(at_once=not busy)
            if not busy:
                self._wake.wait(POLL_S)
                self._wake.clear()
        for part in self._parts:
            os.close(part.fd)

    def _tell(self, at_once: bool) -> None:
        if self._changed and (at_once or time.monotonic() - self._told_at >= TELL_EVERY_S):
            self._changed = False
            self._told_at = time.monotonic()
            self._on_change()

    def _set_problem(self, problem: str | None) -> None:
        if problem != self._problem:
            self._problem, self._changed = problem, True

    def _poll(self) -> bool:
        """Take in what was written since; returns whether there may be more."""
        if not self._parts:
            return self._begin()
        newest = self._parts[-1]
        at_path = self.path.stat()
        rotated = (at_path.st_dev, at_path.st_ino) != newest.inode
        size = os.fstat(newest.fd).st_size
        if size < newest.size:
            self._start_over()
            return True
        if size > newest.size:
            self._take(newest, os.pread(newest.fd, min(CHUNK_BYTES, size - newest.size), newest.size))
            return True
        if rotated:
            self._follow_rotation(newest)
            return True
        return False

    def _begin(self) -> bool:
        part = opened(self.path)
        tail_from = part.size = os.fstat(part.fd).st_size
        data = os.pread(part.fd, min(self._block_bytes, part.size), max(0, part.size - self._block_bytes))
        with self._lock:
            self._parts = [part]
            self._exists = self._changed = True
            # Only whole lines are indexed; the rest waits for its end.
            tail = data[data.rfind(b"\n") + 1 :]
            self._tail = tail if len(tail) < self._block_bytes else b""
            tail_from -= len(self._tail)
            self._older_from = (part, tail_from)
        self._index_older(blocks=1)
        return True

    def _start_over(self) -> None:
        """The file was truncated: forget it; line numbers go on, so that none is used twice."""
        with self._lock:
            parts, self._parts, self._blocks = self._parts, [], []
            self._next += bool(self._tail)
            self._tail, self._older_from = b"", None
            self._cache.clear()
            self._search = Search(self._search.pattern, self._next) if self._search else None
        for part in parts:
            os.close(part.fd)

    def _take(self, part: Part, data: bytes) -> None:
        """Add what was appended to `part`."""
        with self._lock:
            offset = part.size - len(self._tail)
            part.size += len(data)
            data = self._tail + data
            end = data.rfind(b"\n") + 1
            if not end and len(data) >= self._block_bytes:
                end = len(data)
            self._tail = data[end:]
            start = 0
            while start < end:
                stop = self._cut(data, start, end)
                self._append(part, offset + start, data[start:stop])
                start = stop
            self._changed = True

    def _cut(self, data: bytes, start: int, end: int) -> int:
        """Return where the block that begins at `start` ends: after a line, within the size of a block."""
        if end - start <= self._block_bytes:
            return end
        return data.rfind(b"\n", start, start + self._block_bytes) + 1 or start + self._block_bytes

    def _append(self, part: Part, offset: int, data: bytes) -> None:
        lines = split_lines(data)
        last = self._blocks[-1] if self._blocks else None
        if last and last.part is part and last.length + len(data) <= self._block_bytes:
            last.length += len(data)
            last.count += len(lines)
            if last in self._cache:
                self._cache[last] += lines
        else:
            block = _Block(part, offset, len(data), self._next, len(lines))
            self._blocks.append(block)
            self._keep(block, lines)
        self._next += len(lines)

    def _follow_rotation(self, finished: Part) -> None:
        """Go on with the parts that are newer than `finished`, and let go of those that are no longer on disk."""
        on_disk = listing(self.path)
        inodes = [inode for inode, _ in on_disk]
        newer = on_disk[: inodes.index(finished.inode)] if finished.inode in inodes else on_disk
        for _, path in reversed(newer):
            self._end_tail()
            part = opened(path)
            with self._lock:
                self._parts.append(part)
            # Only the newest part goes on growing; what lies between is taken in whole before the next one begins.
            while data := os.pread(part.fd, CHUNK_BYTES, part.size):
                self._take(part, data)
        self._let_go([part for part in self._parts[:-1] if not os.fstat(part.fd).st_nlink])

    def _end_tail(self) -> None:
        """Count a last line that will never be finished as one."""
        with self._lock:
            if self._tail:
                part, tail, self._tail = self._parts[-1], self._tail, b""
                self._append(part, part.size - len(tail), tail)

    def _let_go(self, gone: list[Part]) -> None:
        """Close deleted parts, which would hold on to the disk's room, and forget their lines."""
        with self._lock:
            self._parts = [part for part in self._parts if part not in gone]
            self._blocks = [block for block in self._blocks if block.part not in gone]
            for block in [block for block in self._cache if block.part in gone]:
                del self._cache[block]
            if self._older_from and self._older_from[0] in gone:
                self._older_from = None
            if self._search and self._blocks:
                self._search.forget_before(self._blocks[0].first)
            self._changed = True
        for part in gone:
            os.close(part.fd)

    def _index_older(self, blocks: int = OLDER_BLOCKS_A_STEP) -> bool:
        """Index some blocks more towards the log's beginning; returns whether there was anything to do."""
        if self._older_from is None:
            return False
        part, end = self._older_from
        found: list[tuple[int, bytes]] = []
        while end > 0 and len(found) < blocks:
            start = max(0, end - self._block_bytes)
            data = os.pread(part.fd, end - start, start)
            if start:
                start += data.find(b"\n", 0, len(data) - 1) + 1
            found.append((start, data[len(data) - (end - start) :]))
            end = start
        with self._lock:
            first = self._blocks[0].first if self._blocks else self._next
            older = []
            for offset, data in found:
                count = data.count(b"\n") + (not data.endswith(b"\n"))
                first -= count
                older.append(_Block(part, offset, len(data), first, count))
            self._blocks[0:0] = reversed(older)
            if older and len(self._blocks) == len(older):
                self._keep(older[0], split_lines(found[0][1]))
            self._older_from = (part, end) if end else None
            self._changed = True
        if end == 0:
            self._begin_older_part(part)
        return True

    def _begin_older_part(self, part: Part) -> None:
        on_disk = listing(self.path)
        inodes = [inode for inode, _ in on_disk]
        if part.inode not in inodes or inodes.index(part.inode) + 1 >= len(on_disk):
            return
        older = opened(on_disk[inodes.index(part.inode) + 1][1])
        if older.inode in [known.inode for known in self._parts]:  # It rotated under our eyes: nothing older is left.
            os.close(older.fd)
            return
        older.size = os.fstat(older.fd).st_size
        with self._lock:
            self._parts.insert(0, older)
            self._older_from = (older, older.size)

    def _load_wanted(self) -> bool:
        with self._lock:
            missing = [block for block in self._wanted_blocks() if block not in self._cache]
            places = [(block, block.part.fd, block.length, block.offset) for block in missing]
        for block, fd, length, offset in places:
            try:
                lines = split_lines(os.pread(fd, length, offset))
            except OSError as error:
                lines = [f"gpubox: this part of the log cannot be read: {error.strerror}"] * block.count
            with self._lock:
                # Were the file cut short behind our back, lines are empty; every number still has one.
                self._keep(block, (lines + [""] * block.count)[: block.count])
                self._changed = True
        return bool(places)

    def _wanted_blocks(self) -> list[_Block]:
        first, end = self._wanted
        at = max(0, self._index_of(first))
        found: list[_Block] = []
        while at < len(self._blocks) and self._blocks[at].first < end:
            found.append(self._blocks[at])
            at += 1
        return found

    def _keep(self, block: _Block, lines: list[str]) -> None:
        self._cache[block] = lines
        self._cache.move_to_end(block)
        while len(self._cache) > max(KEPT_BLOCKS, 2 * len(self._wanted_blocks())):
            self._cache.popitem(last=False)

    def _index_of(self, number: int) -> int:
        return bisect_right(self._blocks, number, key=lambda block: block.first) - 1

    def _block_of(self, number: int) -> _Block | None:
        at = self._index_of(number)
        if at < 0 or number >= self._blocks[at].first + self._blocks[at].count:
            return None
        return self._blocks[at]

    def _search_on(self) -> bool:
        """Search some blocks more; returns whether there was anything to do."""
        search, until = self._search, time.monotonic() + SEARCH_STEP_S
        worked = False
        while search is not None and search is self._search and time.monotonic() < until:
            with self._lock:
                newer = self._block_of(search.newer_from)
                older = self._block_of(search.older_from - 1)
                block = newer or older
                if block is None:
                    self._changed |= search.tell_end(is_whole=self._older_from is None)
                    break
                first, lines = block.first, self._cache.get(block)
                fd, length, offset = block.part.fd, block.length, block.offset
                lines = lines.copy() if lines else None
            search.scan(first, lines or split_lines(os.pread(fd, length, offset)), is_newer=newer is not None)
            worked = self._changed = True
        if worked:
            time.sleep(YIELD_S)
        return worked
