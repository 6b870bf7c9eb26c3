"""A regular expression that keeps nobody waiting: a line that takes it too long is given up.

There are expressions that would look at one line for years, and Python neither lets other threads run meanwhile nor
can be told to stop. So they are only ever run in children of ours (`scan.py`), where a timer's signal ends such a line.
"""

from __future__ import annotations

import re
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    Found = TypeVar("Found")

TICK_S = 0.02
"""Of computing: after one to two of them a line is given up."""

MOST_SPANS = 500
"""So many places are told of one line."""


class _TakesTooLongError(Exception):
    """Raised by the timer, in the middle of a line."""


class Patient:
    """Runs `pattern`, and counts in `given_up` the lines that took too long; there can be one in a process."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.given_up = 0
        self._pattern = pattern
        self._lines = 0
        self._now = self._seen = 0
        signal.signal(signal.SIGVTALRM, lambda _signal, _frame: self._tick())
        signal.setitimer(signal.ITIMER_VIRTUAL, TICK_S, TICK_S)

    def _tick(self) -> None:
        if self._now and self._now == self._seen:
            self._now = 0
            raise _TakesTooLongError
        self._seen = self._now

    def search(self, text: str) -> bool:
        """Say whether the pattern is in `text`; no where that takes too long."""
        return bool(self._within_patience(self._pattern.search, text))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where it is in `text`, neighbours as one; nowhere where that takes too long."""
        return self._within_patience(self._spans, text) or []

    def _spans(self, text: str) -> list[tuple[int, int]]:
        spans: list[tuple[int, int]] = []
        for found in self._pattern.finditer(text):
            start, end = found.span()
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            elif start < end:
                spans.append((start, end))
                if len(spans) == MOST_SPANS:
                    break
        return spans

    def _within_patience(self, look: Callable[[str], Found], text: str) -> Found | None:
        self._lines += 1
        try:
            self._now = self._lines
            found = look(text)
            self._now = 0
        except _TakesTooLongError:
            self.given_up += 1
            return None
        return found

    def answer(self, texts: Sequence[str], budget_s: float, *, places: bool) -> list[object]:
        """Return for each text where the pattern is, or whether; texts beyond `budget_s` of computing hold none."""
        begun = time.process_time()
        look = self.spans if places else self.search
        return [look(text) if time.process_time() - begun < budget_s else [] for text in texts]
