"""What a search has found so far: line numbers, going both ways from where the log ended when it began."""

from __future__ import annotations

import re
import threading
from array import array
from bisect import bisect_left, bisect_right

from tui.widgets.log_view_lines import text_start


class Search:
    """Lines that match `pattern`; the log's thread adds to it, the screen asks it.

    Older lines are searched from the newest backwards, since that is where one usually looks first.
    """

    def __init__(self, pattern: re.Pattern[str], start: int) -> None:
        self.pattern = pattern
        self.newer_from = start
        self.older_from = start
        self.is_done = False
        self._lock = threading.Lock()
        self._newer = array("q")
        self._older = array("q")  # Negated, so that it ascends too.

    def scan(self, first: int, lines: list[str], *, is_newer: bool) -> None:
        """Search the text of `lines`, their time stamps aside, as far as they are not searched yet.

        The first of them has number `first`.
        """
        search, end = self.pattern.search, first + len(lines)
        start = self.newer_from if is_newer else first
        stop = end if is_newer else self.older_from
        found = []
        for number in range(start, stop):
            line = lines[number - first]
            if search(line[text_start(line) :]):
                found.append(number)
        with self._lock:
            if is_newer:
                self._newer.extend(found)
                self.newer_from = end
            else:
                self._older.extend(-number for number in reversed(found))
                self.older_from = first

    def tell_end(self, *, is_whole: bool) -> bool:
        """Note that all lines known now are searched; returns whether that is news."""
        news = is_whole and not self.is_done
        self.is_done = self.is_done or is_whole
        return news

    def forget_before(self, number: int) -> None:
        """Forget matches in lines that are gone."""
        with self._lock:
            del self._older[bisect_right(self._older, -number) :]
            del self._newer[: bisect_left(self._newer, number)]

    @property
    def count(self) -> int:
        """How many lines match, as far as is known."""
        with self._lock:
            return len(self._newer) + len(self._older)

    def at_or_after(self, number: int) -> int | None:
        """Return the first match at line `number` or below it."""
        with self._lock:
            older = bisect_right(self._older, -number) - 1
            if older >= 0:
                return -self._older[older]
            newer = bisect_left(self._newer, number)
            return self._newer[newer] if newer < len(self._newer) else None

    def before(self, number: int) -> int | None:
        """Return the last match above line `number`."""
        with self._lock:
            newer = bisect_left(self._newer, number) - 1
            if newer >= 0:
                return self._newer[newer]
            older = bisect_right(self._older, -number)
            return -self._older[older] if older < len(self._older) else None

    def rank(self, number: int) -> int:
        """Return which match line `number` is, counted from 1 at the log's beginning."""
        with self._lock:
            at_or_after = bisect_right(self._older, -number)
            return len(self._older) - at_or_after + bisect_left(self._newer, number) + 1
