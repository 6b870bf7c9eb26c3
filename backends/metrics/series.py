"""The last hour of figures, one compact ring a server or GPU."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping

from backends.snapshots import Gpu, Latency, Metrics, Missing, Series


class SeriesStore:
    """Keeps the last `seconds` of each key's figures, one point each `every_s`: ~30 KB a figure at the defaults."""

    def __init__(self, seconds: float = 3600, every_s: float = 1) -> None:
        self._seconds = seconds
        self._every_s = every_s
        self._capacity = max(2, math.ceil(seconds / every_s))
        self._rings: dict[str, _Ring] = {}

    def append(self, key: str, at: float, figures: Mapping[str, float | None]) -> None:
        """Add what was read at `at` (Unix seconds); None, or a name left out, is a gap.

        A second reading within the same `every_s` replaces the first. Where the clock was set back, the points that
        are now in the future go.
        """
        ring = self._rings.setdefault(key, _Ring(self._capacity))
        while (
            ring.size and (last := ring.newest_at()) is not None and (last >= at or self._slot(last) == self._slot(at))
        ):
            ring.drop_newest()
        ring.append(at, figures)

    def series(self, key: str, since: float | None = None) -> Series:
        """Return the points of `key` read after `since` (all of the last `seconds` without it); empty if unknown."""
        ring = self._rings.get(key)
        newest_at = ring.newest_at() if ring else None
        if ring is None or newest_at is None:
            return Series((), {})
        return ring.after(max(newest_at - self._seconds, since if since is not None else -math.inf))

    def forget(self, key: str) -> None:
        """Drop all points of `key`."""
        self._rings.pop(key, None)

    def _slot(self, at: float) -> int:
        return math.floor(at / self._every_s)


class _Ring:
    """Columns of equal length that wrap around together; NaN stands for a gap."""

    def __init__(self, capacity: int) -> None:
        self.size = 0
        self._capacity = capacity
        self._start = 0
        self._at = array("d", bytes(8 * capacity))
        self._columns: dict[str, array[float]] = {}

    def newest_at(self) -> float | None:
        return self._at[self._place(self.size - 1)] if self.size else None

    def drop_newest(self) -> None:
        self.size -= 1

    def append(self, at: float, figures: Mapping[str, float | None]) -> None:
        if self.size == self._capacity:
            self._start = self._place(1)
            self.size -= 1
        place = self._place(self.size)
        self._at[place] = at
        for name in figures.keys() - self._columns.keys():
            self._columns[name] = array("d", [math.nan]) * self._capacity
        for name, column in self._columns.items():
            value = figures.get(name)
            column[place] = math.nan if value is None else value
        self.size += 1

    def after(self, since: float) -> Series:
        places = [place for i in range(self.size) if self._at[place := self._place(i)] > since]
        points = {
            name: tuple(None if math.isnan(value := column[place]) else value for place in places)
            for name, column in self._columns.items()
        }
        return Series(tuple(self._at[place] for place in places), points)

    def _place(self, i: int) -> int:
        return (self._start + i) % self._capacity


def server_figures(metrics: Metrics | Missing) -> dict[str, float | None]:
    """Return the figures of `metrics` that are drawn over time; none, hence a gap in each, where it is Missing."""
    if isinstance(metrics, Missing):
        return {}
    return {
        "kv_cache_usage": _number(metrics.kv_cache_usage),
        "running": _number(metrics.running),
        "waiting": _number(metrics.waiting),
        "prompt_tokens_per_s": _number(metrics.prompt_tokens_per_s),
        "generation_tokens_per_s": _number(metrics.generation_tokens_per_s),
        **_latency("ttft", metrics.ttft),
        **_latency("itl", metrics.itl),
        **_latency("e2e", metrics.e2e),
        "prefix_cache_hit_rate": _number(metrics.prefix_cache_hit_rate),
        "preemptions_total": _number(metrics.preemptions_total),
    }


def gpu_figures(gpu: Gpu) -> dict[str, float | None]:
    """Return the figures of `gpu` that are drawn over time."""
    return {
        "memory_used_bytes": _number(gpu.memory_used_bytes),
        "utilization": _number(gpu.utilization),
        "power_w": _number(gpu.power_w),
        "temperature_c": _number(gpu.temperature_c),
    }


def _latency(name: str, latency: Latency | Missing) -> dict[str, float | None]:
    """Return the p50, the p99, and the mean, which alone is exact where they lie in the first bucket."""
    known = None if isinstance(latency, Missing) else latency
    return {
        f"{name}_p50_s": known.p50_s if known else None,
        f"{name}_p99_s": known.p99_s if known else None,
        f"{name}_mean_s": known.mean_s if known else None,
    }


def _number(value: float | Missing) -> float | None:
    return None if isinstance(value, Missing) else float(value)
