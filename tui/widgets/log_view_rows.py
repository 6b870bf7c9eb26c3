"""The drawn rows of a log's lines: made when first looked at, and kept while nothing about their looks changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Console
from rich.style import Style
from rich.text import Text
from textual.cache import LRUCache
from textual.strip import Strip

from backends.logs.matcher import Spans
from backends.logs.windows import Key, LogLine
from tui.widgets.log_view_lines import LineStyles, laid_out, rows_of

KEPT_LINES = 512
LABEL_CELLS = 12


class Rows:
    """Draws lines.

    `whole` and `wraps` say how; `spans` are marked, those of the line `match` as the one gone to; `labels` are the
    names of merged logs, none for one log alone; `column` is the width of the processes' own column, 0 for none.
    `widest` is the widest line drawn unwrapped.
    """

    def __init__(self) -> None:
        self.whole = False
        self.wraps = False
        self.spans: Mapping[Key, Spans] = {}
        self.match: Key | None = None
        self.labels: tuple[str, ...] = ()
        self.column = 0
        self.widest = 0
        self._kept: LRUCache[Key, list[tuple[int, Strip]]] = LRUCache(KEPT_LINES)

    def clear(self) -> None:
        """Draw everything anew."""
        self._kept.clear()

    def mark(self, spans: Mapping[Key, Spans]) -> None:
        """Mark other places; lines where they are others are drawn anew."""
        before, self.spans = self.spans, spans
        for key in before.keys() | spans.keys():
            if before.get(key) != spans.get(key):
                self.discard(key)

    def discard(self, key: Key | None) -> None:
        """Draw one line anew."""
        if key is not None:
            self._kept.discard(key)

    def kept(self, key: Key) -> list[tuple[int, Strip]] | None:
        """Return the rows of a line if it is drawn already, each with where in the line it starts."""
        return self._kept.get(key)

    def text_of(self, line: LogLine, styles: LineStyles) -> Text:
        """Return a line as it is shown; in merged logs it starts with the log's name."""
        is_current, spans = line.key == self.match, self.spans.get(line.key, ())
        shown = laid_out(line.text, styles, whole=self.whole, spans=spans, is_current=is_current, column=self.column)
        if not self.labels:
            return shown
        cells = self._label_cells
        colours = styles.sources or (styles.faint,)
        name = f"{self.labels[line.source][:cells]:{cells}}"
        return Text.assemble((name, colours[line.source % len(colours)]), " ", shown, no_wrap=True, end="")

    @property
    def _label_cells(self) -> int:
        return min(LABEL_CELLS, max(map(len, self.labels), default=0))

    def draw(
        self,
        line: LogLine,
        width: int,
        styles: LineStyles,
        console: Console,
        selected: tuple[int, int, Style] | None,
    ) -> list[tuple[int, Strip]]:
        """Draw a line; `selected` is what of it is selected (to the end where that is -1), and how that looks."""
        text = self.text_of(line, styles)
        if selected:
            start, end, style = selected
            text.stylize(style, start, len(text) if end == -1 else end)
        if self.wraps:
            beside = (self._label_cells + 1 if self.labels else 0) + (self.column + 1 if self.column else 0)
            rows = [(at, strip_of(row, console)) for at, row in rows_of(text, width, whole=self.whole, column=beside)]
        else:
            rows = [(0, strip_of(text, console))]
            self.widest = max(self.widest, rows[0][1].cell_length)
        self._kept[line.key] = rows
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
