"""A line of a log as it is shown: short time stamp, engine's own prefix folded, levels coloured, matches marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.style import Style
from rich.text import Text

from backends.logs.text import LONGEST_SHOWN, text_start

TIME = slice(11, 23)
INDENT_FROM_WIDTH = 40
LONGEST_WORD = 24

_PREFIX = re.compile(
    r"(?:\((?P<process>[\w-]+)(?:(?: rank=\d+)? pid=\d+)?\) )?"
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL|FATAL)(?P<colon>:)? *"
    r"(?P<when>\d\d-\d\d \d\d:\d\d:\d\d )?"
    r"(?P<source>\[[\w./-]+:\d+\] )?"
)
_PROCESS = re.compile(r"\((?P<process>[\w-]+)(?: rank=\d+)? pid=\d+\) ")
_LEVEL_WORD = re.compile(r"\b(?:(ERROR|CRITICAL|FATAL)|(WARNING|WARN))\b")
_EXCEPTION = re.compile(r"(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?::|$))|Traceback \(most recent")
_WARNING_CLASS = re.compile(r"\b[A-Z]\w*Warning:")
_LOOK_FOR_LEVEL_IN = 120


@dataclass(frozen=True, slots=True)
class LineStyles:
    """How the parts of a line are drawn; `sources` are for the names of merged logs, one after another."""

    text: Style
    faint: Style
    error: Style
    warning: Style
    own: Style
    match: Style
    current_match: Style
    sources: tuple[Style, ...] = ()


def laid_out(
    line: str,
    styles: LineStyles,
    *,
    whole: bool,
    spans: Sequence[tuple[int, int]] = (),
    is_current: bool = False,
    column: int = 0,
) -> Text:
    """Return a line as it is shown: `whole` as the file has it, else with only the time and the process before it.

    `spans` are the places in the line that are marked. The process has a column of its own, so many cells wide,
    unless that is 0.
    """
    rest = len(line) - LONGEST_SHOWN
    line = line[:LONGEST_SHOWN]
    start = text_start(line)
    text = Text(no_wrap=True, end="")
    places: list[tuple[int, int, int]] = []
    column = 0 if whole else column
    name = _name_in(line, start) if column else None
    if column and not start:
        text.append(" " * (column + 1))
    for begin, end, style in _pieces(line, start, styles, whole=whole):
        if name and begin >= start and end <= name[1] + 2 and column:
            if begin == name[0]:
                places.append((begin, min(end, begin + column), len(text)))
                text.append(f"{line[begin:end][:column]:{column}} ", style)
            continue
        places.append((begin, end, len(text)))
        text.append(line[begin:end], style)
        if end == TIME.stop and start and not whole:
            text.append(" " if name or not column else " " * (column + 2))
    mark = styles.current_match if is_current else styles.match
    for first, last in spans:
        for begin, end, at in places:
            low, high = max(begin, first), min(end, last)
            if low < high:
                text.stylize(mark, at + low - begin, at + high - begin)
    if rest > 0:
        text.append(f" … {rest:,} characters more", styles.faint)
    return text


def rows_of(text: Text, width: int, *, whole: bool, column: int = 0) -> Iterator[tuple[int, Text]]:
    """Cut a line into rows of `width` cells, the later ones indented below its text; each with its start in it.

    `column` are the cells that what stands before the text takes beside the time.
    """
    indent = (TIME.stop - TIME.start + 1 + column) if width >= INDENT_FROM_WIDTH and not whole else 0
    starts, room = [0], width
    while cell_len(rest := text.plain[starts[-1] :]) > room:
        starts.append(starts[-1] + _row_end(rest, room))
        room = width - indent
    for number, (start, row) in enumerate(zip(starts, text.divide(starts[1:]), strict=True)):
        if number:
            row.pad_left(indent)
        yield start, row


def _row_end(text: str, width: int) -> int:
    """Return how much of `text` goes into a row: up to a blank, where there is one near the edge."""
    end = len(chop_cells(text[:width], width)[0]) or 1
    blank = text.rfind(" ", max(1, end - LONGEST_WORD), end)
    return blank + 1 if blank > 0 else end


def _pieces(line: str, start: int, styles: LineStyles, *, whole: bool) -> Iterator[tuple[int, int, Style]]:
    """Yield which slices of the line are shown, in order, and how."""
    if start:
        yield (0, start, styles.faint) if whole else (TIME.start, TIME.stop, styles.faint)
    if line.startswith("gpubox: ", start):
        yield start, len(line), styles.own
        return
    prefix = _PREFIX.match(line, start)
    if prefix:
        style = _by_level(prefix["level"], styles)
        if whole:
            yield prefix.start(), prefix.start("level"), styles.faint
            yield prefix.start("level"), prefix.end("level"), styles.faint if style is styles.text else style
            yield prefix.end("level"), prefix.end(), styles.faint
        else:
            yield from _folded(line, prefix, styles)
            if style is not styles.text:
                yield prefix.start("level"), prefix.end("level"), style + Style(bold=True)
                # The blank or colon that separates it from the text, wherever in the prefix one is.
                blank = line.find(" ", prefix.end("level"), prefix.end())
                if blank >= 0:
                    yield blank, blank + 1, style
        yield prefix.end(), len(line), style
        return
    process = _PROCESS.match(line, start)
    body = process.end() if process else start
    style = _by_words(line[body : body + _LOOK_FOR_LEVEL_IN], styles)
    if process and whole:
        yield process.start(), process.end(), styles.faint
    elif process:
        yield from _folded(line, process, styles)
    yield body, len(line), style


def _name_in(line: str, start: int) -> tuple[int, int] | None:
    """Return where the name of the process stands."""
    found = _PROCESS.match(line, start)
    if found is None:
        found = _PREFIX.match(line, start)
    return found.span("process") if found and found["process"] else None


def _folded(line: str, prefix: re.Match[str], styles: LineStyles) -> Iterator[tuple[int, int, Style]]:
    if prefix["process"]:
        yield prefix.start("process"), prefix.end("process"), styles.faint
        blank = line.index(" ", prefix.end("process"))
        yield blank, blank + 1, styles.faint


def _by_level(level: str, styles: LineStyles) -> Style:
    if level in ("ERROR", "CRITICAL", "FATAL"):
        return styles.error
    if level == "WARNING":
        return styles.warning
    return styles.faint if level == "DEBUG" else styles.text


def _by_words(text: str, styles: LineStyles) -> Style:
    if _EXCEPTION.match(text):
        return styles.error
    word = _LEVEL_WORD.search(text)
    if word:
        return styles.error if word[1] else styles.warning
    return styles.warning if _WARNING_CLASS.search(text) else styles.text
