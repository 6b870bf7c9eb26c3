"""Figures over the last hour, and their share of it that a chart of so many columns shows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from backends.snapshots import Series
from tui.widgets.metric_axis import TimeAxis

KEPT_S = 3600.0
BRIDGED = 2.5
"""A chart goes on over a gap of up to so many intervals as before it; beyond that it is blank."""

FIRST_INTERVAL_S = 10.0
LONGEST_INTERVAL_S = 12.0
MOST_SUMS = 128


class _Sums:
    """One figure summed up by columns of one width, as far as its points have been seen."""

    __slots__ = ("before", "done", "highs", "interval_s", "lows")

    def __init__(self) -> None:
        self.done = 0
        self.highs: dict[int, float] = {}
        self.lows: dict[int, float] = {}
        self.before: tuple[float, float] | None = None
        self.interval_s = FIRST_INTERVAL_S

    def see(self, at: float, value: float | None, step_s: float, *, grows: bool) -> None:
        """Take the next point."""
        if value is None:
            self.before = None
            return
        before, column = self.before, int(at / step_s)
        figure = (max(0.0, value - before[1]) if before else 0.0) if grows else value
        if before is not None:
            if at - before[0] <= BRIDGED * self.interval_s:
                self._bridge(int(before[0] / step_s) + 1, column, 0.0 if grows else before[1])
            self.interval_s = min(at - before[0], LONGEST_INTERVAL_S)
        if column in self.highs:
            high, low = self.highs[column], self.lows[column]
            self.highs[column] = high + figure if grows else max(high, figure)
            self.lows[column] = low + figure if grows else min(low, figure)
        else:
            self.highs[column] = self.lows[column] = figure
        self.before = (at, value)

    def _bridge(self, begin: int, end: int, value: float) -> None:
        for column in range(begin, end):
            self.highs[column] = self.lows[column] = value

    def forget(self, older_than: int) -> None:
        """Drop columns that have left the window for good."""
        for columns in (self.highs, self.lows):
            for column in [one for one in columns if one < older_than]:
                del columns[column]


class History:
    """Figures on one time axis: what the keeper has kept, and then each newer reading."""

    def __init__(self) -> None:
        self._at: list[float] = []
        self._points: dict[str, list[float | None]] = {}
        self._sums: dict[tuple[str, float, bool], _Sums] = {}
        self.summed = 0
        """How many points have been summed up so far: what drawing has cost."""

    @property
    def newest_at(self) -> float | None:
        """When the last reading was taken."""
        return self._at[-1] if self._at else None

    def knows(self, name: str) -> bool:
        """Whether there is any reading of that figure."""
        return any(value is not None for value in self._points.get(name, ()))

    def take(self, series: Series) -> None:
        """Begin with what the keeper has kept; readings of our own that are newer stay."""
        newer = bisect_left(self._at, series.at[-1] + 1e-6) if series.at else 0
        at, points = self._at[newer:], {name: column[newer:] for name, column in self._points.items()}
        self._at = [*series.at, *at]
        self._points = {
            name: [
                *(series.points.get(name) or [None] * len(series.at)),
                *(points.get(name) or [None] * len(at)),
            ]
            for name in series.points.keys() | points.keys()
        }
        self._sums.clear()

    def append(self, at: float, figures: Mapping[str, float | None]) -> None:
        """Add a reading; one that is not newer than the last is the same one, seen again."""
        if self._at and at <= self._at[-1]:
            return
        for name in figures.keys() - self._points.keys():
            self._points[name] = [None] * len(self._at)
        self._at.append(at)
        for name, column in self._points.items():
            column.append(figures.get(name))
        if self._at[0] < at - 2 * KEPT_S:
            old = bisect_left(self._at, at - KEPT_S)
            del self._at[:old]
            for column in self._points.values():
                del column[:old]
            self._sums.clear()

    def columns(self, name: str, axis: TimeAxis, *, per_cell: int = 1, grows: bool = False) -> list[float | None]:
        """Return the window in `per_cell` columns a cell, each the largest value in its share of time, None for a gap.

        Of a counter that `grows` each column is what it grew by.
        """
        sums, step_s = self._summed(name, axis, per_cell, grows)
        first, last = axis.first * per_cell, int(axis.now / step_s)
        columns = [sums.highs.get(column) for column in range(first, first + axis.cells * per_cell)]
        if sums.before and axis.now - sums.before[0] <= BRIDGED * sums.interval_s:
            value = 0.0 if grows else sums.before[1]
            for column in range(max(first, int(sums.before[0] / step_s) + 1), last + 1):
                columns[column - first] = value
        return columns

    def span(self, name: str, axis: TimeAxis, *, grows: bool = False) -> tuple[float, float] | None:
        """Return the smallest and the largest value in the window; None where there is none."""
        sums, _ = self._summed(name, axis, 1, grows)
        window = range(axis.first, axis.first + axis.cells)
        highs = [sums.highs[column] for column in window if column in sums.highs]
        lows = [sums.lows[column] for column in window if column in sums.lows]
        return (min(lows), max(highs)) if highs else None

    def _summed(self, name: str, axis: TimeAxis, per_cell: int, grows: bool) -> tuple[_Sums, float]:
        """Return the sums by columns of that width, with the newest points in them."""
        step_s = axis.step_s / per_cell
        key = (name, step_s, grows)
        if key not in self._sums and len(self._sums) >= MOST_SUMS:
            self._sums.clear()
        sums = self._sums.setdefault(key, _Sums())
        values = self._points.get(name)
        if values is None:
            return sums, step_s
        end = bisect_left(self._at, axis.now + 1e-6) if self._at and self._at[-1] > axis.now else len(self._at)
        for place in range(sums.done, end):
            sums.see(self._at[place], values[place], step_s, grows=grows)
        self.summed += max(0, end - sums.done)
        sums.done = max(sums.done, end)
        if len(sums.highs) > 4 * axis.cells * per_cell + 64:
            sums.forget(axis.first * per_cell)
        return sums, step_s


def high_and_low(parts: Sequence[Series]) -> Series:
    """Merge several GPUs' series, read at the same moments, into `NAME_high`, `NAME_low` and `NAME_sum` of each figure.

    A sum is known only where all parts are; what a part lacks does not count for the other two.
    """
    readings: dict[float, list[dict[str, float]]] = {}
    for series in parts:
        for place, at in enumerate(series.at):
            known = {name: value for name, column in series.points.items() if (value := column[place]) is not None}
            readings.setdefault(at, []).append(known)
    ats = tuple(sorted(readings))
    merged = [merged_figures(readings[at], len(parts)) for at in ats]
    names = dict.fromkeys(name for one in merged for name in one)
    return Series(ats, {name: tuple(one.get(name) for one in merged) for name in names})


def merged_figures(parts: Sequence[Mapping[str, float | None]], count: int) -> dict[str, float | None]:
    """Merge one moment's figures of `count` GPUs: see `high_and_low`."""
    merged: dict[str, float | None] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [value for part in parts if (value := part.get(name)) is not None]
        if values:
            merged[f"{name}_high"], merged[f"{name}_low"] = max(values), min(values)
            merged[f"{name}_sum"] = sum(values) if len(values) == count else None
    return merged
