"""The drawn rows of a log's lines: made when first looked at, and kept while nothing about their looks changes."""

from __future__ import annotations

import re
from collections.abc import Callable

from rich.console import Console
from rich.style import Style
from rich.text import Text
from textual.cache import LRUCache
from textual.strip import Strip

from tui.widgets.log_view_lines import LineStyles, laid_out, rows_of

KEPT_LINES = 2048


class Rows:
    """Draws lines; `whole`, `wraps`, `pattern` and `match` say how, `widest` is the widest line drawn unwrapped."""

    def __init__(self) -> None:
        self.whole = False
        self.wraps = False
        self.pattern: re.Pattern[str] | None = None
        self.match: int | None = None
        self.widest = 0
        self._kept: LRUCache[int, list[tuple[int, Strip]]] = LRUCache(KEPT_LINES)

    def clear(self) -> None:
        """Draw everything anew."""
        self._kept.clear()

    def discard(self, number: int | None) -> None:
        """Draw one line anew."""
        if number is not None:
            self._kept.discard(number)

    def kept(self, number: int) -> list[tuple[int, Strip]] | None:
        """Return the rows of a line if it is drawn already, each with where in the line it starts."""
        return self._kept.get(number)

    def draw(
        self,
        number: int,
        line: str,
        width: int,
        styles: LineStyles,
        console: Console,
        selected: tuple[int, int, Style] | None,
    ) -> list[tuple[int, Strip]]:
        """Draw a line; `selected` is what of it is selected (to the end where that is -1), and how that looks."""
        text = laid_out(line, styles, whole=self.whole, pattern=self.pattern, is_current=number == self.match)
        if selected:
            start, end, style = selected
            text.stylize(style, start, len(text) if end == -1 else end)
        if self.wraps:
            rows = [(at, strip_of(row, console)) for at, row in rows_of(text, width, whole=self.whole)]
        else:
            rows = [(0, strip_of(text, console))]
            self.widest = max(self.widest, rows[0][1].cell_length)
        self._kept[number] = rows
        return rows


def strip_of(text: Text, console: Console) -> Strip:
    """Draw one row of text."""
    return Strip(text.render(console), text.cell_len)


def moved(
    position: tuple[int, int], rows: int, first: int, end: int, height: Callable[[int], int] | None
) -> tuple[int, int]:
    """Return the position (a line and a row in it) `rows` further down, or up where negative, within `first` and `end`.

    `height` says how many rows a line takes; without it each takes one.
    """
    number, row = position
    if height is None:
        return max(first, min(end, number + rows)), 0
    while rows > 0 and number < end:
        step = min(rows, height(number) - row)
        rows, row = rows - step, row + step
        if row == height(number):
            number, row = number + 1, 0
    while rows < 0:
        if not row:
            if number <= first:
                break
            number, row = number - 1, height(number - 1)
        step = min(-rows, row)
        rows, row = rows + step, row - step
    return number, row
