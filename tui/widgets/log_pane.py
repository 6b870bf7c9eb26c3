"""The lines of a log's window on screen: laid out, wrapped, drawn, selected with the mouse; asks for nothing itself."""

from __future__ import annotations

from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from backends.logs.windows import EMPTY, Key, LogLine, Window
from tui.widgets.log_view_lines import LineStyles
from tui.widgets.log_view_rows import Rows, moved, strip_of

SIDEWAYS_CELLS = 16
FAR = 1 << 30
"""Numbers of lines begin here, and go on from here where a window has nothing in common with the one before."""

GUTTER_CELLS = 2
PROCESS_CELLS = 11
APART_FROM_CELLS = 138
"""From this width on processes stand in a column of their own."""

SOURCES = 6


class LogPane(ScrollView, can_focus=True):
    """Shows a window of lines from a position on, which is a line's number and a row of it.

    Numbers are the pane's own: they stay with a line as long as windows overlap.
    """

    DEFAULT_CSS = """
    LogPane {
        height: 1fr;
        background: $background;
        color: $foreground;
        overflow-y: scroll;
        overflow-x: hidden;
        scrollbar-size-vertical: 1;

        & > .log-view--faint {
            color: $dim;
        }

        & > .log-view--error {
            color: $error;
        }

        & > .log-view--warning {
            color: $warning;
        }

        & > .log-view--own {
            color: $secondary;
        }

        & > .log-view--match {
            background: $warning-muted;
        }

        & > .log-view--current-match {
            background: $warning;
            color: $background;
        }

        & > .log-view--marked {
            background: $panel;
        }

        & > .log-view--source-0 {
            color: $primary;
        }

        & > .log-view--source-1 {
            color: $accent;
        }

        & > .log-view--source-2 {
            color: $secondary;
        }

        & > .log-view--source-3 {
            color: $warning;
        }

        & > .log-view--source-4 {
            color: $success;
        }

        & > .log-view--source-5 {
            color: $error;
        }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "log-view--faint",
        "log-view--error",
        "log-view--warning",
        "log-view--own",
        "log-view--match",
        "log-view--current-match",
        "log-view--marked",
        *(f"log-view--source-{number}" for number in range(SOURCES)),
    }

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._window: Window = EMPTY
        self._base = FAR
        self._numbers: dict[Key, int] = {}
        self._top, self._row = FAR, 0
        self._layout: list[tuple[int, int]] = []
        self._rows = Rows()
        self._styles: LineStyles | None = None
        self._marked: tuple[Key, Key, Key] | None = None

    @property
    def _end(self) -> int:
        """The number after the last line's."""
        return self._base + len(self._window.lines)

    @property
    def _width(self) -> int:
        return self.scrollable_size.width - self._gutter_cells

    @property
    def _gutter_cells(self) -> int:
        return GUTTER_CELLS if self._marked else 0

    @property
    def _is_at_start(self) -> bool:
        return self._window.first and (self._top, self._row) <= (self._base, 0)

    def _line(self, number: int) -> LogLine | None:
        at = number - self._base
        return self._window.lines[at] if 0 <= at < len(self._window.lines) else None

    def _take_window(self, window: Window) -> bool:
        """Go on with another window; returns whether the line on top is in it, too."""
        old, top = self._window, self._line(self._top)
        if old.lines:
            self._rows.discard(old.lines[-1].key)  # It may not have been whole.
        numbers = {line.key: number for number, line in enumerate(window.lines)}
        common = top if top and top.key in numbers else next((one for one in old.lines if one.key in numbers), None)
        if common is not None:
            self._base = self._numbers[common.key] - numbers[common.key]
        else:
            self._base = max(self._end, self._base) + FAR
        self._window = window
        self._rows.mark(window.spans)
        self._numbers = {key: self._base + number for key, number in numbers.items()}
        stays = top is not None and top.key in numbers
        if not stays:
            self._top, self._row = self._base + window.focus, 0
        return stays

    def _laid_out(self, height: int) -> list[tuple[int, int]]:
        rows: list[tuple[int, int]] = []
        number, row = self._top, self._row
        while len(rows) < height and number < self._end:
            rows += [(number, at) for at in range(row, self._height(number))]
            number, row = number + 1, 0
        return rows[:height]

    def _moved(self, number: int, row: int, rows: int) -> tuple[int, int]:
        return moved((number, row), rows, self._base, self._end, self._height if self._rows.wraps else None)

    def _height(self, number: int) -> int:
        return len(self._rows_of(number)) if self._rows.wraps else 1

    def _rows_of(self, number: int) -> list[tuple[int, Strip]]:
        line = self._line(number)
        if line is None:
            return [(0, Strip.blank(0))]
        if kept := self._rows.kept(line.key):
            return kept
        selection = self.text_selection
        span = selection.get_span(number) if selection else None
        selected = (*span, self.screen.get_component_rich_style("screen--selection")) if span else None
        return self._rows.draw(line, self._width, self._line_styles(), self.app.console, selected)

    def _line_styles(self) -> LineStyles:
        if self._styles is None:
            faint, error, warning, own, match, current = (
                self.get_component_rich_style(f"log-view--{part}", partial=True)
                for part in ("faint", "error", "warning", "own", "match", "current-match")
            )
            sources = tuple(
                self.get_component_rich_style(f"log-view--source-{number}", partial=True) for number in range(SOURCES)
            )
            self._styles = LineStyles(Style(), faint, error, warning, own, match, current, sources)
        return self._styles

    def _show_layout(self, end_top: int) -> None:
        """Lay out from the position, and have the scrollbar tell where in the log it is."""
        height = self.scrollable_size.height
        self._layout = self._laid_out(height)
        window = self._window
        total, place = max(height, end_top - self._base + height), self._top - self._base
        if not (window.first and window.last) and window.lines:
            low, high = window.marks
            per_line = max(1e-12, (high - low) / len(window.lines))
            # A power of two: a height that grew with each line would have the whole screen laid out each time.
            total = 1 << max(total, min(1 << 40, int(1 / per_line))).bit_length()
            room = total - height
            place = min(room, round((low + per_line * place) * total))
            place = room if window.last and self._top >= end_top else place
        width = self.scrollable_size.width
        width = width if self._rows.wraps else max(self._rows.widest + self._gutter_cells, width)
        self.virtual_size = Size(width, total)
        self.scroll_y = place
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw the row at `y` of the view."""
        full, style = self.scrollable_size.width, self.rich_style
        if y >= len(self._layout):
            return Strip.blank(full, style)
        number, row = self._layout[y]
        rows = self._rows_of(number)
        start, strip = rows[min(row, len(rows) - 1)]
        x, width = 0 if self._rows.wraps else self.scroll_offset.x, self._width
        length = strip.cell_length
        gutter, ground = self._gutter(number)
        drawn = strip.crop_extend(x, x + width, None).apply_style(style + ground)
        if not self._rows.wraps and length > x + width:
            more = Text("›", self._line_styles().faint, end="")
            drawn = Strip.join([drawn.crop(0, width - 1), strip_of(more, self.app.console).apply_style(style)])
        drawn = drawn.apply_offsets(x + start, number)
        if gutter:
            drawn = Strip.join([strip_of(Text(gutter, end=""), self.app.console).apply_style(style + ground), drawn])
        return drawn

    def _gutter(self, number: int) -> tuple[str, Style]:
        """Return what stands before a line while lines are being marked, and how the line looks."""
        line = self._line(number)
        if self._marked is None or line is None:
            return "", Style()
        low, high, pointer = self._marked
        is_marked = low <= line.key <= high
        sign = "▶ " if line.key == pointer else "┃ " if is_marked else "  "
        return sign, self.get_component_rich_style("log-view--marked") if is_marked else Style()

    def notify_style_update(self) -> None:
        """Draw anew: the theme may have changed."""
        super().notify_style_update()
        self._styles = None
        self._rows.clear()

    def selection_updated(self, selection: Selection | None) -> None:
        """Show what is selected."""
        self._rows.clear()
        self.refresh()

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the selected text, of lines as they are shown."""
        if not self._layout:
            return None
        first = selection.start.y if selection.start else self._layout[0][0]
        last = selection.end.y if selection.end else self._layout[-1][0]
        picked = []
        for number in range(max(first, self._base), min(last + 1, self._end)):
            line = self._line(number)
            if line is not None:
                shown = self._rows.text_of(line, self._line_styles()).plain
                start, end = selection.get_span(number) or (0, -1)
                picked.append(shown[start:] if end == -1 else shown[start:end])
        return "\n".join(picked), "\n"

    def action_sideways(self, steps: int) -> None:
        """Scroll sideways, where lines are not wrapped."""
        if not self._rows.wraps:
            self.virtual_size = Size(self._rows.widest + self._gutter_cells, self.virtual_size.height)
            self.scroll_x += steps * SIDEWAYS_CELLS
