"""The time axis below the charts: times of day, what happened, and where the cursor stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.text import Text

from tui.themes import Palette
from tui.widgets.metric_axis import TimeAxis
from tui.widgets.metric_chart import GUTTER


def times_line(
    axis: TimeAxis,
    marks: Mapping[int, str],
    cursor: int | None,
    starts: Sequence[int],
    colours: Palette,
) -> Text:
    """Draw the axis once below each column of charts; `starts` are the cells at which those begin."""
    line = Text(no_wrap=True, end="")
    for start in starts:
        line.append(" " * (start + GUTTER - line.cell_len))
        line.append_text(_axis(axis, marks, cursor, colours))
    return line


def _axis(axis: TimeAxis, marks: Mapping[int, str], cursor: int | None, colours: Palette) -> Text:
    chars = list(axis.labels())
    kinds = [colours.dim] * len(chars)
    told, begin = "", 0
    if cursor is not None and axis.cells >= 10:
        told = f"{datetime.fromtimestamp(axis.middle_of(cursor)):%H:%M:%S}"
        begin = max(0, min(axis.cells - len(told), cursor - len(told) // 2))
        _clear(chars, begin, begin + len(told))
    for column, sign in marks.items():
        chars[column], kinds[column] = sign, f"bold {colours.warn}"
    for place, char in enumerate(told, begin):
        chars[place], kinds[place] = char, f"bold {colours.accent} reverse"
    text = Text(no_wrap=True, end="")
    for char, kind in zip(chars, kinds, strict=True):
        text.append(char, kind)
    return text


def _clear(chars: list[str], begin: int, end: int) -> None:
    """Blank the times that reach into these cells or touch them: what is left of one would read as another."""
    while begin > 0 and chars[begin - 1] != " ":
        begin -= 1
        chars[begin] = " "
    while end < len(chars) and chars[end] != " ":
        chars[end] = " "
        end += 1
