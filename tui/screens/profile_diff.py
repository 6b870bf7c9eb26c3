"""Differences of a profile: against the file on disk, against what its servers were started with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.themes import palette
from tui.widgets.crash_card import diff_text
from tui.widgets.key_footer import KeyFooter
from tui.widgets.live_text import can_scroll


@dataclass(frozen=True, slots=True)
class Difference:
    """One comparison: what with what, and the unified diff; where that is empty, they say the same."""

    title: str
    diff: str


class DiffScreen(ModalScreen[None]):
    """Shows comparisons below each other."""

    CSS_PATH = "../styles/profiles.tcss"
    AUTO_FOCUS = "VerticalScroll"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,v", "dismiss(None)", "Leave", id="diff.leave", tooltip="Back to the profiles"),
        Binding("j,down", "scroll(1)", "Down", id="diff.down", tooltip="Scroll"),
        Binding("k,up", "scroll(-1)", "Up", id="diff.up", tooltip="Scroll"),
    ]

    def __init__(self, title: str, found: Sequence[Difference]) -> None:
        super().__init__()
        self._title = title
        self._found = tuple(found)

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with VerticalScroll(classes="sheet") as box:
            box.border_title = self._title
            yield Static(id="diff")
        yield KeyFooter()

    def on_mount(self) -> None:
        """Show all of them."""
        if not self.display:
            return  # It is left already, before it had parts.
        colours = palette(self.app)
        lines: list[Text] = []
        for one in self._found:
            lines.append(Text(one.title, style=f"bold {colours.text}"))
            lines.append(diff_text(one.diff, colours) if one.diff else Text("  no difference", style=colours.dim))
            lines.append(Text(""))
        self.query_one("#diff", Static).update(Text("\n").join(lines[:-1]))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to scroll only where something is hidden."""
        return action != "scroll" or any(can_scroll(sheet, parameters[0]) for sheet in self.query(VerticalScroll))

    def action_scroll(self, lines: int) -> None:
        """Show what there is no room for."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)
