"""A table that follows live state: rows are told by key, only cells that changed are drawn, the cursor stays put."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable
from textual.widgets.data_table import ColumnKey, RowKey

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
        Binding("j", "cursor_down", show=False, id="table.down", tooltip="Move in the list"),
        Binding("k", "cursor_up", show=False, id="table.up", tooltip="Move in the list"),
    ]

    def __init__(self, **options: Any) -> None:
        super().__init__(
            cursor_type="row", cell_padding=0, cursor_foreground_priority="renderable", show_row_labels=False, **options
        )
        self._shape: tuple[Column, ...] = ()
        self._given: dict[str, tuple[Text | str, ...]] = {}
        self._drawn: dict[tuple[RowKey, ColumnKey], tuple[Text, tuple[object, ...], list[list[Segment]]]] = {}

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to move only where there is another row."""
        if action in ("cursor_down", "cursor_up"):
            return self.row_count > 1
        return super().check_action(action, parameters)

    def action_scroll_home(self) -> None:
        """Go to the first row: rows are whole, so that there is no first column to go to."""
        if self.row_count:
            self.move_cursor(row=0)

    def action_scroll_end(self) -> None:
        """Go to the last row."""
        if self.row_count:
            self.move_cursor(row=self.row_count - 1)

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
        given, self._given = self._given, {key: tuple(row) for key, row in rows.items()}
        if list(given) == list(rows) and len(self.rows) == len(rows):
            for key, row in rows.items():
                for number, (new, old) in enumerate(zip(row, given[key], strict=True)):
                    if not _is_same(new, old):
                        self.update_cell(key, str(number), _cell(new, shape[number]))
            return
        self.clear()
        for key, row in rows.items():
            self.add_row(*(_cell(one, column) for one, column in zip(row, shape, strict=True)), key=key)
        if rows:
            self.move_cursor(row=list(rows).index(at) if at is not None and at in rows else min(before, len(rows) - 1))

    def clear(self, columns: bool = False) -> Self:
        """Remove all rows, and with `columns` the columns too."""
        self._drawn.clear()
        return super().clear(columns)

    def _render_cell(
        self,
        row_index: int,
        column_index: int,
        base_style: Style,
        width: int,
        cursor: bool = False,
        hover: bool = False,
    ) -> list[list[Segment]]:
        """Draw a cell; Textual's way, through a console and for text of any shape, takes ten times as long."""
        if row_index < 0 or column_index < 0:
            return super()._render_cell(row_index, column_index, base_style, width, cursor, hover)
        row, column = self._row_locations.get_key(row_index), self._column_locations.get_key(column_index)
        assert row is not None
        assert column is not None
        content = self._data[row][column]
        added, forced = self._get_styles_to_render_cell(
            False,
            False,
            False,
            hover,
            cursor,
            self.show_cursor,
            self._show_hover_cursor,
            self.cursor_foreground_priority == "css",
            self.cursor_background_priority == "css",
        )
        look = (row_index, column_index, base_style, added, forced, width)
        drawn = self._drawn.get((row, column))
        if drawn is not None and drawn[0] is content and drawn[1] == look:
            return drawn[2]
        under = base_style + Style.from_meta({"row": row_index, "column": column_index}) + added
        parts = [*content.render(self.app.console, end=""), Segment(" " * (width - content.cell_len))]
        segments = [Segment(text, under + style + forced if style else under + forced) for text, style, _ in parts]
        self._drawn[row, column] = (content, look, [segments])
        return [segments]

    def select(self, key: str) -> None:
        """Put the cursor on the row of `key`, where there is one."""
        if self.cursor_key != key and key in self.rows:
            self.move_cursor(row=self.get_row_index(key))


def _cell(content: Text | str, column: Column) -> Text:
    """Cut and pad `content` to exactly its column's width."""
    text = Text(content) if isinstance(content, str) else content
    missing = column.width - text.cell_len
    if missing >= 0 and (missing == 0 or column.align == "left"):
        return text
    text = text.copy()
    if missing < 0:
        text.truncate(column.width, overflow="ellipsis")
    elif column.align == "right":
        text.pad_left(missing)
    return text


def _is_same(new: Text | str, old: Text | str) -> bool:
    """Tell whether two contents look the same; texts are equal to themselves in another style."""
    if isinstance(new, str) or isinstance(old, str):
        return new == old
    return new == old and new.style == old.style
