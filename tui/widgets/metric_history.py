"""Figures over the last hour, and their share of it that a chart of so many columns shows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from itertools import pairwise

from backends.snapshots import Series

KEPT_S = 3600.0
BRIDGED = 2.5
"""A chart goes on over a gap of up to so many usual intervals between readings; beyond it is blank."""


class History:
    """Figures on one time axis: what the keeper has kept, and then each newer reading."""

    def __init__(self) -> None:
        self._at: list[float] = []
        self._points: dict[str, list[float | None]] = {}

    @property
    def newest_at(self) -> float | None:
        """When the last reading was taken."""
        return self._at[-1] if self._at else None

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

    def columns(self, name: str, now: float, window_s: float, width: int, *, grows: bool = False) -> list[float | None]:
        """Return `width` columns of the last `window_s`, each the largest value in its share of time, None for a gap.

        Their bounds lie at fixed moments, so that a chart moves in whole columns instead of flickering. Of a counter
        that `grows` each column is what it grew by.
        """
        step_s = window_s / max(1, width)
        last = int(now // step_s)
        first = last - width + 1
        start = max(0, bisect_left(self._at, first * step_s) - 1)
        values = self._points.get(name)
        columns: list[float | None] = [None] * width
        if values is None:
            return columns
        interval_s = self._interval_s(start)
        before: tuple[float, float] | None = None
        for at, value in zip(self._at[start:], values[start:], strict=True):
            if value is None or at > now:
                before = None if value is None else before
                continue
            column = int(at // step_s) - first
            figure = max(0.0, value - before[1]) if grows and before else 0.0 if grows else value
            if 0 <= column < width:
                columns[column] = max(columns[column] or figure, figure)
            if before and at - before[0] <= BRIDGED * interval_s:
                self._bridge(columns, int(before[0] // step_s) - first, column, 0.0 if grows else before[1])
            before = (at, value)
        if before and now - before[0] <= BRIDGED * interval_s:
            self._bridge(columns, int(before[0] // step_s) - first, width, 0.0 if grows else before[1])
        return columns

    @staticmethod
    def _bridge(columns: list[float | None], begin: int, end: int, value: float) -> None:
        for column in range(max(0, begin + 1), min(end, len(columns))):
            if columns[column] is None:
                columns[column] = value

    def _interval_s(self, start: int) -> float:
        steps = sorted(b - a for a, b in pairwise(self._at[start:][-60:]))
        return steps[len(steps) // 2] if steps else 1.0
