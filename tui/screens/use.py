"""How to use a server: lines to copy, each by its own key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.themes import palette
from tui.widgets.key_footer import KeyFooter

BINDING_OF = {"c": "use.curl", "s": "use.ssh", "b": "use.base_url", "l": "use.launch"}
"""The binding that copies a line, by the line's key as it is without a config.toml."""


@dataclass(frozen=True, slots=True)
class UseLine:
    """A line to copy: the key that does it, what it is called, and what it is for."""

    key: str
    name: str
    purpose: str
    line: str


class UseScreen(ModalScreen[UseLine | None]):
    """Copies one line (OSC 52: into the clipboard of the terminal, over SSH too) and ends with it."""

    DEFAULT_CSS = """
    UseScreen { align: center middle; }
    UseScreen #use {
        width: 100; max-width: 96%; height: auto; max-height: 90%; padding: 0 2;
        border: round $primary; background: $surface;
    }
    UseScreen #lines { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "copy('c')", "curl", id="use.curl", tooltip="Copy a curl command that asks it something"),
        Binding("s", "copy('s')", "ssh -L", id="use.ssh", tooltip="Copy the tunnel that brings it to another machine"),
        Binding("b", "copy('b')", "base URL", id="use.base_url", tooltip="Copy the variables for OpenAI's clients"),
        Binding("l", "copy('l')", "launch line", id="use.launch", tooltip="Copy the command that it was started with"),
        Binding("escape,u,q", "dismiss(None)", "Leave", id="use.leave", tooltip="Copy nothing"),
    ]

    def __init__(self, server: str, lines: tuple[UseLine, ...], why_no_launch_line: str = "") -> None:
        super().__init__()
        self._server = server
        self._lines = {line.key: line for line in lines}
        self._why_not = why_no_launch_line

    def compose(self) -> ComposeResult:
        """Make the sheet."""
        # Not above: the first picture needs no catalogue of keys.
        from tui.keymap import key_of

        colours = palette(self.app)
        text = Text()
        for line in self._lines.values():
            key = key_of(self.app, BINDING_OF[line.key])
            text.append(f"{key}  ", f"bold {colours.primary}").append(line.name, f"bold {colours.text}")
            text.append(f"  {line.purpose}\n", colours.dim).append(f"{line.line}\n\n", colours.text)
        if self._why_not:
            text.append(f"no launch line: {self._why_not}", colours.dim)
        text.rstrip()
        with VerticalScroll(id="use") as sheet:
            sheet.border_title = f"Use {self._server}: a key copies its line"
            yield Static(text, id="lines")
        yield KeyFooter()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to copy only what is there."""
        return action != "copy" or parameters[0] in self._lines

    def action_copy(self, key: str) -> None:
        """Copy a line."""
        line = self._lines[key]
        self.app.copy_to_clipboard(line.line)
        self.notify(line.line, title=f"copied: {line.name} of {self._server}", markup=False)
        self.dismiss(line)
