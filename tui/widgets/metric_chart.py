"""A chart: a title with its figures, a value axis, and the history of the figures on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from textwrap import wrap

from rich.segment import Segment
from rich.style import Style
from textual.events import Click
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui.format import ELLIPSIS, NOTHING, fit
from tui.themes import Palette, palette
from tui.widgets.bars import faded
from tui.widgets.metric_axis import LABEL_CELLS, Scale, TimeAxis, scale_for
from tui.widgets.metric_history import History
from tui.widgets.metric_plot import Values, area, lines
from tui.widgets.metric_readings import Figure, Reading

GUTTER = LABEL_CELLS + 1
"""Cells left of a plot: the ticks' labels and the axis."""

TWO_LINES_FROM = 7
"""From this height on a chart has a line of its own for what belongs to its title."""

Cell = tuple[str, Style]
Span = tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """All that a chart shows: nothing is drawn anew while it stays equal. `marks` are signs by columns."""

    reading: Reading
    columns: tuple[tuple[float | None, ...], ...]
    spans: tuple[Span, ...]
    cells: int
    marks: tuple[int, ...]
    cursor: int | None
    chosen: bool


def drawn(
    reading: Reading, past: History, axis: TimeAxis, marks: Sequence[int], cursor: int | None, *, chosen: bool
) -> Drawn:
    """Gather what a chart shows: one figure as one column a cell, several as two."""
    per_cell = 1 if len(reading.figures) == 1 else 2
    charts = [figure.chart for figure in reading.figures]
    columns = tuple(tuple(past.columns(c.series, axis, per_cell=per_cell, grows=c.grows)) for c in charts)
    spans = tuple(past.span(chart.series, axis, grows=chart.grows) for chart in charts)
    return Drawn(reading, columns, spans, axis.cells, tuple(marks), cursor, chosen)


class MetricChart(Widget, can_focus=False):
    """Draws what it is shown; of what has changed only the lines that have are painted again."""

    class Chosen(Message):
        """A chart was clicked on, in a column of its plot or beside it."""

        def __init__(self, key: str, cell: int | None) -> None:
            super().__init__()
            self.key, self.cell = key, cell

    def __init__(self) -> None:
        super().__init__()
        self._drawn: Drawn | None = None
        self._lines: list[Strip] = []
        self._of: object = None

    @property
    def text(self) -> str:
        """What is drawn, line by line."""
        return "\n".join(line.text for line in self._lines)

    def show(self, what: Drawn | None) -> None:
        """Show it; None leaves the place empty."""
        self._drawn = what
        self._draw()

    def on_resize(self) -> None:
        """Draw for the new size."""
        self._draw()

    def render_line(self, y: int) -> Strip:
        """Return a line as it was drawn."""
        line = self._lines[y] if y < len(self._lines) else Strip.blank(self.size.width)
        return line.apply_style(self.rich_style)

    def on_click(self, click: Click) -> None:
        """Say where one has clicked."""
        if self._drawn is not None:
            cell = click.x - GUTTER
            self.post_message(self.Chosen(self._drawn.reading.key, cell if 0 <= cell < self._drawn.cells else None))

    def _draw(self) -> None:
        colours, (width, height) = palette(self.app), self.size
        of = (self._drawn, colours, width, height)
        if of == self._of or not width:
            return
        self._of = of
        new = chart_lines(self._drawn, width, height, colours) if self._drawn else []
        old, self._lines = self._lines, new
        if len(old) != len(new):
            self.refresh()
        else:
            changed = [y for y, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
            if changed:
                self.refresh(*(Region(0, y, width, 1) for y in changed))


def chart_lines(what: Drawn, width: int, height: int, colours: Palette) -> list[Strip]:
    """Draw a chart of `height` lines."""
    # An empty plot tells why it is; where there is none, or an older past in it, the title does.
    heads = [_title(what, width, colours, why=height == 1 or _has_values(what))]
    if height >= TWO_LINES_FROM:
        heads.append(_details(what, width, colours))
    rows = max(0, height - len(heads))
    chart = what.reading.figures[0].chart
    peak = max((value for values in what.columns for value in values if value is not None), default=0.0)
    scale = scale_for(peak, rows, chart.unit, chart.top)
    labels = scale.labels(rows) if rows else []
    plot = _plot(what, rows, scale, colours) if rows else []
    gutter, rule = style(colours.dim), style(colours.faint)
    strips = []
    for label, cells in zip(labels, plot, strict=True):
        segments = [Segment(label[:LABEL_CELLS].rjust(LABEL_CELLS), gutter), Segment("┤" if label else "│", rule)]
        strips.append(Strip([*segments, *joined(cells)]).adjust_cell_length(width))
    return [*heads, *strips]


@lru_cache(maxsize=512)
def style(colour: str, *, bold: bool = False, reverse: bool = False) -> Style:
    """Return a style of one colour."""
    return Style(color=colour, bold=bold or None, reverse=reverse or None)


_faded = lru_cache(maxsize=512)(faded)


def joined(cells: Sequence[Cell]) -> list[Segment]:
    """Join neighbouring cells of one style."""
    return [Segment("".join(char for char, _ in run), kind) for kind, run in groupby(cells, lambda cell: cell[1])]


def _plot(what: Drawn, rows: int, scale: Scale, colours: Palette) -> list[list[Cell]]:
    """Draw the plot's cells, with what happened and the cursor as lines from top to bottom."""
    table: list[list[Cell]] = []
    if not _has_values(what):
        told = what.reading.detail if what.reading.figures[0].value == NOTHING else "no readings in this window"
        words = wrap(told, max(1, what.cells - 2), max_lines=rows, placeholder=ELLIPSIS)
        above = (rows - len(words) + 1) // 2
        texts = [words[row - above] if 0 <= row - above < len(words) else "" for row in range(rows)]
        texts = [text.center(what.cells)[: what.cells] for text in texts]
        table.extend([(char, style(colours.dim)) for char in text] for text in texts)
    elif len(what.columns) == 1:
        for row, text in enumerate(area(what.columns[0], rows, scale.top)):
            # A single row in full colour would outshine the figures.
            kind = style(_faded(colours.primary, colours.background, row if rows > 1 else 1, max(2, rows)))
            table.append([(char, kind) for char in text])
    else:
        first, both = lines(what.columns[:1], rows, scale.top), lines(what.columns, rows, scale.top)
        solid, dotted = style(colours.primary), style(colours.secondary)
        for front, text in zip(first, both, strict=True):
            table.append([(c, dotted if f == " " else solid) for f, c in zip(front, text, strict=True)])
    for cells in table:
        for column in what.marks:
            if cells[column][0] == " ":
                cells[column] = ("┊", style(colours.dim))
        if what.cursor is not None:
            char, kind = cells[what.cursor]
            cells[what.cursor] = ("│", style(colours.accent)) if char in " ┊" else (char, kind + Style(reverse=True))
    return table


def value_at(figure: Figure, values: Values, cells: int, cursor: int) -> str:
    """Return what a figure was in a column: the largest value of its share of time, '–' in a gap."""
    per_cell = max(1, len(values) // max(1, cells))
    found = [value for value in values[cursor * per_cell : (cursor + 1) * per_cell] if value is not None]
    return figure.chart.show(max(found)) if found else NOTHING


def _has_values(what: Drawn) -> bool:
    return any(value is not None for values in what.columns for value in values)


def _title(what: Drawn, width: int, colours: Palette, *, why: bool) -> Strip:
    """Draw '▸ KV cache usage 71% ─── min 32% max 78%'; with a cursor the figures are those at its moment."""
    lead = ("▸ ", style(colours.accent, bold=True)) if what.chosen else ("─ ", style(colours.faint))
    title = (fit(what.reading.title, max(0, width - 4)), style(colours.text, bold=what.chosen))
    segments, used = [Segment(*lead), Segment(*title)], 2 + len(title[0])
    for figure, values in zip(what.reading.figures, what.columns, strict=True):
        value, tone = figure.value, getattr(colours, figure.tone)
        if what.cursor is not None:
            value, tone = value_at(figure, values, what.cells, what.cursor), colours.accent
        # Over a moment of the past a total since the start says nothing.
        label = "" if what.cursor is not None and figure.chart.grows else figure.label
        for words, kind in ((value, style(tone, bold=True)), (label, style(colours.dim))):
            if words and used + 1 + len(words) <= width:
                segments += [Segment(" "), Segment(words, kind)]
                used += 1 + len(words)
    if (
        why
        and what.cursor is None
        and what.reading.detail
        and all(one.value == NOTHING for one in what.reading.figures)
    ):
        reason = fit(f" · {what.reading.detail}", max(0, width - used))
        return Strip([*segments, Segment(reason, style(colours.dim))]).adjust_cell_length(width)
    told = next((one for one in _bounds(what) if used + 2 + len(one) <= width), "")
    segments.append(Segment(" " + "─" * max(0, width - used - len(told) - (2 if told else 1)), style(colours.faint)))
    if told:
        segments.append(Segment(f" {told}", style(colours.dim)))
    return Strip(segments).adjust_cell_length(width)


def _bounds(what: Drawn) -> tuple[str, ...]:
    """Return the window's least and most in fewer and fewer words."""
    known = [span for span in what.spans if span is not None]
    if not known:
        return ()
    show = what.reading.figures[0].chart.show
    low, high = show(min(span[0] for span in known)), show(max(span[1] for span in known))
    return f"min {low} max {high}", f"max {high}"


def _details(what: Drawn, width: int, colours: Palette) -> Strip:
    """Draw what belongs to the title, and of several lines which is which, with its bounds where there is room."""
    is_told_below = not _has_values(what) and what.reading.figures[0].value == NOTHING
    detail = [what.reading.detail] if what.reading.detail and not is_told_below else []
    short, long = list(detail), list(detail)
    if len(what.reading.figures) > 1:
        for figure, span, sign in zip(what.reading.figures, what.spans, ("━", "┅"), strict=False):
            bounds = f" {figure.chart.show(span[0])}…{figure.chart.show(span[1])}" if span else ""
            short.append(f"{sign} {figure.label}")
            long.append(f"{sign} {figure.label}{bounds}")
    told = next((text for text in map(" · ".join, (long, short)) if 2 + len(text) <= width), " · ".join(short))
    return Strip([Segment(fit(f"  {told}", width), style(colours.dim))]).adjust_cell_length(width)
