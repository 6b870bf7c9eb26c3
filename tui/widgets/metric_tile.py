"""A tile: a title, figures beside each other, and below each its history."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

from tui.format import fit
from tui.themes import Palette, palette
from tui.widgets.bars import faded, history
from tui.widgets.metric_history import History
from tui.widgets.metric_readings import Figure, Reading

GAP = 2
HEADING_LINES = 2

Columns = list[float | None]


class MetricTile(Widget):
    """Drawn anew only when a figure of it, or a column of a chart, has changed."""

    def __init__(self) -> None:
        super().__init__()
        self._reading = Reading("", ())
        self._columns: list[Columns] = []
        self._shown: tuple[Reading, History, float, float] | None = None

    def show(self, reading: Reading, past: History, now: float, window_s: float) -> None:
        """Show the newest figures and their history."""
        self._shown = (reading, past, now, window_s)
        widths = shares(self.size.width, len(reading.figures))
        columns = [
            past.columns(figure.chart.series, now, window_s, width, grows=figure.chart.grows)
            for figure, width in zip(reading.figures, widths, strict=True)
        ]
        if (reading, columns) != (self._reading, self._columns):
            self._reading, self._columns = reading, columns
            self.refresh()

    def on_resize(self) -> None:
        """Draw as many columns as there are now."""
        if self._shown is not None:
            self.show(*self._shown)

    def render(self) -> Text:
        """Draw it for the size that it has."""
        colours, (width, height) = palette(self.app), self.size
        parts = list(zip(self._reading.figures, self._columns, strict=True))
        lines = [
            title_line(self._reading, width, colours),
            Text(" " * GAP).join([figure_line(figure, columns, colours) for figure, columns in parts]),
        ]
        rows = max(0, height - HEADING_LINES)
        charts = [chart_rows(figure, columns, rows) for figure, columns in parts]
        for row in range(rows):
            # A single row in full colour would outshine the figures.
            style = faded(colours.primary, colours.background, row if rows > 1 else 1, max(2, rows))
            lines.append(Text((" " * GAP).join(chart[row] for chart in charts), style))
        return Text("\n", no_wrap=True, end="").join(lines)


def shares(width: int, parts: int) -> list[int]:
    """Divide a width among parts with gaps between them."""
    room = max(parts, width - GAP * (parts - 1))
    return [room * (part + 1) // parts - room * part // parts for part in range(parts)]


def title_line(reading: Reading, width: int, colours: Palette) -> Text:
    """Draw the title on a rule: '─ KV cache usage · of 792k tokens ─────'."""
    text = Text.assemble(("─ ", colours.faint), (fit(reading.title, width - 4), colours.text), no_wrap=True)
    room = width - text.cell_len - 5
    detail = reading.detail
    while len(detail) > room and " · " in detail:
        detail = detail.rpartition(" · ")[0]
    if detail and room > 4:
        text.append(f" · {fit(detail, room)}", colours.dim)
    return text.append(" " + "─" * max(0, width - text.cell_len - 1), colours.faint)


def figure_line(figure: Figure, columns: Columns, colours: Palette) -> Text:
    """Draw a figure with its label and, where its chart is drawn up to its own peak, that peak."""
    width = len(columns)
    text = Text(fit(figure.value, width), f"bold {getattr(colours, figure.tone)}", no_wrap=True)
    line = Text.assemble(text)
    if figure.label and line.cell_len + 1 + len(figure.label) <= width:
        line.append(f" {figure.label}", colours.dim)
    peak = max((value for value in columns if value is not None), default=0.0)
    if figure.chart.show is not None and figure.chart.top is None and peak > 0:
        told = f"peak {figure.chart.show(peak)}"
        if line.cell_len + 2 + len(told) <= width:
            line.append(" " * (width - line.cell_len - len(told))).append(told, colours.dim)
    return line.append(" " * max(0, width - line.cell_len))


def chart_rows(figure: Figure, columns: Columns, rows: int) -> list[str]:
    """Draw a figure's history as `rows` lines of blocks."""
    top = figure.chart.top
    if top is None:
        top = max((value for value in columns if value is not None), default=0.0)
    return history(columns, len(columns), rows, top) if rows else []
