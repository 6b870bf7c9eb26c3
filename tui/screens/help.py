"""The keys that work right now, read off the bindings themselves."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.dom import DOMNode
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from tui.format import fit
from tui.themes import Palette, palette

KEYS_CELLS = 14
ALWAYS = (("↑ ↓, j k", "move"), ("Tab", "next part of the screen"), ("Esc", "back, or out of a field"))


class HelpScreen(ModalScreen[None]):
    """A sheet of keys over the screen that it is about."""

    DEFAULT_CSS = """
    HelpScreen {
        align: center middle;

        #sheet {
            width: 76;
            max-width: 96%;
            height: auto;
            max-height: 90%;
            padding: 0 2;
            border: round $primary;
            border-title-color: $primary;
            border-title-style: bold;
            border-subtitle-color: $dim;
            background: $surface;
        }

        #keys {
            height: auto;
            text-wrap: nowrap;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "dismiss", "Close")]

    def __init__(self, groups: list[tuple[str, list[tuple[str, str]]]]) -> None:
        super().__init__()
        self._groups = groups

    def compose(self) -> ComposeResult:
        """Make the sheet."""
        with VerticalScroll(id="sheet") as sheet:
            sheet.border_title = "Keys"
            sheet.border_subtitle = "Esc closes"
            yield Static(key_sheet(self._groups, 70, palette(self.app)), id="keys")


def keys_of(screen: Screen[object], title: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Collect what `screen` answers to, its own keys first, then the app's; what Textual brings along is left out."""
    own: dict[str, list[str]] = {}
    everywhere: dict[str, list[str]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if active.enabled and binding.description and not _is_textuals(active.node, binding):
            group = everywhere if isinstance(active.node, App) else own
            text = active.tooltip or binding.description
            group.setdefault(text, []).append(screen.app.get_key_display(binding))
    groups = [(title, own), ("Everywhere", everywhere)]
    sheets = [(name, [(" ".join(keys), text) for text, keys in group.items()]) for name, group in groups if group]
    sheets[-1][1].extend(ALWAYS)
    return sheets


def _is_textuals(node: DOMNode, binding: Binding) -> bool:
    inherited = [
        one
        for base in type(node).__mro__
        if base.__module__.startswith("textual.")
        for one in Binding.make_bindings(base.__dict__.get("BINDINGS", []))
    ]
    return any(one.key == binding.key and one.action == binding.action for one in inherited) and not binding.show


def key_sheet(groups: list[tuple[str, list[tuple[str, str]]]], width: int, colours: Palette) -> Text:
    """Lay the groups out below each other in `width` cells."""
    lines: list[Text] = []
    for title, keys in groups:
        lines.append(Text(title, style=f"bold {colours.accent}"))
        for key, text in keys:
            said = fit(text, width - KEYS_CELLS - 2)
            lines.append(Text.assemble((f"  {key:<{KEYS_CELLS}}", f"bold {colours.primary}"), (said, colours.text)))
        lines.append(Text())
    return Text("\n").join(lines[:-1])
