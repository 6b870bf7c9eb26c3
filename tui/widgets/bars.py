"""Bars and small histories, drawn with box characters; each stands beside its figure, never instead of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.text import Text
from textual.color import Color

from backends.snapshots import Missing

BLOCKS = " ▁▂▃▄▅▆▇█"


def bar(ratio: float | Missing, width: int, colour: str, track: str) -> Text:
    """Draw a ratio of 0–1 as a heavy line on a thin one; where there is no reading, the track is dotted."""
    if isinstance(ratio, Missing):
        return Text("┈" * width, style=track)
    halves = round(max(0.0, min(1.0, ratio)) * width * 2)
    if halves == 0 and ratio > 0 and width:
        halves = 1
    full, half = divmod(halves, 2)
    text = Text("━" * full + "╸" * half, style=colour)
    return text.append("─" * (width - full - half), style=track)


def history(values: Sequence[float | None], width: int, height: int, top: float) -> list[str]:
    """Draw values as rising blocks, newest on the right, `top` as full height; returns `height` lines, gaps blank.

    Each column shows the largest value of its share of time, so that a short peak is not lost.
    """
    columns = _columns(values, width)
    eighths = [0 if v is None else max(1, round(min(v / top, 1.0) * height * 8)) if top > 0 else 0 for v in columns]
    return ["".join(BLOCKS[max(0, min(8, level - 8 * row))] for level in eighths) for row in range(height - 1, -1, -1)]


def faded(colour: str, background: str, row: int, rows: int) -> str:
    """Blend a chart's colour into the background, the more the lower the row, so that its edge is what one sees."""
    share = 0.25 + 0.75 * (rows - row) / max(1, rows)
    return Color.parse(background).blend(Color.parse(colour), share).rich_color.name


def _columns(values: Sequence[float | None], width: int) -> list[float | None]:
    if len(values) <= width:
        return [None] * (width - len(values)) + list(values)
    edges = [len(values) * n // width for n in range(width + 1)]
    shares = [[v for v in values[a:b] if v is not None] for a, b in pairwise(edges)]
    return [max(share, default=None) for share in shares]
