"""Turn successive readings of an engine's counters into rates and latencies over a sliding window."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable

from backends.metrics.scrape import Histogram, Page
from backends.snapshots import Latency, Metrics, Missing

RATE_WINDOW_S = 5.0
"""Long enough that a figure read each second does not flicker, short enough that one answer of a few seconds shows."""

LATENCY_WINDOW_S = 60.0
"""Percentiles and the hit rate need samples: a minute of them."""

_Reading = tuple[float, Page]


class MetricsTracker:
    """Remembers a minute of one engine's readings; make a new one for each launch."""

    def __init__(self) -> None:
        self._readings: deque[_Reading] = deque()

    def update(self, at: float, page: Page | Missing) -> Metrics | Missing:
        """Take the reading made at `at` (Unix seconds) and return the engine's figures as of now.

        A page that is Missing comes back as it is and changes nothing. A counter that went down means that the engine
        was started anew: what was remembered is dropped, and rates begin again from this reading.
        """
        if isinstance(page, Missing):
            return page
        if self._readings and (at <= self._readings[-1][0] or _went_down(self._readings[-1][1], page)):
            self._readings.clear()
        self._readings.append((at, page))
        while len(self._readings) > 2 and self._readings[1][0] <= at - LATENCY_WINDOW_S:
            self._readings.popleft()
        recent = self._base(at - RATE_WINDOW_S)
        minute = self._readings[0][1]
        return Metrics(
            at=at,
            kv_cache_usage=_told(page.kv_cache_usage, "KV cache usage"),
            running=_whole(page.running, "running requests"),
            waiting=_whole(page.waiting, "waiting requests"),
            prompt_tokens_per_s=_rate(recent, (at, page), lambda reading: reading.prompt_tokens, "prompt tokens"),
            generation_tokens_per_s=_rate(
                recent, (at, page), lambda reading: reading.generation_tokens, "generated tokens"
            ),
            prompt_tokens_total=_whole(page.prompt_tokens, "prompt tokens"),
            generation_tokens_total=_whole(page.generation_tokens, "generated tokens"),
            prefix_cache_hit_rate=_hit_rate(minute, page),
            preemptions_total=_whole(page.preemptions, "preemptions"),
            requests_total=_whole(page.requests, "finished requests"),
            ttft=_latency([reading.ttft for _, reading in self._readings], "time to first token"),
            itl=_latency([reading.itl for _, reading in self._readings], "inter-token latency"),
            e2e=_latency([reading.e2e for _, reading in self._readings], "request latency"),
            kv_cache_tokens=_whole(page.kv_cache_tokens, "KV cache size"),
            sleep_state=page.sleep_state or Missing("the engine does not tell whether it sleeps"),
        )

    def _base(self, since: float) -> _Reading | None:
        """Return the newest reading at or before `since`, else the oldest; None while there is only the newest."""
        earlier = list(self._readings)[:-1]
        return next((reading for reading in reversed(earlier) if reading[0] <= since), earlier[0] if earlier else None)


def percentile(bounds: tuple[float, ...], counts: tuple[float, ...], share: float) -> float:
    """Return the value below which `share` (0–1) of the samples lie, interpolating linearly inside its bucket.

    `counts` are cumulative and the last bound is infinite. In the first bucket nothing but its bound is known, which
    is what is returned; in the last one it is the largest finite bound.
    """
    target = share * counts[-1]
    place = next((i for i, count in enumerate(counts) if count >= target and count > 0), len(counts) - 1)
    if place == 0:
        return bounds[0]
    if math.isinf(bounds[place]):
        return bounds[place - 1]
    inside = counts[place] - counts[place - 1]
    fraction = (target - counts[place - 1]) / inside
    return bounds[place - 1] + (bounds[place] - bounds[place - 1]) * fraction


def _went_down(old: Page, new: Page) -> bool:
    pairs = zip(_counters(old), _counters(new), strict=True)
    return any(before is not None and after is not None and after < before for before, after in pairs)


def _counters(page: Page) -> list[float | None]:
    plain = [page.prompt_tokens, page.generation_tokens, page.prefix_queries, page.preemptions, page.requests]
    return plain + [histogram.count if histogram else None for histogram in (page.ttft, page.itl, page.e2e)]


def _told(value: float | None, what: str) -> float | Missing:
    return Missing(f"the engine does not tell: {what}") if value is None else value


def _whole(value: float | None, what: str) -> int | Missing:
    return Missing(f"the engine does not tell: {what}") if value is None else round(value)


def _rate(
    base: _Reading | None, newest: _Reading, counter: Callable[[Page], float | None], what: str
) -> float | Missing:
    now = counter(newest[1])
    if now is None:
        return Missing(f"the engine does not tell: {what}")
    before = counter(base[1]) if base else None
    if base is None or before is None:
        return Missing("a rate needs two readings")
    return (now - before) / (newest[0] - base[0])


def _hit_rate(old: Page, new: Page) -> float | Missing:
    """Share of prefix-cache queries that hit, over the window; since the engine's start where it saw no new ones."""
    if new.prefix_queries is None or new.prefix_hits is None:
        return _told(new.prefix_hit_rate, "prefix-cache hits")
    queries = new.prefix_queries - (old.prefix_queries or 0.0)
    hits = new.prefix_hits - (old.prefix_hits or 0.0)
    if queries <= 0:
        queries, hits = new.prefix_queries, new.prefix_hits
    return min(hits / queries, 1.0) if queries > 0 else Missing("no prefix-cache query yet")


def _latency(readings: Iterable[Histogram | None], what: str) -> Latency | Missing:
    """Return the latency between the oldest and the newest of the readings that have the newest's buckets."""
    *earlier, new = readings
    if new is None:
        return Missing(f"the engine does not tell: {what}")
    old = next((old for old in earlier if old is not None and old.bounds == new.bounds), new)
    counts: list[float] = []
    for now, before in zip(new.cumulative, old.cumulative, strict=True):
        # A page that is written while requests end may be off by one between buckets: cumulative stays cumulative.
        counts.append(max(now - before, counts[-1] if counts else 0.0))
    count = counts[-1]
    if count <= 0:
        return Latency(0, None, None, None, None, new.bounds[0])
    p50, p90, p99 = (percentile(new.bounds, tuple(counts), share) for share in (0.50, 0.90, 0.99))
    known = new.total is not None and old.total is not None
    mean = ((new.total or 0.0) - (old.total or 0.0)) / count if known else None
    bucket = _only_bucket(new.bounds, counts)
    if bucket is None:
        return Latency(round(count), mean, p50, p90, p99, new.bounds[0])
    if mean is not None:
        # Spread evenly about the mean, which is exact, as far as the bucket allows.
        reach = max(0.0, min(mean - bucket[0], bucket[1] - mean))
        p50, p90, p99 = (mean + reach * (2 * share - 1) for share in (0.50, 0.90, 0.99))
    return Latency(round(count), mean, p50, p90, p99, new.bounds[0], rough=True)


def _only_bucket(bounds: tuple[float, ...], counts: list[float]) -> tuple[float, float] | None:
    """Return the bounds of the bucket that all samples lie in; None of the first, the last, and of several."""
    place = next(place for place, count in enumerate(counts) if count > 0)
    if place == 0 or counts[place] < counts[-1] or math.isinf(bounds[place]):
        return None
    return bounds[place - 1], bounds[place]
