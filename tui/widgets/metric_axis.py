"""The two axes of a chart: one of time that all charts share, and one of values with few round ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from tui.format import GIB, count

TICKS_S = (5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 3600.0)
ROUND = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
ROUND_PARTS = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Steps of an axis with more than two: their multiples are round too."""

LABEL_CELLS = 5
"""A tick's label with its unit: '100%', '2.5k', '250ms', '150G', '700W'."""


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """So many cells for the `window_s` before `now`; cells begin at fixed moments, so that charts move by whole ones.

    `cells` is the same for all charts of a screen: what happened at one moment stands in one column in all of them.
    """

    now: float
    window_s: float
    cells: int

    @property
    def step_s(self) -> float:
        """How much time a cell is."""
        return self.window_s / max(1, self.cells)

    @property
    def first(self) -> int:
        """The number of the oldest cell, counted from the epoch in steps."""
        return math.floor(self.now / self.step_s) - self.cells + 1

    def cell_of(self, at: float) -> int | None:
        """Return the column of a moment; None where it is outside of the window."""
        cell = math.floor(at / self.step_s) - self.first
        return cell if 0 <= cell < self.cells else None

    def middle_of(self, cell: int) -> float:
        """Return the moment in the middle of a column."""
        return (self.first + cell + 0.5) * self.step_s

    def labels(self) -> str:
        """Draw times of day under their columns, as many as there is room for, 'now' at the right end."""
        text = [" "] * self.cells
        seconds = self.tick_s() % 60 != 0
        form, width = ("%H:%M:%S", 8) if seconds else ("%H:%M", 5)
        free_until = self.cells - 5
        for at in self._ticks():
            cell = self.cell_of(at)
            if cell is not None and cell + 1 + width <= free_until:
                text[cell : cell + 1 + width] = "╵" + datetime.fromtimestamp(at).strftime(form)
        if self.cells >= 4:
            text[-3:] = "now"
        return "".join(text)

    def tick_s(self) -> float:
        """Return how far ticks are apart: round, and wide enough for their labels."""
        return next((s for s in TICKS_S if s / self.step_s >= (11 if s % 60 else 8)), TICKS_S[-1])

    def _ticks(self) -> Iterable[float]:
        step_s = self.tick_s()
        # Whole steps of the local day, so that they are round on the clock that is shown.
        offset = datetime.fromtimestamp(self.now).astimezone().utcoffset()
        shift = offset.total_seconds() if offset else 0.0
        at = math.ceil((self.first * self.step_s + shift) / step_s) * step_s - shift
        while at <= self.now:
            yield at
            at += step_s


@dataclass(frozen=True, slots=True)
class Unit:
    """How an axis counts: `scale` values are one, `label` shows a tick, steps are whole where values are `whole`."""

    label: Callable[[float, float], str]
    scale: float = 1.0
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """A value axis: full height is `top`, its ticks are `parts` equal steps from 0."""

    top: float
    parts: int
    unit: Unit

    def labels(self, rows: int) -> list[str]:
        """Return what stands beside each row from the top, '' where there is no tick."""
        labels = [""] * rows
        for part in range(self.parts + 1) if rows > 1 else (self.parts,):
            row = min(rows - 1, max(0, round((1 - part / self.parts) * rows - (part < self.parts) * 0.5 - 0.001)))
            row = rows - 1 if part == 0 and rows > 1 else row
            labels[row] = self.unit.label(self.top * part / self.parts, self.top)
        return labels


def scale_for(peak: float, rows: int, unit: Unit, top: float | None = None) -> Scale:
    """Return a value axis up to `top`, else to the least round value not below `peak`; as many ticks as rows bear."""
    least = unit.scale if unit.whole else 0.0
    wanted = max(top if top is not None else peak, least)
    if wanted <= 0:
        return Scale(unit.scale, 1, unit)
    choices: tuple[int, ...] = (4, 5, 3) if rows >= 9 else (2,) if rows >= 4 else (1,)
    if top is not None and peak <= top:
        return Scale(top, choices[0], unit)
    if unit.whole:
        choices = tuple(max(1, min(parts, math.ceil(wanted / unit.scale))) for parts in choices)
    return min((_scale(max(wanted, peak), parts, unit) for parts in choices), key=lambda scale: scale.top)


def _scale(wanted: float, parts: int, unit: Unit) -> Scale:
    return Scale(_round_up(wanted / parts / unit.scale, unit, parts) * parts * unit.scale, parts, unit)


def _round_up(value: float, unit: Unit, parts: int) -> float:
    """Return the next round number that is not below `value`."""
    magnitude = 10.0 ** math.floor(math.log10(value))
    for step in ROUND if parts <= 2 else ROUND_PARTS:
        number = step * magnitude
        if number >= value * (1 - 1e-9) and not (unit.whole and number % 1):
            return number
    return 10.0 * magnitude


def _percent(value: float, _top: float) -> str:
    return f"{value * 100:.0f}%"


def _count(value: float, _top: float) -> str:
    return count(value)


def _time(value: float, top: float) -> str:
    """Show a tick of a latency in the unit that suits the axis' top."""
    if value == 0:
        return "0"
    if top >= 1.0:
        return f"{value:.3g}s"
    return f"{value * 1000:.3g}ms"


def _gib(value: float, top: float) -> str:
    # A GPU's memory is no round number, and need not look like none.
    form = ".0f" if top >= 100 * GIB else ".3g"
    return f"{value / GIB:{form}}G" if value else "0"


def _watts(value: float, top: float) -> str:
    if top >= 10_000:
        return f"{value / 1000:.3g}kW" if value else "0"
    return f"{value:.0f}W" if value else "0"


PERCENT = Unit(_percent)
COUNT = Unit(_count, whole=True)
RATE = Unit(_count)
TIME = Unit(_time)
MEMORY = Unit(_gib, scale=float(GIB))
POWER = Unit(_watts)
