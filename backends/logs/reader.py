"""One log, or several merged by time, read for a screen in a thread of its own: what is asked for comes as windows.

A window is a few hundred lines around a place. Nothing else of a log is held, so that a log of any size opens at once
and costs next to no memory; filters and searches run in children (`scanner.py`), and what they found is looked up.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from backends.logs.file import LogFile
from backends.logs.matcher import Matcher, Spans
from backends.logs.scanner import Scan
from backends.logs.text import BLOCK_BYTES, ERROR, LONGEST_SHOWN, Rule, heading, text_start
from backends.logs.windows import EMPTY, END, START, Extent, Key, Lines, LogLine, Window

POLL_S = 0.1
TELL_EVERY_S = 1 / 10
"""Nobody reads faster; what is asked for is told at once."""

YIELD_S = 0.001
"""Slept after each step of counting, or the UI loop would wait its turn for the interpreter again and again."""

FIRST_BLOCKS = 4
"""So many blocks at a log's beginning tell which processes write into it."""


@dataclass(frozen=True, slots=True)
class _Jump:
    number: int
    to: str
    key: Key
    direction: int = 1


class LogReader:
    """Reads the logs at `paths`, of which one that does not exist yet is waited for.

    `on_change` is called from the reading thread, at most ten times a second but for what was asked; `window` and
    `extent` are then new. All other methods are called from the UI loop and do no I/O. `close` must be called in the
    end.
    """

    def __init__(self, paths: Sequence[Path], on_change: Callable[[], object], block_bytes: int = BLOCK_BYTES) -> None:
        self.paths = tuple(paths)
        self.window = EMPTY
        self.extent = Extent()
        self._on_change = on_change
        self._block_bytes = block_bytes
        self._sources = [LogFile(path, block_bytes) for path in paths]
        self._lines = Lines(self._sources)
        self._orders: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._filters: list[Scan] = []
        self._searches: list[Scan] = []
        self._hunts: list[Scan] = []
        self._matcher: Matcher | None = None
        self._spans: dict[LogLine, Spans] = {}
        self._match: Key | None = None
        self._place: Key = END
        self._ask = self._asked = self._jumps = 0
        self._jump: _Jump | None = None
        self._jumped, self._has_found = 0, False
        self._around = 200
        self._problem: str | None = None
        self._processes: dict[str, None] = {}
        self._grown = self._stale = self._changed = False
        self._told_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"log {self.paths[0].name}", daemon=True)

    def open(self) -> None:
        """Start reading."""
        self._thread.start()

    def close(self) -> None:
        """Let the thread end, and its children with it, without waiting for them."""
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

    def show(self, place: Key, around: int) -> int:
        """Ask for the window of `around` lines each before and from `place` on; returns the question's number."""
        self._ask += 1
        ask = self._ask

        def order() -> None:
            self._place, self._around, self._asked = place, around, ask
            self._stale = True

        return self._order(order, ask)

    def jump_to(self, fraction: float) -> int:
        """Go to a part of the way through the log, from 0 to 1; returns the jump's number."""
        return self._begin_jump(lambda number: self._land(number, self._lines.at_fraction(fraction)))

    def jump_to_moment(self, moment: datetime) -> int:
        """Go to the first line of `moment` (with a time zone) or later."""
        return self._begin_jump(lambda number: self._land(number, self._lines.at_moment(moment)))

    def last_moment(self, tell: Callable[[datetime | None], object]) -> None:
        """Have `tell` called, in the reading thread, with the time of the log's last line."""

        def order() -> None:
            moments = [moment for source in self._sources if (moment := source.last_moment())]
            tell(max(moments, default=None))

        self._order(order, 0)

    def jump_to_match(self, key: Key, direction: int) -> int:
        """Go to the next match below `key` (1) or above (-1), around the end, or to the nearest (0)."""

        def order(number: int) -> None:
            self._jump = _Jump(number, "match", key, direction)

        return self._begin_jump(order)

    def jump_to_error(self, key: Key) -> int:
        """Go to the first line at `key` or below that is an error or worse, once it is known."""

        def order(number: int) -> None:
            self._jump = _Jump(number, "error", key)
            self._hunts = self._scans(Rule(ERROR), key)

        return self._begin_jump(order)

    def stay(self) -> None:
        """Forget a jump whose goal is not known yet."""
        self._order(self._end_jump, 0)

    def filter(self, level: int, processes: Sequence[str]) -> None:
        """Show only lines of a level (a rank of `text.LEVELS`) or worse, and of these processes; 0 and () show all."""
        names = tuple(processes)

        def order() -> None:
            _close(self._filters)
            rule = Rule(level, names)
            self._filters = self._scans(rule, self._place) if rule.filters else []
            self._stale = True

        self._order(order, 0)

    def search(self, pattern: re.Pattern[str] | None, rule: tuple[int, Sequence[str]], key: Key) -> None:
        """Search all lines that the filter `rule` lets pass, those at `key` and below first; None ends the search."""

        def order() -> None:
            self._end_search()
            if pattern is not None:
                self._matcher = Matcher(pattern)
                self._searches = self._scans(Rule(*rule), key, pattern)
            self._stale = True

        self._order(order, 0)

    def texts(self, low: Key, high: Key, most: int, tell: Callable[[list[str]], object]) -> None:
        """Have `tell` called, in the reading thread, with the shown lines from `low` to `high`, at most so many."""

        def order() -> None:
            lines, _ = self._lines.lines_from(low, most, self._filters)
            tell([line.text for line in lines if line.key <= high])

        self._order(order, 0)

    @property
    def search_pids(self) -> list[int]:
        """The pids of the searching children."""
        scans = [*self._filters, *self._searches, *self._hunts]
        pids = [scan.pid for scan in scans if scan.pid is not None]
        return pids if (matcher := self._matcher) is None else [*pids, matcher.pid]

    def _order(self, order: Callable[[], None], number: int) -> int:
        self._orders.append(order)
        self._wake.set()
        return number

    def _begin_jump(self, order: Callable[[int], None]) -> int:
        self._jumps += 1
        number = self._jumps

        def begin() -> None:
            self._end_jump()
            order(number)

        return self._order(begin, number)

    def _run(self) -> None:
        polled_at = 0.0
        while not self._closed.is_set():
            self._running.wait()
            busy = False
            try:
                if time.monotonic() - polled_at >= POLL_S:
                    polled_at = time.monotonic()
                    self._poll()
                while self._orders:
                    self._orders.popleft()()
                self._feed()
                if self._jump is not None:
                    self._try_jump(self._jump)
                self._tell()
                for source in self._sources:
                    if source.count_newer() | source.count_older():
                        busy = self._changed = True
                        time.sleep(YIELD_S)
            except OSError as error:
                self._set_problem(error.strerror or str(error))
                self._tell()
            if not busy:
                left_s = TELL_EVERY_S - (time.monotonic() - self._told_at)
                self._wake.wait(max(0.0, left_s) if self._changed or self._stale else POLL_S)
                self._wake.clear()
        self._end_search()
        _close(self._filters, self._hunts)
        for source in self._sources:
            source.close()

    def _poll(self) -> None:
        problem = None
        for source in self._sources:
            try:
                existed, end = source.exists, source.end
                while source.poll():
                    self._grown = self._changed = True
                    source.count_newer()  # What is shown is counted, too.
                    if source.end - end > 1 << 20:
                        break
                if source.exists and not existed:
                    self._learn(source)
                    self._stale = True
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = error.strerror or str(error)
        self._set_problem(problem)

    def _set_problem(self, problem: str | None) -> None:
        if problem != self._problem:
            self._problem, self._changed = problem, True

    def _learn(self, source: LogFile) -> None:
        """Note which processes write, as a start tells: engines name them all early."""
        first = source.parts[0]
        for number in range(FIRST_BLOCKS):
            for line in source.block(first, number).texts:
                if process := heading(line)[0]:
                    self._processes.setdefault(process)

    def _feed(self) -> None:
        for scans in (self._filters, self._searches, self._hunts):
            for source, scan in zip(self._sources, scans, strict=False):
                scan.feed(source.parts, 0)

    def _end_search(self) -> None:
        _close(self._searches)
        self._searches, self._match, self._spans = [], None, {}
        if self._matcher is not None:
            self._matcher.close()
            self._matcher = None

    def _scans(self, rule: Rule, key: Key, pattern: re.Pattern[str] | None = None) -> list[Scan]:
        scans = []
        for number, source in enumerate(self._sources):
            matcher = self._matcher if pattern is not None else None
            scan = Scan(rule, self._heard, self._block_bytes, pattern=pattern, matcher=matcher)
            scan.feed(source.parts, self._lines.at(number, key))
            scans.append(scan)
        return scans

    def _heard(self) -> None:
        """Runs in a search's thread."""
        self._changed = True
        self._wake.set()

    def _tell(self) -> None:
        if not self._stale and (not self._changed or time.monotonic() - self._told_at < TELL_EVERY_S):
            return
        window = self.window
        is_open_ended = self._place == END or window.last or not window.lines
        is_filling = bool(self._filters) and not self._is_full(window)
        if self._stale or is_filling or (self._grown and is_open_ended) or window.jump != self._jumped:
            self.window = self._windowed()
        self._grown = self._stale = self._changed = False
        self._told_at = time.monotonic()
        self.extent = self._extent()
        self._on_change()

    def _is_full(self, window: Window) -> bool:
        before, after = window.focus, len(window.lines) - window.focus
        return (before >= self._around or window.first) and (after >= self._around or window.last)

    def _extent(self) -> Extent:
        sources, filters, searches = self._sources, self._filters, self._searches
        return Extent(
            lines=sum(source.lines for source in sources),
            size_bytes=sum(source.end - source.start for source in sources),
            is_whole=all(source.is_counted for source in sources),
            exists=any(source.exists for source in sources),
            problem=self._problem,
            appended_lines=sum(source.appended_lines + source.is_open for source in sources),
            shown=sum(scan.count for scan in filters) if filters else None,
            is_filtering=not all(scan.is_done for scan in filters),
            matches=sum(scan.count for scan in searches) if searches else None,
            match=self._lines.rank(self._match, searches) if searches and self._match else None,
            is_searching=not all(scan.is_done for scan in searches),
            is_looking=self._jump is not None,
            given_up=sum(scan.given_up for scan in searches),
            has_failed=any(scan.has_failed for scan in (*filters, *searches)),
            processes=tuple(self._processes),
        )

    def _windowed(self) -> Window:
        before, is_first = self._lines.lines_before(self._place, self._around, self._filters)
        after, is_last = self._lines.lines_from(self._place, self._around, self._filters)
        lines = (*before, *after)
        number = None
        if lines and len(self._sources) == 1 and not self._filters:
            number = self._sources[0].line_number(lines[0].key[2])
        marks = (self._lines.mark(lines[0].key), self._lines.mark(lines[-1].key)) if lines else (0.0, 1.0)
        return Window(
            ask=self._asked,
            jump=self._jumped,
            lines=lines,
            focus=len(before),
            first=is_first,
            last=is_last,
            number=number,
            marks=marks,
            has_found=self._has_found,
            spans=self._spans_in(lines),
        )

    def _spans_in(self, lines: Sequence[LogLine]) -> dict[Key, Spans]:
        """Return what the search marks in lines; those of the window before are not looked through again."""
        if self._matcher is None:
            return {}
        new = [line for line in lines if line not in self._spans]
        starts = [text_start(line.text) for line in new]
        found = self._matcher.spans([line.text[at:LONGEST_SHOWN] for at, line in zip(starts, new, strict=True)])
        known = self._spans | {
            line: tuple((at + low, at + high) for low, high in spans)
            for at, line, spans in zip(starts, new, found, strict=True)
        }
        self._spans = {line: known[line] for line in lines}
        return {line.key: spans for line, spans in self._spans.items() if spans}

    def _end_jump(self) -> None:
        _close(self._hunts)
        self._jump, self._hunts, self._changed = None, [], True

    def _land(self, number: int, key: Key | None) -> None:
        """End a jump at `key`, or where it began if there is no goal."""
        self._end_jump()
        self._jumped, self._has_found = number, key is not None
        if key is not None:
            self._place = key
        self._stale = True

    def _try_jump(self, jump: _Jump) -> None:
        scans = self._searches if jump.to == "match" else self._hunts
        if not scans:
            self._land(jump.number, None)
        elif jump.to == "error":
            if found := self._lines.found(scans, jump.key, 1, is_sure=all(scan.has_reached_end for scan in scans)):
                self._land(jump.number, found)
            elif all(scan.has_reached_end for scan in scans):
                self._land(jump.number, None)
        else:
            self._try_match(jump, scans)

    def _try_match(self, jump: _Jump, scans: list[Scan]) -> None:
        below, done = all(scan.has_reached_end for scan in scans), all(scan.is_done for scan in scans)
        if jump.direction >= 0:
            beyond = (
                (jump.key[0], jump.key[1], jump.key[2] + jump.direction) if jump.key not in (START, END) else jump.key
            )
            found = self._lines.found(scans, beyond, 1, is_sure=below)
            if not found and below and jump.direction:
                found = self._lines.found(scans, START, 1, is_sure=done)
            elif not found and below:
                found = self._lines.found(scans, jump.key, -1, is_sure=done)
        else:
            found = self._lines.found(scans, jump.key, -1, is_sure=done)
            if not found and done:
                found = self._lines.found(scans, END, -1, is_sure=done)
        if found or done:
            self._match = found or self._match
            self._land(jump.number, found)


def _close(*groups: list[Scan]) -> None:
    for scan in [scan for group in groups for scan in group]:
        scan.close()
