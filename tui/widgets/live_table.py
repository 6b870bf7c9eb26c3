"""A table that follows live state: rows are told by key, only cells that changed are drawn, the cursor stays put."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, its width in cells, and to which side its content stands."""

    label: str
    width: int
    align: Literal["left", "right"] = "left"


class LiveTable(DataTable[Text]):
    """A DataTable of whole rows whose columns are laid out by its owner."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
    ]

    def __init__(self, **options: Any) -> None:
        super().__init__(
            cursor_type="row", cell_padding=0, cursor_foreground_priority="renderable", show_row_labels=False, **options
        )
        self._shape: tuple[Column, ...] = ()

    @property
    def cursor_key(self) -> str | None:
        """The key of the row that the cursor is on."""
        if not self.is_valid_row_index(self.cursor_row):
            return None
        return self.ordered_rows[self.cursor_row].key.value

    def show(self, columns: Sequence[Column], rows: Mapping[str, Sequence[Text | str]]) -> None:
        """Show `rows` (by key, in order) in `columns`; the cursor stays on its row, and nothing is told of it."""
        with self.prevent(DataTable.RowHighlighted):
            self._show(tuple(columns), rows)

    def _show(self, shape: tuple[Column, ...], rows: Mapping[str, Sequence[Text | str]]) -> None:
        at, before = self.cursor_key, self.cursor_row
        if shape != self._shape:
            self.clear(columns=True)
            self._shape = shape
            for number, column in enumerate(shape):
                gap = GAP if number < len(shape) - 1 else 0
                label = _cell(column.label, column)
                self.add_column(label, width=column.width + gap, key=str(number))
        cells = {key: [_cell(one, column) for one, column in zip(row, shape, strict=True)] for key, row in rows.items()}
        if [row.key.value for row in self.ordered_rows] == list(cells):
            for key, row in cells.items():
                for number, cell in enumerate(row):
                    if self.get_cell(key, str(number)) != cell:
                        self.update_cell(key, str(number), cell)
            return
        self.clear()
        for key, row in cells.items():
            self.add_row(*row, key=key)
        if rows:
            self.move_cursor(row=list(cells).index(at) if at in cells else min(before, len(cells) - 1))

    def select(self, key: str) -> None:
        """Put the cursor on the row of `key`, where there is one."""
        if self.cursor_key != key and key in self.rows:
            self.move_cursor(row=self.get_row_index(key))


def _cell(content: Text | str, column: Column) -> Text:
    """Cut and pad `content` to exactly its column's width."""
    text = Text(content) if isinstance(content, str) else content.copy()
    if text.cell_len > column.width:
        text.truncate(column.width, overflow="ellipsis")
    missing = column.width - text.cell_len
    if column.align == "right":
        text.pad_left(missing)
    return text
