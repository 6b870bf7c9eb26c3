"""Lines of a log chosen with a pointer, or marked from one line to another, and copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backends.logs.windows import Key
from tui.format import plural
from tui.widgets.log_reading import ReadingPane

MARKED_LINES = 10_000
"""So many lines are copied at most; terminals take less."""


class MarkingPane(ReadingPane):
    """A pane in which `y` chooses a line and then copies it, and Space marks several."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._pointer: Key | None = None
        self._from: Key | None = None
        self._was_following = False

    def open(self, path: Path | Sequence[Path] | None, labels: Sequence[str] = ()) -> None:
        """Show another log, in which no line is chosen."""
        self._end_marking()
        super().open(path, labels)

    def filter(self, level: int, processes: Sequence[str]) -> None:
        """Show other lines, of which none is chosen."""
        self._end_marking()
        super().filter(level, processes)

    def action_move(self, rows: int) -> None:
        """Move the pointer, where a line is being chosen; else scroll."""
        if self._pointer is not None:
            self._move_pointer(rows)
        else:
            super().action_move(rows)

    def action_copy(self) -> None:
        """Choose the match, or the last line in view; then copy it, or the lines marked."""
        reader = self._reader
        if reader is None or not self._layout:
            return
        if self._pointer is None:
            shown = [number for number, _ in self._layout]
            match = self._numbers.get(self._rows.match) if self._rows.match else None
            line = self._line(match if match in shown and match is not None else shown[-1])
            self._pointer, self._was_following = line.key if line else None, self.following
            self._go(self._top, self._row)
            self._mark_changed()
        elif self._marked is not None:
            low, high, _ = self._marked
            reader.texts(low, high, MARKED_LINES, lambda texts: self.app.call_later(self._copy, texts))
            self._end_marking()

    def _copy(self, texts: list[str]) -> None:
        self.app.copy_to_clipboard("\n".join(texts))
        self.app.notify(f"{plural(len(texts), 'line')} copied", markup=False)

    def action_mark(self) -> None:
        """Mark lines from the pointer on, or no longer."""
        self._from = self._pointer if self._from is None else None
        self._mark_changed()

    def _move_pointer(self, rows: int) -> None:
        number = self._numbers.get(self._pointer, self._top) if self._pointer else self._top
        number = max(self._base, min(self._end - 1, number + rows))
        line, height = self._line(number), self.scrollable_size.height
        self._pointer = line.key if line else self._pointer
        if number < self._top:
            self._top, self._row = number, 0
        elif number not in {shown for shown, row in self._layout[:-1] if row == 0}:
            self._top, self._row = max((self._top, self._row), self._moved(number + 1, 0, -height))
        self._mark_changed()

    def _mark_changed(self) -> None:
        pointer = self._pointer
        was_marking = self._marked is not None
        start = self._from or pointer
        self._marked = (min(start, pointer), max(start, pointer), pointer) if pointer and start else None
        if was_marking != (self._marked is not None):
            if self._rows.wraps:
                self._rows.clear()
            self.refresh_bindings()
        self._settle()

    def end_marking(self) -> bool:
        """Choose no lines any longer; returns whether some were being chosen."""
        was_marking = self._pointer is not None
        self._end_marking()
        return was_marking

    def _end_marking(self) -> None:
        if self._pointer is not None:
            self._pointer = self._from = None
            self.following = self.following or self._was_following
            self._mark_changed()
