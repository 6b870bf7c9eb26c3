"""What the figures on a screen mean: their names on the left, what it is and what drives it on the right."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static

from tui.explain import EXPLANATIONS
from tui.themes import Palette, palette
from tui.widgets.key_footer import KeyFooter


class ExplainScreen(ModalScreen[None]):
    """A sheet over the screen whose figures it explains; the first of `figures` is the one that was asked about."""

    DEFAULT_CSS = """
    ExplainScreen { align: center middle; }
    ExplainScreen #sheet {
        width: 92; max-width: 96%; height: 22; max-height: 90%;
        border: round $primary; background: $surface;
    }
    ExplainScreen OptionList {
        width: 31; height: 100%; padding: 0 1; border: none; background: $surface; scrollbar-size-vertical: 1;
    }
    ExplainScreen #told { width: 1fr; height: 100%; padding: 0 2 0 1; scrollbar-size-vertical: 1; }
    """
    AUTO_FOCUS = "OptionList"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "step(1)", "Next", id="explain.next", tooltip="The next figure on the screen"),
        Binding("up,k", "step(-1)", "Previous", id="explain.previous", tooltip="The figure before it"),
        Binding("escape,q,i,enter", "dismiss", "Close", id="explain.close", tooltip="Back to the figures"),
    ]

    def __init__(self, figures: tuple[str, ...]) -> None:
        super().__init__()
        self._figures = tuple(dict.fromkeys(figures))

    def compose(self) -> ComposeResult:
        """Make the list and the page beside it."""
        with Horizontal(id="sheet") as sheet:
            sheet.border_title = "What it means"
            yield _Figures(*(Text(EXPLANATIONS[key].title, no_wrap=True, overflow="ellipsis") for key in self._figures))
            with VerticalScroll(id="told", can_focus=False):
                yield Static()
        yield KeyFooter()

    def on_mount(self) -> None:
        """Show the one that was asked about."""
        if not self.display:
            return  # It is left already, before it had parts.
        self.query_one(_Figures).highlighted = 0

    @on(OptionList.OptionHighlighted)
    def _turn(self, turned: OptionList.OptionHighlighted) -> None:
        told = page(self._figures[turned.option_index], palette(self.app))
        self.query_one("#told Static", Static).update(told)
        self.query_one("#told").scroll_home(animate=False)

    @on(OptionList.OptionSelected)
    def _leave(self) -> None:
        self.dismiss()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to go on only where there is another figure."""
        return action != "step" or len(self._figures) > 1

    def action_step(self, step: int) -> None:
        """Show the next figure or the one before, around the end."""
        figures = self.query_one(_Figures)
        figures.highlighted = ((figures.highlighted or 0) + step) % len(self._figures)


class _Figures(OptionList, inherit_bindings=False):
    """The figures' names; the sheet's own keys move in it."""


def page(figure: str, colours: Palette) -> Text:
    """Write the explanation of one figure: its title, what it is, what drives it."""
    told = EXPLANATIONS[figure]
    return Text.assemble(
        (f"{told.title}\n\n", f"bold {colours.accent}"),
        (f"{told.what}\n\n", colours.text),
        (told.drives, colours.text),
    )
