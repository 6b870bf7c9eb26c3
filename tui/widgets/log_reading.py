"""What a log on screen reads, filters, searches and jumps to; `log_view.py` has its keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from textual import events, on
from textual.message import Message

from backends.errors import UsageError
from backends.logs.moments import parse_moment
from backends.logs.reader import LogReader
from backends.logs.text import RANKS
from backends.logs.windows import EMPTY, END, START, Extent, Key
from tui.widgets.log_pane import APART_FROM_CELLS, PROCESS_CELLS, LogPane

AROUND_LINES = 200

NOTHING_KNOWN = Extent()

NOTHING_FOUND = {"error": "no error in this log", "next error": "no error below"}
"""What is said where a way to an error leads nowhere."""


@dataclass(frozen=True, slots=True)
class LogStatus:
    """Where the reader stands.

    `new_lines` came since following was left; `line` is the number of the line on top, from 1, None while it is not
    known; `part` is how far down that is, from 0 to 1. `match` counts from 1, `matches` is None without a search.
    `is_looking`: a jump's goal is not found yet. `is_marking`: a line is being chosen, or several are marked.
    """

    extent: Extent
    following: bool
    new_lines: int
    line: int | None
    part: float
    matches: int | None
    match: int | None
    is_searching: bool
    is_looking: bool
    is_marking: bool


class ReadingPane(LogPane):
    """A pane that reads one log, or several merged; a thread of the reader's tells what is new."""

    class Changed(Message):
        """The position, or what is known of the log, has changed."""

    class Complained(Message):
        """Something cannot be done: `text` says what, in one line."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class _Read(Message):
        """The reading thread has news."""

        def __init__(self, reader: LogReader) -> None:
            super().__init__()
            self.reader = reader

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, ReadingPane._Read) and message.reader is self.reader

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.following = True
        self._reader: LogReader | None = None
        self.rule: tuple[int, tuple[str, ...]] = (0, ())
        self.extent = NOTHING_KNOWN
        self._place: Key | None = END
        self._ask = 0
        self._wants_start = False
        self._jump: tuple[int, str] | None = None
        self._pending = 0
        self._seen = 0
        self._error: Key | None = None
        self._pattern: re.Pattern[str] | None = None
        self._offered = (True, True, True)

    @property
    def shows_whole(self) -> bool:
        """Whether lines are shown as they are in the file."""
        return self._rows.whole

    @property
    def paths(self) -> tuple[Path, ...]:
        """The logs that are shown."""
        return self._reader.paths if self._reader else ()

    @property
    def path(self) -> Path | None:
        """The log that is shown, the first one where they are merged."""
        return self.paths[0] if self.paths else None

    @property
    def search_pids(self) -> list[int]:
        """The pids of the processes that search."""
        return self._reader.search_pids if self._reader else []

    @property
    def status(self) -> LogStatus:
        """Where the reader stands now."""
        extent, window = self.extent, self._window
        down = self._top - self._base
        low, high = window.marks
        return LogStatus(
            extent=extent,
            following=self.following,
            new_lines=0 if self.following else max(0, self._came() - self._seen),
            line=None if window.number is None else window.number + down,
            part=low + (high - low) * down / max(1, len(window.lines)),
            matches=extent.matches if self._pattern else None,
            match=extent.match if self._rows.match else None,
            is_searching=extent.is_searching,
            is_looking=self._jump is not None and extent.is_looking,
            is_marking=self._marked is not None,
        )

    @property
    def is_empty(self) -> bool:
        """Whether no line is shown."""
        return not self._window.lines

    def _came(self) -> int:
        extent = self.extent
        return extent.appended_lines if extent.shown is None else extent.shown

    def open(self, path: Path | Sequence[Path] | None, labels: Sequence[str] = ()) -> None:
        """Show the log at `path` from its end on, or several merged; a search goes on in it. None shows nothing."""
        self._end_reader()
        paths = (path,) if isinstance(path, Path) else tuple(path or ())
        self._reader = LogReader(paths, self._told) if paths else None
        self.extent = NOTHING_KNOWN
        self._take_window(EMPTY)
        self.following, self._place, self._seen, self._pending = True, END, 0, 0
        self._wants_start, self._error = False, None
        self._rows.labels = tuple(labels) if len(paths) > 1 else ()
        self._rows.widest, self._rows.match, self._jump = 0, None, None
        self._rows.clear()
        self.scroll_x = self.scroll_y = 0
        if self._reader:
            self._ask = self._reader.show(END, self._around)
            if self.rule != (0, ()):
                self._reader.filter(*self.rule)
            if self._pattern:
                self._reader.search(self._pattern, self.rule, END)
            self._reader.open()
        self._settle()

    def pause(self, *, paused: bool) -> None:
        """Stop reading while nobody looks, or go on."""
        if self._reader and paused:
            self._reader.pause()
        elif self._reader:
            self._reader.resume()

    def filter(self, level: int, processes: Sequence[str]) -> None:
        """Show only lines of a level or worse (its rank, see `backends.logs.text.RANKS`), and of these processes."""
        self.rule = (level if level > RANKS["DEBUG"] else 0, tuple(processes))
        if self._reader:
            self._reader.filter(*self.rule)
            self._seen = 0 if self.rule != (0, ()) else self.extent.appended_lines
            if self._pattern:
                self._reader.search(self._pattern, self.rule, self._here)
        self._settle()

    def search(self, pattern: re.Pattern[str] | None) -> None:
        """Mark and count the lines in which `pattern` is found, and go to the nearest; None ends the search."""
        self._pattern, self._rows.match, self._jump = pattern, None, None
        self._rows.spans = {}
        self._rows.clear()
        if self._reader:
            self._reader.search(pattern, self.rule, self._here)
            if pattern:
                self._jump = (self._reader.jump_to_match(self._here, 0), "match")
            else:
                self._reader.stay()
        self._settle()

    def next_match(self, direction: int) -> None:
        """Go to the next match below or above, from the other end after the last one."""
        if self._reader and self._pattern:
            here = self._rows.match or self._here
            self._jump = (self._reader.jump_to_match(here, direction), "match")

    def stop_looking(self) -> bool:
        """Give up a jump whose goal is not found yet; returns whether there was one."""
        was_looking, self._jump = self.status.is_looking, None
        if self._reader and was_looking:
            self._reader.stay()
        return was_looking

    def first_error(self) -> None:
        """Go to the log's first error; from there to the next."""
        if self._reader:
            here = self._error if self._error in self._numbers else None
            after = (*here[:2], here[2] + 1) if here else START
            self._jump = (self._reader.jump_to_error(after), "next error" if here else "error")

    def go_to_time(self, text: str) -> None:
        """Go to a time as `parse_moment` reads it: '14:03', '-5m'."""
        reader = self._reader
        if reader:
            reader.last_moment(lambda last: self.app.call_later(self._go_to_moment, reader, text, last))

    def _go_to_moment(self, reader: LogReader, text: str, last: datetime | None) -> None:
        if reader is not self._reader:
            return
        if last is None:
            self.post_message(self.Complained("the lines of this log have no times"))
            return
        try:
            self._jump = (reader.jump_to_moment(parse_moment(text, last)), "moment")
        except UsageError as problem:
            self.post_message(self.Complained(f"{problem.message}: {problem.hint}"))

    def on_resize(self, event: events.Resize) -> None:
        """Lay out anew for the new size."""
        self._rows.column = PROCESS_CELLS if event.size.width >= APART_FROM_CELLS else 0
        self._rows.clear()
        self._settle()

    def on_unmount(self) -> None:
        """Let the reading thread go, and the searching processes."""
        self._end_reader()

    def _end_reader(self) -> None:
        if self._reader:
            self._reader.close()

    @property
    def _around(self) -> int:
        return max(AROUND_LINES, 3 * self.scrollable_size.height)

    @property
    def _here(self) -> Key:
        """The line on top; the end while following."""
        line = self._line(self._top)
        return END if self.following or line is None else line.key

    def _told(self) -> None:
        """Runs in the reading thread."""
        reader = self._reader
        with suppress(RuntimeError):  # The app is ending.
            if reader:
                self.post_message(self._Read(reader))

    @on(_Read)
    def _take(self, message: _Read) -> None:
        message.stop()
        reader = message.reader
        if reader is not self._reader:
            return
        window, self.extent = reader.window, reader.extent
        if window is not self._window:
            self._take_window(window)
            if self._wants_start and window.ask >= self._ask:
                self._wants_start, self._top, self._row = False, self._base, 0
            if self._jump and window.jump >= self._jump[0]:
                self._land(self._jump[1])
        pending, self._pending = self._pending, 0
        if pending and not self.following:
            self.action_move(pending)
        else:
            self._settle()

    def _land(self, what: str) -> None:
        """Take up the place that a jump has led to."""
        window, self._jump = self._window, None
        focus = self._line(self._base + window.focus)
        if not window.has_found or focus is None:
            if what != "match":
                self.post_message(self.Complained(NOTHING_FOUND.get(what, "the log ends before that")))
            return
        self._leave_end()
        number, height = self._base + window.focus, self.scrollable_size.height
        if what == "match":
            self._rows.discard(self._rows.match)
            self._rows.match = focus.key
            self._rows.discard(focus.key)
        self._error = focus.key if what in NOTHING_FOUND else None
        is_shown = what == "match" and number in {shown for shown, _ in self._layout}
        if not is_shown:
            up = 0 if what in ("moment", "part") else height // 3
            self._top, self._row = self._moved(number, 0, -up)
        self._place = focus.key

    def _settle(self) -> None:
        """Lay out from the position, or from the end while following, and ask for what comes near."""
        self.post_message(self.Changed())
        height = self.scrollable_size.height
        if not height:
            return
        window = self._window
        end_top = self._moved(self._end, 0, -height)
        if self.following and window.last:
            self._top, self._row = end_top
        elif not self.following and (self._top, self._row) > end_top:
            if not window.last:
                self._pending += max(0, self._top - end_top[0])
            self._top, self._row = end_top
        self._ask_for_more(height)
        if not self.following or window.last:
            self._show_layout(end_top[0])
        offered = (self.following, self._is_at_start, self.is_empty)
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def _ask_for_more(self, height: int) -> None:
        reader, window = self._reader, self._window
        if reader is None:
            return
        if self.following:
            if self._place != END:
                self._place, self._ask = END, reader.show(END, self._around)
            return
        line = self._line(self._top)
        if line is None or (window.ask != self._ask and self._place != END):
            return
        lacks_above = self._top - self._base < height and not window.first
        lacks_below = self._end - self._top < 2 * height and not window.last
        if self._place == END or ((lacks_above or lacks_below) and self._place != line.key):
            self._place, self._ask = line.key, reader.show(line.key, self._around)

    def _leave_end(self) -> None:
        if self.following:
            self._seen = self._came()
        self.following = False

    def _go(self, number: int, row: int, *, may_follow: bool = False) -> None:
        """Show a position; one that the log's end is in view of means following it, if that may be."""
        height = self.scrollable_size.height
        at_end = self._window.last and (number, row) >= self._moved(self._end, 0, -height)
        if may_follow and at_end:
            self.following = True
        else:
            self._leave_end()
            self._top, self._row = max(number, self._base), row
        self._settle()

    def action_move(self, rows: int) -> None:
        """Scroll by rows; upwards stops following, reaching the end begins it again."""
        if rows < 0 or not self.following:
            number, row = self._moved(self._top, self._row, rows)
            if rows < 0 and number == self._base and not self._window.first and not self._rows.wraps:
                self._pending += self._top + rows - number
            self._go(number, row, may_follow=rows > 0)
