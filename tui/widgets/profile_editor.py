"""A profile's TOML, coloured, with the lines that have problems marked; to read, or to be edited."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.widgets import TextArea

from profiles.drafts import argument_names, completion
from profiles.schema import Profile
from tui.themes import Palette, palette

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'[^']*')|(?P<comment>\#.*)|(?P<header>^\s*\[[^\]=]*\]\s*)"""
    r"""|(?P<key>^\s*[\w.-]+(?=\s*=))|(?P<value>\b(?:true|false|\d[\w.+:-]*)\b)"""
)
_HEADER = re.compile(r"\s*\[\s*([\w.-]+)\s*\]")
_ENGINE = re.compile(r"""^\s*engine\s*=\s*["'](\w+)""", re.M)
INDENT = 2


class ProfileEditor(TextArea):
    """A text field for TOML; all plain keys type. `mark` underlines lines; a begun name is completed with Tab."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "complete", "Complete", show=False, id="editor.complete", tooltip="Complete a name, or indent"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id, soft_wrap=True, show_line_numbers=True, read_only=True, compact=True, highlight_cursor_line=False
        )
        self._marks: Mapping[int, bool] = {}
        self._in_text: frozenset[int] = frozenset()

    def edit_text(self, text: str) -> None:
        """Let `text` be edited, from its beginning."""
        self.load_text(text)
        self.read_only = False
        self.highlight_cursor_line = True

    def show_text(self, text: str) -> None:
        """Show `text`, to read only."""
        self.read_only = True
        self.highlight_cursor_line = False
        if text != self.text:
            self.load_text(text)

    def mark(self, lines: Mapping[int, bool]) -> None:
        """Underline lines (from 1); those that are True are wrong, the others only suspicious."""
        if lines != self._marks:
            self._marks = dict(lines)
            self.notify_style_update()
            self.refresh()

    def go_to(self, line: int) -> None:
        """Put the cursor at the beginning of a line (from 1)."""
        self.move_cursor((min(line, self.document.line_count) - 1, 0), center=True)

    def load_text(self, text: str) -> None:
        """Replace the text; what was marked is no more."""
        self._marks = {}
        super().load_text(text)
        self._in_text = _lines_in_text(text)

    def check_consume_key(self, key: str, character: str | None = None) -> bool:
        """Tab types, too."""
        return (key == "tab" and not self.read_only) or super().check_consume_key(key, character)

    async def on_key(self, event: events.Key) -> None:
        """Complete in the order in which keys come: a binding would be overtaken by what is typed right after."""
        if event.key == "tab" and not self.read_only:
            self.action_complete()
        elif event.key in ("ctrl+home", "ctrl+end"):
            self.move_cursor((0, 0) if event.key == "ctrl+home" else self.document.end)
        else:
            return
        event.prevent_default().stop()

    def action_complete(self) -> None:
        """Take what is offered after the cursor, or indent."""
        if not self.read_only:
            self.insert(self.suggestion or " " * (INDENT - self.cursor_location[1] % INDENT))

    def on_text_area_changed(self) -> None:
        """See anew which lines are within a text of several lines."""
        found = _lines_in_text(self.text)
        if found != self._in_text:
            self._in_text = found
            self.notify_style_update()
            self.refresh()

    def update_suggestion(self) -> None:
        """Offer the rest of a name that was begun."""
        row, column = self.cursor_location
        line = self.document.get_line(row)
        begun = line[:column].strip()
        is_name = column == len(line) and re.fullmatch(r"[a-z][a-z_]*", begun) and row not in self._in_text
        self.suggestion = completion(begun, self._names(row)) if is_name and not self.read_only else ""

    def _names(self, row: int) -> frozenset[str]:
        above = (self.document.get_line(at) for at in range(row, -1, -1))
        header = next((found[1] for line in above if (found := _HEADER.match(line))), "")
        if header == "args":
            engine = _ENGINE.search(self.text)
            return argument_names(engine[1] if engine else "vllm")
        return frozenset(Profile.model_fields) if not header else frozenset()

    def get_line(self, line_index: int) -> Text:
        """Return a line in its colours."""
        line, colours = super().get_line(line_index), palette(self.app)
        if line_index in self._in_text:
            line.stylize(colours.good)
        else:
            _colour(line, colours)
        if (wrong := self._marks.get(line_index + 1)) is not None:
            line.stylize(Style(color=colours.bad if wrong else colours.warn, underline=True))
        return line


def _colour(line: Text, colours: Palette) -> None:
    styles = {
        "string": colours.good,
        "comment": colours.dim,
        "header": f"bold {colours.accent}",
        "key": colours.primary,
        "value": colours.secondary,
    }
    for found in _TOKEN.finditer(line.plain):
        line.stylize(styles[str(found.lastgroup)], found.start(), found.end())


def _lines_in_text(text: str) -> frozenset[int]:
    """Return the lines (from 0) that are within, or end, a text in triple quotes."""
    found, open_quote = set(), ""
    for number, line in enumerate(text.split("\n")):
        if open_quote:
            found.add(number)
            if line.count(open_quote) % 2:
                open_quote = ""
        else:
            open_quote = next((quote for quote in ('"""', "'''") if line.count(quote) % 2), "")
    return frozenset(found)
