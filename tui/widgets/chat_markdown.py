"""Markdown that is still being written, as lines: each bit of text costs what its own block does, not the whole answer.

Blocks that are finished are laid out once. A block that grows long is finished in parts: a list after some items, a
code block or table after some lines. Textual's Markdown makes widgets of every list item and lays all of them out
anew at each change; 80 items took 0.6 s.
"""

from __future__ import annotations

import io
import re
from itertools import pairwise
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme
from textual.strip import Strip

from tui.themes import Palette

Line = list[Segment]

PART_LINES = 20
"""Lines of a code block or table that are finished at a time."""

PART_ITEMS = 6
"""Items of a list that are finished at a time."""

_NUMBER = re.compile(r"^(\s*)\d+(?=[.)])")


class _LeftHeading(Heading):
    """A heading where it stands: Rich would centre it, and frame the first kind."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text
        text.justify = "left"
        yield text


class _Block(Markdown):
    """Markdown whose HTML is shown as it is written: what a model says in angle brackets is part of its answer."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = Markdown.elements | {"heading_open": _LeftHeading}

    def __init__(self, text: str) -> None:
        vars(self).update(_LIKE)  # Markdown itself would make a parser for each block: thousands of objects.
        self.markup, self.parsed = text, _PARSER.parse(text)


_LIKE = vars(Markdown("", hyperlinks=False))
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class MarkdownLines:
    """A text in Markdown, laid out as `Strip`s for a width in cells; `write` adds to it."""

    def __init__(self, colours: Palette, code_background: str, *, is_dark: bool) -> None:
        self.source = ""
        self._code_background = code_background
        self._code_theme = "github-dark" if is_dark else "default"
        self._console = Console(
            file=io.StringIO(), force_terminal=True, color_system="truecolor", theme=_theme(colours)
        )
        self._width = 0
        self._rest = ""
        # Not strips: each has seven caches of its own, and thousands of them would keep the garbage collector busy.
        self._done: list[Line] = []
        self._open: list[Line] = []
        self._goes_on = False
        self._is_stale = False

    def write(self, text: str) -> None:
        """Add to the text; it is laid out when its lines are wanted."""
        self.source += text
        self._rest += text
        self._is_stale = True

    def lay_out(self, width: int) -> int:
        """Lay out what is not yet, all of it where the width is another one; returns the number of lines."""
        if width != self._width:
            self._width, self._rest, self._done, self._goes_on = width, self.source, [], False
            self._is_stale = True
        if self._is_stale and width > 0:
            self._is_stale = False
            self._advance()
        return len(self._done) + len(self._open)

    def line(self, number: int) -> Strip:
        """Return a line as of the last layout."""
        done = len(self._done)
        return Strip(self._done[number] if number < done else self._open[number - done])

    def _advance(self) -> None:
        self._open = []
        while self._rest.strip():
            lines = self._rest.splitlines(keepends=True)
            tokens = _PARSER.parse(self._rest)
            blocks = [token for token in tokens if token.level == 0 and token.map and token.nesting >= 0]
            if not blocks:
                return
            for block, after in pairwise(blocks):
                self._finish(
                    self._laid_out(block, "".join(lines[_first_line(block) : _first_line(after)])), goes_on=False
                )
            last = blocks[-1]
            begin = _first_line(last)
            self._rest = "".join(lines[begin:])
            if not self._finish_part(last, lines[begin:], tokens):
                self._open = self._gap() + self._laid_out(last, self._rest)
                return

    def _gap(self) -> list[Line]:
        return [[]] if self._done and not self._goes_on else []

    def _finish(self, lines: list[Line], *, goes_on: bool) -> None:
        self._done += self._gap() + lines
        self._goes_on = goes_on

    def _finish_part(self, block: Token, lines: list[str], tokens: list[Token]) -> bool:
        """Finish the first part of the last block where that is long, and leave the rest; returns whether it was."""
        if block.type in ("fence", "table_open"):
            head = 1 if block.type == "fence" else 2
            if len(lines) < head + 2 * PART_LINES:
                return False
            end = head + ((len(lines) - head) // PART_LINES - 1) * PART_LINES
            part = lines[:end]
            self._rest = "".join(lines[:head] + lines[end:])
            if block.type == "fence":
                finished = self._code("".join(part[head:]), block.info)
            else:
                finished = self._lines(_Block("".join(part)))
            self._finish(finished, goes_on=True)
            return True
        if block.type not in ("bullet_list_open", "ordered_list_open"):
            return False
        at = tokens.index(block)
        items = [token for token in tokens[at:] if token.type == "list_item_open" and token.level == 1 and token.map]
        if len(items) <= PART_ITEMS:
            return False
        begin = _first_line(items[-1]) - _first_line(block)
        rest = "".join(lines[begin:])
        if block.type == "ordered_list_open":
            # Many write '1.' before each item: in a list of its own the last one needs its number.
            number = int(block.attrs.get("start", 1)) + len(items) - 1
            rest = _NUMBER.sub(rf"\g<1>{number}", rest, count=1)
        self._finish(self._lines(_Block("".join(lines[:begin]))), goes_on=True)
        self._rest = rest
        return True

    def _laid_out(self, block: Token, text: str) -> list[Line]:
        return self._code(block.content, block.info) if block.type == "fence" else self._lines(_Block(text))

    def _code(self, code: str, info: str) -> list[Line]:
        language = info.split()[0] if info.split() else "text"
        syntax = Syntax(
            code.rstrip("\n"),
            language,
            theme=self._code_theme,
            background_color=self._code_background,
            word_wrap=True,
            padding=(0, 1),
        )
        return self._lines(syntax, trimmed=False)

    def _lines(self, renderable: RenderableType, *, trimmed: bool = True) -> list[Line]:
        options = self._console.options.update(width=self._width, height=None)
        lines = self._console.render_lines(renderable, options, pad=False)
        while trimmed and lines and _is_blank(lines[-1]):
            lines.pop()
        while trimmed and lines and _is_blank(lines[0]):
            del lines[0]
        return lines


def _is_blank(line: Line) -> bool:
    return not any(segment.text.strip() for segment in line)


def _first_line(token: Token) -> int:
    return token.map[0] if token.map else 0


def _theme(colours: Palette) -> Theme:
    return Theme(
        {
            "markdown.h1": f"bold {colours.primary}",
            "markdown.h2": f"bold {colours.primary}",
            "markdown.h3": f"bold {colours.secondary}",
            "markdown.h4": f"bold {colours.secondary}",
            "markdown.h5": f"bold {colours.text}",
            "markdown.h6": f"bold {colours.text}",
            "markdown.code": colours.accent,
            "markdown.code_block": colours.text,
            "markdown.block_quote": colours.dim,
            "markdown.item.bullet": f"bold {colours.accent}",
            "markdown.item.number": f"bold {colours.accent}",
            "markdown.hr": colours.faint,
            "markdown.link": colours.primary,
            "markdown.link_url": f"underline {colours.primary}",
            "markdown.table.header": f"bold {colours.text}",
            "markdown.table.border": colours.faint,
        }
    )


def plain_lines(text: Text, width: int) -> list[Strip]:
    """Lay out a text that is no Markdown for a width in cells."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor")
    options = console.options.update(width=max(1, width), height=None)
    return [Strip(line) for line in console.render_lines(text, options, pad=False)]
