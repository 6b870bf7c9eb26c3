"""A small sheet to choose from a list by keys: one of it, or several with Space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tui.screens.sheet import SheetScreen
from tui.widgets.key_footer import KeyFooter


class ChooserScreen(SheetScreen[tuple[int, ...] | None]):
    """Ends with the places of what was chosen in `rows`, or with None; `several` can be marked, and start `marked`."""

    DEFAULT_CSS = """
    ChooserScreen #sheet {
        width: 70;
    }
    """
    AUTO_FOCUS = "OptionList"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "Mark", id="choose.mark", tooltip="Mark, or no longer"),
        Binding("ctrl+s", "accept", "Show", key_display="enter", id="choose.accept", tooltip="Show what is chosen"),
        Binding("j", "cursor(1)", show=False, id="choose.down", tooltip="Down"),
        Binding("k", "cursor(-1)", show=False, id="choose.up", tooltip="Up"),
        Binding("escape", "dismiss(None)", "Leave", id="choose.leave", tooltip="Leave it as it is"),
    ]

    def __init__(
        self, title: str, rows: Sequence[str], *, at: int = 0, several: bool = False, marked: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self._title = title
        self._rows = tuple(rows)
        self._at = at
        self._several = several
        self._marked = set(marked)

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with self.frame(self._title):
            yield OptionList(
                *(Option(self._row(number), id=str(number)) for number in range(len(self._rows))), markup=False
            )
        yield KeyFooter()

    def on_mount(self) -> None:
        """Begin where one is."""
        self.query_one(OptionList).highlighted = self._at

    def _row(self, number: int) -> str:
        sign = ("[x] " if number in self._marked else "[ ] ") if self._several else ""
        return sign + self._rows[number]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to mark only where several can be chosen, and to move only where there is another row."""
        return {"mark": self._several, "cursor": len(self._rows) > 1}.get(action, True)

    def action_mark(self) -> None:
        """Mark the highlighted row, or no longer."""
        options = self.query_one(OptionList)
        if options.highlighted is not None:
            self._marked ^= {options.highlighted}
            options.replace_option_prompt_at_index(options.highlighted, self._row(options.highlighted))

    def action_cursor(self, step: int) -> None:
        """Go down or up."""
        options = self.query_one(OptionList)
        if step > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    @on(OptionList.OptionSelected)
    def action_accept(self) -> None:
        """End with what is marked; where one is to be chosen, with the highlighted row."""
        highlighted = self.query_one(OptionList).highlighted
        one = () if highlighted is None else (highlighted,)
        self.dismiss(tuple(sorted(self._marked)) if self._several else one)
