"""Charts drawn as text: an area of blocks for one figure, lines of braille dots for several on one scale."""

from __future__ import annotations

from collections.abc import Sequence

from tui.widgets.bars import BLOCKS

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Of a braille character: its four rows from the top, left and right."""

BRAILLE = 0x2800
EMPTY = " "

Values = Sequence[float | None]
"""One value a column, oldest first; None is a gap."""


def area(values: Values, rows: int, top: float) -> list[str]:
    """Draw one value a cell as rising blocks, `rows` lines, full height `top`; a value above 0 is never invisible."""
    full = rows * 8
    levels = [
        -1 if value is None else max(1 if value > 0 else 0, min(full, round(value / top * full))) for value in values
    ]
    lines = []
    for row in range(rows - 1, -1, -1):
        under = row * 8
        if row:
            lines.append("".join(BLOCKS[max(0, min(8, level - under))] for level in levels))
        else:
            # A zero is a reading, and looks different from a gap.
            lines.append("".join("▁" if level == 0 else BLOCKS[max(0, min(8, level))] for level in levels))
    return lines


def lines(series: Sequence[Values], rows: int, top: float) -> list[str]:
    """Draw values, two a cell, as lines of dots: the first one solid, the others dotted; `rows` lines of text."""
    cells = (max(map(len, series), default=0) + 1) // 2
    masks = [[0] * cells for _ in range(rows)]
    height = rows * 4
    for number, values in enumerate(series):
        before: int | None = None
        for column, value in enumerate(values):
            if value is None:
                before = None
                continue
            level = max(0, min(height - 1, round(value / top * height - 0.5)))
            low, high = (level, level) if before is None else (min(level, before + 1), max(level, before - 1))
            if number == 0:
                for dot in range(low, high + 1):
                    _set(masks, rows, column, dot)
            elif column % 2 == 0:
                _set(masks, rows, column, level)
            before = level
    return ["".join(chr(BRAILLE | mask) if mask else EMPTY for mask in row) for row in masks]


def _set(masks: list[list[int]], rows: int, column: int, level: int) -> None:
    row, dot = divmod(level, 4)
    masks[rows - 1 - row][column >> 1] |= DOTS[3 - dot][column & 1]
