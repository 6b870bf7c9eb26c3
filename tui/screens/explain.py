"""What the figures on a screen mean, one after another."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.explain import EXPLANATIONS
from tui.themes import palette


class ExplainScreen(ModalScreen[None]):
    """A sheet over the screen whose figures it explains; the first of `figures` is the one that was asked about."""

    DEFAULT_CSS = """
    ExplainScreen { align: center middle; }
    ExplainScreen #sheet {
        width: 76; max-width: 96%; height: auto; max-height: 90%; padding: 0 2;
        border: round $primary; background: $surface;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,i,enter", "dismiss", "Close", id="explain.close")]

    def __init__(self, figures: tuple[str, ...]) -> None:
        super().__init__()
        self._figures = figures

    def compose(self) -> ComposeResult:
        """Make the sheet."""
        colours = palette(self.app)
        text = Text()
        for key in self._figures:
            told = EXPLANATIONS[key]
            text.append(f"{told.title}\n", f"bold {colours.accent}").append(
                f"{told.what} {told.drives}\n\n", colours.text
            )
        text.rstrip()
        with VerticalScroll(id="sheet") as sheet:
            sheet.border_title = "What it means"
            yield Static(text)
