"""One log on disk, with the parts it rotates into: lines from any place on, in both directions, without an index.

A place is a byte of the log as a whole (`at`): it belongs to the block it lies in, and a block's lines are those that
begin in it, so that any place is read at once. What is counted meanwhile, block by block from the end, is lines.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from backends.logs.parts import Part, listing, opened
from backends.logs.scanner import Block, Kept, Scan
from backends.logs.text import BLOCK_BYTES, STAMP_LENGTH, read_block, split_lines

COUNT_BYTES = 1 << 20
UNKNOWN = -1


class LogFile:
    """The log at `path`; whoever made it calls all its methods from one thread. Raises OSError where it says so."""

    def __init__(self, path: Path, block_bytes: int = BLOCK_BYTES) -> None:
        self.path = path
        self.parts: list[Part] = []
        self.exists = False
        self.appended_lines = 0
        """Line feeds that were written since it was opened; only ever grows."""
        self._block_bytes = block_bytes
        self._kept = Kept()
        self._uncounted: tuple[int, int] | None = None
        self._passed = 0

    @property
    def start(self) -> int:
        """Where the oldest part begins."""
        return self.parts[0].base if self.parts else self._passed

    @property
    def end(self) -> int:
        """Where the newest part ends, as far as it is known."""
        return self.parts[-1].end if self.parts else self._passed

    @property
    def lines(self) -> int:
        """How many lines are counted."""
        return sum(part.lines + part.ends_open for part in self.parts)

    @property
    def is_counted(self) -> bool:
        """Whether all lines are."""
        return self.exists and self._uncounted is None and all(part.counted == part.size for part in self.parts)

    @property
    def is_open(self) -> bool:
        """Whether the last line has no line feed yet."""
        return bool(self.parts) and self.parts[-1].ends_open

    def close(self) -> None:
        """Let go of the files."""
        for part in self.parts:
            os.close(part.fd)
        self.parts = []

    def poll(self) -> bool:
        """Look for what was written since; returns whether there was something. Raises OSError."""
        if not self.parts:
            self._begin()
            return True
        newest = self.parts[-1]
        at_path = self.path.stat()
        size = os.fstat(newest.fd).st_size
        if size < newest.size:
            self._start_over()
            return True
        if size > newest.size:
            newest.size = size
            return True
        if (at_path.st_dev, at_path.st_ino) != newest.inode:
            self._follow_rotation(newest)
            return True
        return False

    def _begin(self) -> None:
        found = self._opened_parts()
        try:
            base = self._passed
            for part in found:
                part.size = part.counted = os.fstat(part.fd).st_size
                part.ends_open = part.size > 0 and os.pread(part.fd, 1, part.size - 1) != b"\n"
                part.is_final = part is not found[0]
                part.base = base if part is found[0] else base - part.size
                base = part.base
                part.breaks = array("i", [UNKNOWN]) * self._blocks_of(part)
        except OSError:
            for part in found:
                os.close(part.fd)
            raise
        self.parts = found[::-1]
        self.exists = True
        self._uncounted = (len(self.parts) - 1, len(found[0].breaks))
        self._settle_uncounted()
        self.count_older(self._block_bytes)

    def _opened_parts(self) -> list[Part]:
        """Open all parts, newest first."""
        found = [opened(self.path)]
        names = listing(self.path)
        inodes = [inode for inode, _ in names]
        for inode, path in names[inodes.index(found[0].inode) + 1 :] if found[0].inode in inodes else []:
            try:
                part = opened(path)
            except FileNotFoundError:
                continue
            if inode != part.inode or part.inode in [one.inode for one in found]:  # It rotated under our eyes.
                os.close(part.fd)
                break
            found.append(part)
        return found

    def _start_over(self) -> None:
        """The file was truncated: forget it; places go on, so that none is used twice."""
        self._passed = self.end
        for part in self.parts:
            os.close(part.fd)
        self.parts, self._uncounted = [], None

    def _follow_rotation(self, finished: Part) -> None:
        """Go on with the parts that are newer than `finished`, and let go of those that are no longer on disk."""
        on_disk = listing(self.path)
        inodes = [inode for inode, _ in on_disk]
        newer = on_disk[: inodes.index(finished.inode)] if finished.inode in inodes else on_disk
        for _, path in reversed(newer):
            try:
                part = opened(path)
            except FileNotFoundError:
                return  # It moves just now: the next look finds it.
            last = self.parts[-1]
            last.size = os.fstat(last.fd).st_size
            last.is_final = True
            part.base = last.end
            part.size = os.fstat(part.fd).st_size
            self.parts.append(part)
        for gone in [part for part in self.parts[:-1] if not os.fstat(part.fd).st_nlink]:
            self._let_go(gone)

    def _let_go(self, gone: Part) -> None:
        """Close a deleted part, which would hold on to the disk's room."""
        at = self.parts.index(gone)
        self.parts.remove(gone)
        os.close(gone.fd)
        if self._uncounted is not None:
            index, block = self._uncounted
            self._uncounted = None if index <= at else (index - 1, block)

    def count_newer(self, most_bytes: int = COUNT_BYTES) -> bool:
        """Count lines in what was written since; returns whether there was anything to do. Raises OSError."""
        for part in self.parts:
            if part.counted >= part.size:
                continue
            data = os.pread(part.fd, min(most_bytes, part.size - part.counted), part.counted)
            if not data:
                part.size = part.counted
                return False
            for start in range(-(part.counted % self._block_bytes), len(data), self._block_bytes):
                block = (part.counted + start) // self._block_bytes
                found = data.count(b"\n", max(0, start), start + self._block_bytes)
                self.appended_lines += found
                part.lines += found
                if block < len(part.breaks):
                    part.breaks[block] += found
                else:
                    part.breaks.append(found)
            part.counted += len(data)
            part.ends_open = not data.endswith(b"\n")
            return True
        return False

    def count_older(self, most_bytes: int = COUNT_BYTES) -> bool:
        """Count lines towards the log's beginning; returns whether there was anything to do. Raises OSError."""
        if self._uncounted is None:
            return False
        index, block = self._uncounted
        part = self.parts[index]
        first = max(0, block - max(1, most_bytes // self._block_bytes))
        start = first * self._block_bytes
        stop = min(block * self._block_bytes, part.size)
        data = os.pread(part.fd, stop - start, start)
        for number in range(first, block):
            at = (number - first) * self._block_bytes
            part.breaks[number] = data.count(b"\n", at, at + self._block_bytes)
            part.lines += part.breaks[number]
        self._uncounted = (index, first)
        self._settle_uncounted()
        return True

    def _settle_uncounted(self) -> None:
        while self._uncounted is not None and self._uncounted[1] == 0:
            index = self._uncounted[0] - 1
            self._uncounted = (index, len(self.parts[index].breaks)) if index >= 0 else None

    def line_number(self, at: int) -> int | None:
        """Return the number of the line that begins at `at`, counted from 1; None while that is not known."""
        if self._uncounted is not None:
            return None
        number = 1
        for part in self.parts:
            if at >= part.end and part is not self.parts[-1]:
                number += part.lines + part.ends_open
                continue
            block = (at - part.base) // self._block_bytes
            start = block * self._block_bytes
            number += sum(part.breaks[:block])
            return number + os.pread(part.fd, at - part.base - start, start).count(b"\n")
        return number

    def lines_from(self, at: int, most: int, scan: Scan | None = None) -> tuple[list[tuple[int, str]], bool]:
        """Return up to `most` lines that begin at `at` or later, and whether the log ends after them.

        With a `scan`, only those that it lets pass, as far as it has come. Raises OSError.
        """
        found: list[tuple[int, str]] = []
        for part, number in self._upwards(at):
            if scan is not None and scan.is_barren(part, number):
                continue
            block = self.block(part, number) if scan is None else self._picks(part, number, scan)
            if block is None:
                return found, False
            begin = bisect_left(block.ats, at)
            room = most - len(found)
            found += zip(block.ats[begin : begin + room], block.texts[begin : begin + room], strict=True)
            if len(block.ats) - begin > room:
                return found, False
        return found, True

    def lines_before(self, at: int, most: int, scan: Scan | None = None) -> tuple[list[tuple[int, str]], bool]:
        """Return up to `most` lines that begin before `at`, oldest first, and whether the log begins with them."""
        found: list[list[tuple[int, str]]] = []
        room = most
        is_whole = True
        for part, number in self._downwards(at - 1):
            if scan is not None and scan.is_barren(part, number):
                continue
            block = self.block(part, number) if scan is None else self._picks(part, number, scan)
            if block is None:
                is_whole = False
                break
            end = bisect_left(block.ats, at)
            begin = max(0, end - room)
            found.append(list(zip(block.ats[begin:end], block.texts[begin:end], strict=True)))
            room -= end - begin
            if begin or not room:
                is_whole = begin == 0 and part is self.parts[0] and number == 0
                break
        return [line for lines in reversed(found) for line in lines], is_whole

    def find_from(self, at: int, scan: Scan) -> int | None:
        """Return where the first line at `at` or later begins that `scan` has found."""
        return self._hit(self._upwards(at), at, scan, 0)

    def find_before(self, at: int, scan: Scan) -> int | None:
        """Return where the last line before `at` begins that `scan` has found."""
        return self._hit(self._downwards(at - 1), at, scan, -1)

    def _hit(self, blocks: Iterator[tuple[Part, int]], at: int, scan: Scan, beside: int) -> int | None:
        for part, number in blocks:
            if not scan.hits_in(part, number):
                continue
            picks = self._picks(part, number, scan)
            if picks is None:
                continue
            place = bisect_left(picks.ats, at) + beside
            if 0 <= place < len(picks.ats):
                return picks.ats[place]
        return None

    def rank(self, at: int, scan: Scan) -> int:
        """Return which of the lines found the one at `at` is, counted from 1."""
        rank = 1
        for part in self.parts:
            if at >= part.end:
                rank += scan.hits_before(part, None)
                continue
            number = (at - part.base) // self._block_bytes
            rank += scan.hits_before(part, number)
            picks = self._picks(part, number, scan)
            return rank + (bisect_left(picks.ats, at) if picks else 0)
        return rank

    def place_of(self, moment: datetime) -> int:
        """Return where the first line of `moment` (with a time zone) or later begins; the end where there is none."""
        for part in self.parts:
            low, high = 0, -(-part.size // self._block_bytes)
            while low < high:
                middle = (low + high) // 2
                at = next((when for text in self._texts(part, middle) if (when := stamp_of(text))), None)
                if at is None or at >= moment:
                    high = middle
                else:
                    low = middle + 1
            for number in (low - 1, low):
                if 0 <= number < -(-part.size // self._block_bytes):
                    block = self.block(part, number)
                    for place, text in zip(block.ats, block.texts, strict=True):
                        when = stamp_of(text)
                        if when is not None and when >= moment:
                            return place
        return self.end

    def last_moment(self) -> datetime | None:
        """Return the time of the last line that has one, among the last thousands."""
        lines, _ = self.lines_before(self.end, 2000)
        return next((when for _, text in reversed(lines) if (when := stamp_of(text))), None)

    def block(self, part: Part, number: int) -> Block:
        """Return a block's lines. Raises OSError."""
        key = (part.serial, number)
        if kept := self._kept.get(key):
            return kept
        offset, data = read_block(part.fd, number, part.size, self._block_bytes)
        ats, texts = split_lines(data)
        base = part.base + offset
        block = Block([base + at for at in ats], texts)
        if offset + len(data) < part.size or part.is_final:
            self._kept.put(key, block)
        return block

    def _texts(self, part: Part, number: int) -> list[str]:
        return self.block(part, number).texts

    def _picks(self, part: Part, number: int, scan: Scan) -> Block | None:
        """Return the lines of a block that `scan` lets pass; None where it has not been yet."""
        state = scan.state_at(part, number)
        if state is None:
            return None
        key = (part.serial, number)
        if kept := scan.kept.get(key):
            return kept
        block = self.block(part, number)
        places = scan.pick(block.texts, state)
        picked = Block([block.ats[place] for place in places], [block.texts[place] for place in places])
        if self._kept.get(key):  # It will not change any more.
            scan.kept.put(key, picked)
        return picked

    def _upwards(self, at: int) -> Iterator[tuple[Part, int]]:
        for part in self.parts:
            if at < part.end:
                yield from (
                    (part, n) for n in range(max(0, at - part.base) // self._block_bytes, self._blocks_of(part))
                )

    def _downwards(self, at: int) -> Iterator[tuple[Part, int]]:
        for part in reversed(self.parts):
            if at >= part.base and part.size:
                last = min(at - part.base, part.size - 1) // self._block_bytes
                yield from ((part, number) for number in range(last, -1, -1))

    def _blocks_of(self, part: Part) -> int:
        return -(-part.size // self._block_bytes)


def stamp_of(line: str) -> datetime | None:
    """Return a line's time, None where it has none."""
    try:
        moment = datetime.fromisoformat(line[:STAMP_LENGTH])
    except ValueError:
        return None
    return moment if moment.tzinfo else None
