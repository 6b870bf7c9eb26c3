"""Windows of lines: of one log, or of several merged by the lines' times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from backends.logs.file import LogFile, stamp_of
from backends.logs.matcher import Spans
from backends.logs.scanner import Scan

Key = tuple[int, int, int]
"""A line's place among all that are shown: its time in ms where logs are merged (else 0), its log, its byte in that."""

END: Key = (1 << 62, 1 << 30, 1 << 62)
START: Key = (-(1 << 62), -1, -(1 << 62))


class LogLine(NamedTuple):
    """A line, and where it stands."""

    key: Key
    text: str

    @property
    def source(self) -> int:
        """Which of the merged logs it is from."""
        return self.key[1]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of the log is known: `lines` are counted, `appended_lines` came since it was opened.

    `is_whole` says that all are counted; `problem` why a file cannot be read, if so. `shown` are the lines that the
    filter has let pass so far, None without one; `processes` are those that write into the log, as far as is known.
    `given_up` are lines that took the search too long; `has_failed`: a process that searches or filters has died.
    """

    lines: int = 0
    size_bytes: int = 0
    is_whole: bool = False
    exists: bool = False
    problem: str | None = None
    appended_lines: int = 0
    shown: int | None = None
    is_filtering: bool = False
    matches: int | None = None
    match: int | None = None
    is_searching: bool = False
    is_looking: bool = False
    given_up: int = 0
    has_failed: bool = False
    processes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """Lines around the place asked for last, which is before the one at `focus`, in the order in which they are shown.

    `ask` is the number of that question, `jump` that of the jump that led here; `first` and `last` say that nothing
    comes before, or after them. `number` is the first line's in its log, from 1, where that is known.
    `marks` are the places of the first and last line within the log as a whole, from 0 to 1. `spans` are the places
    in a line that a search has found, of lines that have some.
    """

    ask: int
    jump: int
    lines: tuple[LogLine, ...]
    focus: int
    first: bool
    last: bool
    number: int | None
    marks: tuple[float, float]
    has_found: bool
    spans: Mapping[Key, Spans]


EMPTY = Window(0, 0, (), 0, first=True, last=True, number=None, marks=(0.0, 1.0), has_found=False, spans={})


class Lines:
    """The lines of one log, or of several as one; all methods are called from one thread and raise OSError."""

    def __init__(self, sources: Sequence[LogFile]) -> None:
        self.sources = tuple(sources)

    def mark(self, key: Key) -> float:
        """Return how far down in its log a line is, from 0 to 1."""
        source = self.sources[key[1]]
        return (key[2] - source.start) / max(1, source.end - source.start)

    def at(self, number: int, key: Key) -> int:
        """Return where in one of the logs the lines from `key` on begin."""
        source = self.sources[number]
        if key == END:
            return source.end + 1
        if key == START:
            return source.start
        if len(self.sources) == 1 or number == key[1]:
            return key[2]
        # Lines of the same millisecond stand in the order of their logs.
        return source.place_of(datetime.fromtimestamp((key[0] + (number < key[1])) / 1000, UTC))

    def lines_from(self, key: Key, most: int, filters: Sequence[Scan]) -> tuple[list[LogLine], bool]:
        """Return up to `most` lines from `key` on that `filters` let pass, and whether nothing comes after them."""
        found: list[LogLine] = []
        is_whole = True
        for number, source in enumerate(self.sources):
            scan = filters[number] if filters else None
            lines, ends = source.lines_from(self.at(number, key), most, scan)
            found += self._keyed(number, lines, key[0])
            is_whole &= ends
        if len(self.sources) > 1:
            found.sort(key=lambda line: line.key)
        return found[:most], is_whole and len(found) <= most

    def lines_before(self, key: Key, most: int, filters: Sequence[Scan]) -> tuple[list[LogLine], bool]:
        """Return up to `most` lines before `key` that `filters` let pass, and whether nothing comes before them."""
        found: list[LogLine] = []
        is_whole = True
        for number, source in enumerate(self.sources):
            scan = filters[number] if filters else None
            lines, ends = source.lines_before(self.at(number, key), most, scan)
            found += self._keyed(number, lines, None)
            is_whole &= ends
        if len(self.sources) > 1:
            found.sort(key=lambda line: line.key)
        return found[-most:], is_whole and len(found) <= most

    def _keyed(self, number: int, lines: list[tuple[int, str]], when: int | None) -> list[LogLine]:
        """Give lines their keys; where logs are merged, one without a time has that of the line above it."""
        if len(self.sources) == 1:
            return [LogLine((0, 0, at), text) for at, text in lines]
        if when is None or abs(when) == END[0]:
            first = next((moment for _, text in lines if (moment := stamp_of(text))), None)
            when = _milliseconds(first) if first else 0
        keyed = []
        for at, text in lines:
            moment = stamp_of(text)
            when = _milliseconds(moment) if moment else when
            keyed.append(LogLine((when, number, at), text))
        return keyed

    def at_fraction(self, fraction: float) -> Key:
        """Return the line that is a part of the way through the biggest log."""
        biggest = max(self.sources, key=lambda source: source.end - source.start)
        at = biggest.start + int(fraction * (biggest.end - biggest.start))
        lines, _ = biggest.lines_from(at, 1)
        return self._keyed(self.sources.index(biggest), lines, 0)[0].key if lines else END

    def at_moment(self, moment: datetime) -> Key:
        """Return where the lines of `moment` (with a time zone) or later begin."""
        if len(self.sources) == 1:
            return (0, 0, self.sources[0].place_of(moment))
        return (_milliseconds(moment), -1, 0)

    def found(self, scans: Sequence[Scan], key: Key, direction: int, *, is_sure: bool) -> Key | None:
        """Return the nearest line found from `key` on, or before it; in merged logs once all are searched."""
        found: list[Key] = []
        for number, (source, scan) in enumerate(zip(self.sources, scans, strict=True)):
            find = source.find_from if direction > 0 else source.find_before
            at = find(self.at(number, key), scan)
            if at is not None:
                lines, _ = source.lines_from(at, 1)
                found.append(self._keyed(number, lines, 0)[0].key)
        if not found or (len(scans) > 1 and not is_sure):
            return None
        return min(found) if direction > 0 else max(found)

    def rank(self, key: Key, scans: Sequence[Scan]) -> int:
        """Return which of the lines found the one at `key` is, counted from 1."""
        pairs = zip(self.sources, scans, strict=True)
        return 1 + sum(source.rank(self.at(n, key), scan) - 1 for n, (source, scan) in enumerate(pairs))


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
