"""The table that follows live state: the cursor keeps its row, and cells fill their columns exactly."""

from __future__ import annotations

import pytest
from rich.text import Text
from textual.app import App, ComposeResult
from textual.widgets import DataTable

from tui.widgets.live_table import GAP, Column, LiveTable
from tui.widgets.live_text import LiveText, entitle

COLUMNS = (Column("Name", 6), Column("Number", 6, "right"))


class TableApp(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[str | None] = []

    def compose(self) -> ComposeResult:
        yield LiveTable()

    def on_data_table_row_highlighted(self, message: DataTable.RowHighlighted) -> None:
        self.told.append(message.row_key.value)


@pytest.fixture
def app() -> TableApp:
    return TableApp()


def rows(*names: str) -> dict[str, tuple[str, str]]:
    return {name: (name, str(len(name))) for name in names}


async def test_the_cursor_stays_on_its_row_and_nothing_is_told(app: TableApp) -> None:
    async with app.run_test() as pilot:
        table = app.query_one(LiveTable)
        table.show(COLUMNS, rows("a", "b", "c"))
        await pilot.press("down")
        assert table.cursor_key == "b"
        await pilot.pause()
        app.told.clear()
        for names in (("a", "b", "c", "d"), ("z", "a", "b"), ("b",), ("x", "b")):
            table.show(COLUMNS, rows(*names))
            assert table.cursor_key == "b"
        table.show((Column("Other", 9), Column("Widths", 3)), rows("x", "y", "b"))
        assert table.cursor_key == "b"
        await pilot.pause()
        assert app.told == []
        table.show(COLUMNS, rows("x", "y"))
        assert table.cursor_key == "y"
        table.show(COLUMNS, {})
        assert table.cursor_key is None


async def test_home_and_end_go_to_the_first_and_the_last_row(app: TableApp) -> None:
    async with app.run_test() as pilot:
        table = app.query_one(LiveTable)
        table.show(COLUMNS, {})
        await pilot.press("end", "home")
        table.show(COLUMNS, rows("a", "b", "c"))
        await pilot.press("end")
        assert table.cursor_key == "c"
        await pilot.press("home")
        assert table.cursor_key == "a"


async def test_only_cells_that_changed_are_written(app: TableApp) -> None:
    async with app.run_test():
        table = app.query_one(LiveTable)
        table.show(COLUMNS, rows("a", "b"))
        written: list[tuple[object, ...]] = []
        original = table.update_cell
        table.update_cell = lambda *arguments, **_: written.append(arguments) or original(*arguments)  # type: ignore[method-assign,func-returns-value]
        table.show(COLUMNS, rows("a", "b"))
        assert written == []
        table.show(COLUMNS, rows("a", "b") | {"b": ("b", "9")})
        assert [(row, column) for row, column, _ in written] == [("b", "1")]


async def test_cells_are_cut_and_padded_to_their_columns(app: TableApp) -> None:
    async with app.run_test():
        table = app.query_one(LiveTable)
        table.show(COLUMNS, {"k": (Text("much too long"), "42")})
        name, number = table.get_row("k")
        assert name.plain == "much …"
        assert number.plain == "    42"
        assert [column.width for column in table.ordered_columns] == [6 + GAP, 6]


async def test_select_moves_only_to_rows_that_are_there(app: TableApp) -> None:
    async with app.run_test():
        table = app.query_one(LiveTable)
        table.show(COLUMNS, rows("a", "b"))
        table.select("b")
        assert table.cursor_key == "b"
        table.select("nobody")
        assert table.cursor_key == "b"


class Titled(App[None]):
    def compose(self) -> ComposeResult:
        yield LiveText(id="panel")


async def test_a_title_that_stays_the_same_draws_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Titled()
    async with app.run_test():
        panel = app.query_one("#panel", LiveText)
        drawn: list[object] = []
        monkeypatch.setattr(panel, "refresh", lambda *args, **options: drawn.append(args))
        for title in ("GPU 0", "GPU 0", "GPU 1"):
            entitle(panel, title)
    assert (panel.border_title, len(drawn)) == ("GPU 1", 2)
