"""A log's lines on screen: follows its end, scrolls back without limit, searches, wraps; reads nothing itself."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events, on
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.scrollbar import ScrollTo
from textual.selection import Selection
from textual.strip import Strip

from tui.widgets.log_view_lines import LineStyles, laid_out
from tui.widgets.log_view_parts import Extent
from tui.widgets.log_view_rows import Rows, moved, strip_of
from tui.widgets.log_view_search import Search
from tui.widgets.log_view_source import LogSource

WHEEL_ROWS = 3
SIDEWAYS_CELLS = 16
SELECTION_BASE = 1 << 40
"""Added to line numbers, which may be negative, where a selection needs offsets."""

NOTHING_KNOWN = Extent(0, 0, 0, is_whole=False, exists=False, problem=None)


@dataclass(frozen=True, slots=True)
class LogStatus:
    """Where the reader stands; `match` counts from 1, `new_lines` since following was left."""

    extent: Extent
    following: bool
    new_lines: int
    matches: int | None
    match: int | None
    is_searching: bool


class LogView(ScrollView, can_focus=True):
    """Shows one log. Its position is a line and a row within it, so that wrapped lines scroll row by row."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False, id="log.up"),
        Binding("down,j", "move(1)", "Down", show=False, id="log.down"),
        Binding("pageup,b", "page(-1)", "Page up", show=False, id="log.page_up"),
        Binding("pagedown,space", "page(1)", "Page down", show=False, id="log.page_down"),
        Binding("home,g", "to_start", "Start", show=False, id="log.start"),
        Binding(
            "end,G",
            "follow",
            "Follow",
            show=False,
            id="log.follow",
            key_display="G",
            tooltip="Go to the end and follow it",
        ),
        Binding("left,h", "sideways(-1)", "Left", show=False, id="log.left"),
        Binding("right,l", "sideways(1)", "Right", show=False, id="log.right"),
        Binding("w", "wrap", "Wrap", id="log.wrap", tooltip="Wrap long lines, or cut them"),
        Binding("t", "whole", "Whole lines", id="log.whole", tooltip="Show lines as the file has them, or short"),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "log-view--faint",
        "log-view--error",
        "log-view--warning",
        "log-view--own",
        "log-view--match",
        "log-view--current-match",
    }

    class Changed(Message):
        """The position, or what is known of the log, has changed."""

    class _Read(Message):
        """The reading thread has news."""

        def __init__(self, source: LogSource) -> None:
            super().__init__()
            self.source = source

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, LogView._Read) and message.source is self.source

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.following = True
        self._source: LogSource | None = None
        self._extent = NOTHING_KNOWN
        self._top, self._row = 0, 0
        self._layout: list[tuple[int, int]] = []
        self._rows = Rows()
        self._styles: LineStyles | None = None
        self._seen_end = 0
        self._search: Search | None = None
        self._looking = False
        self._syncing = False

    @property
    def shows_whole(self) -> bool:
        """Whether lines are shown as they are in the file."""
        return self._rows.whole

    @property
    def path(self) -> Path | None:
        """The log that is shown."""
        return self._source.path if self._source else None

    @property
    def status(self) -> LogStatus:
        """Where the reader stands now."""
        search = self._search
        return LogStatus(
            extent=self._extent,
            following=self.following,
            new_lines=0 if self.following else max(0, self._extent.end - self._seen_end),
            matches=search.count if search else None,
            match=search.rank(self._rows.match) if search and self._rows.match is not None else None,
            is_searching=search is not None and not search.is_done,
        )

    def open(self, path: Path | None) -> None:
        """Show the log at `path` from its end on; a search goes on in it. None shows nothing."""
        if self._source:
            self._source.close()
        self._source = LogSource(path, self._told) if path else None
        self._extent = NOTHING_KNOWN
        self.following, self._seen_end, self._rows.widest = True, 0, 0
        self._top = self._row = 0
        self._rows.clear()
        self._syncing = True
        self.scroll_x = self.scroll_y = 0
        self._syncing = False
        self._rows.match, self._looking = None, False
        if self._source:
            self._search = self._source.search(self._rows.pattern)
            self._source.open()
        self._settle()

    def pause(self, *, paused: bool) -> None:
        """Stop reading while nobody looks, or go on."""
        if self._source and paused:
            self._source.pause()
        elif self._source:
            self._source.resume()

    def search(self, pattern: re.Pattern[str] | None) -> None:
        """Mark and count the lines in which `pattern` is found, and go to the nearest; None ends the search."""
        self._rows.pattern, self._rows.match = pattern, None
        self._search = self._source.search(pattern) if self._source else None
        self._looking = pattern is not None
        self._rows.clear()
        self._settle()

    def on_unmount(self) -> None:
        """Let the reading thread go."""
        if self._source:
            self._source.close()

    def _told(self) -> None:
        """Runs in the reading thread."""
        source = self._source
        with suppress(RuntimeError):  # The app is ending.
            if source:
                self.post_message(self._Read(source))

    @on(_Read)
    def _take(self, message: _Read) -> None:
        message.stop()
        if message.source is not self._source:
            return
        before, now = self._extent, self._source.extent
        was_at_start = self._top <= before.first and not self.following
        self._extent = now
        self._rows.discard(before.end - 1)  # The last line may not have been whole.
        if was_at_start or self._top < now.first:
            self._top, self._row = now.first, 0
        if self._looking:
            self._go_to_first_match()
        self._settle()

    def _settle(self) -> None:
        """Lay out from the position, or from the end while following; then let scrollbar and reader know."""
        self.post_message(self.Changed())
        width, height = self.scrollable_size
        if not height:
            return
        end_top, end_row = self._moved(self._extent.end, 0, -height)
        if self.following or (self._top, self._row) >= (end_top, end_row):
            self._top, self._row, self.following = end_top, end_row, True
        if self._source:
            self._source.want(self._top - height, self._top + 2 * height)
        self._layout = self._laid_out(height)
        width = width if self._rows.wraps else max(self._rows.widest, width)
        self._syncing = True
        self.virtual_size = Size(width, end_top - self._extent.first + height)
        self.scroll_y = self._top - self._extent.first
        self._syncing = False
        self.refresh()

    def _laid_out(self, height: int) -> list[tuple[int, int]]:
        rows: list[tuple[int, int]] = []
        number, row = self._top, self._row
        while len(rows) < height and number < self._extent.end:
            rows += [(number, at) for at in range(row, self._height(number))]
            number, row = number + 1, 0
        return rows[:height]

    def _moved(self, number: int, row: int, rows: int) -> tuple[int, int]:
        first, end = self._extent.first, self._extent.end
        return moved((number, row), rows, first, end, self._height if self._rows.wraps else None)

    def _height(self, number: int) -> int:
        return len(self._rows_of(number)) if self._rows.wraps else 1

    def _rows_of(self, number: int) -> list[tuple[int, Strip]]:
        """Return the drawn rows of a line; an empty one stands in for a line that is not read yet."""
        if kept := self._rows.kept(number):
            return kept
        line = self._source.lines(number, number + 1)[0] if self._source else None
        if line is None:
            return [(0, Strip.blank(0))]
        selection = self.text_selection
        span = selection.get_span(number + SELECTION_BASE) if selection else None
        selected = (*span, self.screen.get_component_rich_style("screen--selection")) if span else None
        width = self.scrollable_size.width
        return self._rows.draw(number, line, width, self._line_styles(), self.app.console, selected)

    def _line_styles(self) -> LineStyles:
        if self._styles is None:
            faint, error, warning, own, match, current = (
                self.get_component_rich_style(f"log-view--{part}", partial=True)
                for part in ("faint", "error", "warning", "own", "match", "current-match")
            )
            self._styles = LineStyles(Style(), faint, error, warning, own, match, current)
        return self._styles

    def render_line(self, y: int) -> Strip:
        """Draw the row at `y` of the view."""
        width, style = self.scrollable_size.width, self.rich_style
        if y >= len(self._layout):
            return Strip.blank(width, style)
        number, row = self._layout[y]
        rows = self._rows_of(number)
        start, strip = rows[min(row, len(rows) - 1)]
        x = 0 if self._rows.wraps else self.scroll_offset.x
        length = strip.cell_length
        drawn = strip.crop_extend(x, x + width, None).apply_style(style)
        if not self._rows.wraps and length > x + width:
            more = Text("›", self._line_styles().faint, end="")
            drawn = Strip.join([drawn.crop(0, width - 1), strip_of(more, self.app.console).apply_style(style)])
        return drawn.apply_offsets(x + start, number + SELECTION_BASE)

    def notify_style_update(self) -> None:
        """Draw anew: the theme may have changed."""
        super().notify_style_update()
        self._styles = None
        self._rows.clear()

    def on_resize(self, event: events.Resize) -> None:
        """Lay out anew for the new size."""
        if self._rows.wraps:
            self._rows.clear()
        self._settle()

    def selection_updated(self, selection: Selection | None) -> None:
        """Show what is selected."""
        self._rows.clear()
        self.refresh()

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the selected text, of lines as they are shown."""
        if not self._source or not self._layout:
            return None
        first = selection.start.y - SELECTION_BASE if selection.start else self._layout[0][0]
        last = selection.end.y - SELECTION_BASE if selection.end else self._layout[-1][0]
        picked = []
        for number, line in enumerate(self._source.lines(first, last + 1), first):
            shown = laid_out(line or "", self._line_styles(), whole=self._rows.whole, pattern=None).plain
            start, end = selection.get_span(number + SELECTION_BASE) or (0, -1)
            picked.append(shown[start:] if end == -1 else shown[start:end])
        return "\n".join(picked), "\n"

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Go where the scrollbar was dragged to."""
        super().watch_scroll_y(old_value, new_value)
        if not self._syncing and round(new_value) != self._top - self._extent.first:
            self._go(self._extent.first + round(new_value), 0)

    @on(ScrollTo)
    def _on_drag(self, message: ScrollTo) -> None:
        message.prevent_default().stop()
        if message.y is not None:
            self._go(self._extent.first + round(message.y), 0)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll up, row by row also within a long wrapped line."""
        event.prevent_default().stop()
        self.action_move(-WHEEL_ROWS)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll down."""
        event.prevent_default().stop()
        self.action_move(WHEEL_ROWS)

    def _go(self, number: int, row: int) -> None:
        if self.following:
            self._seen_end = self._extent.end
        self.following = False
        self._top, self._row = max(number, self._extent.first), row
        self._settle()

    def action_move(self, rows: int) -> None:
        """Scroll by rows; upwards stops following, reaching the end begins it again."""
        if rows < 0 or not self.following:
            self._go(*self._moved(self._top, self._row, rows))

    def action_page(self, pages: int) -> None:
        """Scroll by pages, keeping one row in view."""
        self.action_move(pages * max(1, self.scrollable_size.height - 1))

    def action_to_start(self) -> None:
        """Go to the oldest line known."""
        self._go(self._extent.first, 0)

    def action_follow(self) -> None:
        """Go to the end and stay there."""
        self.following = True
        self._settle()

    def action_sideways(self, steps: int) -> None:
        """Scroll sideways, where lines are not wrapped."""
        if not self._rows.wraps:
            self.virtual_size = Size(self._rows.widest, self.virtual_size.height)
            self.scroll_x += steps * SIDEWAYS_CELLS

    def action_wrap(self) -> None:
        """Wrap long lines, or cut them at the right edge."""
        self._rows.wraps = not self._rows.wraps
        self._row = 0
        self.scroll_x = 0
        self._rows.clear()
        self._settle()

    def action_whole(self) -> None:
        """Show lines whole as they are in the file, or short: the time, the process, the text."""
        self._rows.whole = not self._rows.whole
        self._rows.widest = 0
        self._row = 0
        self._rows.clear()
        self._settle()

    def next_match(self, direction: int) -> None:
        """Go to the next match below or above, from the other end after the last one."""
        if self._search is None:
            return
        here = self._rows.match if self._rows.match is not None else self._top
        if direction > 0:
            found = self._search.at_or_after(here + 1)
            found = self._search.at_or_after(self._extent.first) if found is None else found
        else:
            found = self._search.before(here)
            found = self._search.before(self._extent.end) if found is None else found
        if found is not None:
            self._show_match(found)

    def _go_to_first_match(self) -> None:
        """Go to the nearest match as soon as it is known: at the view or below, or else the last one above."""
        search = self._search
        if search is None:
            return
        from_here = self._extent.end if self.following else self._top
        if search.older_from > from_here and not search.is_done:
            return  # There may be a nearer one.
        found = search.at_or_after(from_here)
        if found is None:
            found = search.before(from_here)
        if found is not None or search.is_done:
            self._looking = False
        if found is not None:
            self._show_match(found)

    def _show_match(self, number: int) -> None:
        self._rows.discard(self._rows.match)
        self._rows.match = number
        self._rows.discard(number)
        height = self.scrollable_size.height
        if number in {shown for shown, _ in self._layout}:
            self._go(self._top, self._row)
        else:
            self._go(*self._moved(number, 0, -(height // 3)))
