"""Rates and latencies over a window: known deltas in, known figures out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from backends.metrics.rates import LATENCY_WINDOW_S, RATE_WINDOW_S, MetricsTracker, percentile
from backends.metrics.scrape import Histogram, Page, parse
from backends.snapshots import Latency, Metrics, Missing

REAL = parse((Path(__file__).parents[1] / "data" / "metrics" / "vllm-0.26-h200.txt").read_bytes())
assert isinstance(REAL, Page)
IDLE: Page = REAL
INF = math.inf


def update(tracker: MetricsTracker, at: float, page: Page) -> Metrics:
    metrics = tracker.update(at, page)
    assert isinstance(metrics, Metrics)
    return metrics


def histogram(*cumulative: float, total: float | None = 0.0) -> Histogram:
    return Histogram((0.01, 0.02, 0.04, INF), cumulative, total)


def latency(value: Latency | Missing) -> Latency:
    assert isinstance(value, Latency), value
    return value


def test_the_first_reading_has_totals_but_no_rates() -> None:
    metrics = update(MetricsTracker(), 100.0, IDLE)
    assert metrics.generation_tokens_total == 18
    assert metrics.requests_total == 3
    assert metrics.kv_cache_tokens == 792_544
    assert metrics.sleep_state == "awake"
    assert isinstance(metrics.generation_tokens_per_s, Missing)
    assert latency(metrics.ttft) == Latency(0, None, None, None, None, 0.001)


def test_a_steady_rate_is_read_at_once_and_does_not_flicker() -> None:
    tracker = MetricsTracker()
    for second in range(30):
        metrics = update(tracker, 100.0 + second, replace(IDLE, generation_tokens=50.0 * second))
        if second:
            assert metrics.generation_tokens_per_s == pytest.approx(50)


def test_a_burst_has_left_the_rate_when_the_window_has_passed() -> None:
    tracker = MetricsTracker()
    update(tracker, 0.0, replace(IDLE, generation_tokens=0.0))
    assert update(tracker, 1.0, replace(IDLE, generation_tokens=100.0)).generation_tokens_per_s == 100
    rates = [
        update(tracker, 1.0 + second, replace(IDLE, generation_tokens=100.0)).generation_tokens_per_s
        for second in range(1, 8)
    ]
    assert rates[int(RATE_WINDOW_S) - 2] == pytest.approx(100 / RATE_WINDOW_S)
    assert rates[int(RATE_WINDOW_S) - 1 :] == [0, 0, 0]


def test_readings_further_apart_than_the_window_still_make_a_rate() -> None:
    tracker = MetricsTracker()
    update(tracker, 0.0, replace(IDLE, prompt_tokens=0.0))
    assert update(tracker, 20.0, replace(IDLE, prompt_tokens=400.0)).prompt_tokens_per_s == 20


def test_a_counter_that_goes_down_is_a_restart() -> None:
    tracker = MetricsTracker()
    update(tracker, 0.0, replace(IDLE, generation_tokens=1000.0))
    restarted = update(tracker, 1.0, replace(IDLE, generation_tokens=10.0))
    assert isinstance(restarted.generation_tokens_per_s, Missing)
    assert restarted.generation_tokens_total == 10
    assert update(tracker, 2.0, replace(IDLE, generation_tokens=40.0)).generation_tokens_per_s == 30


def test_a_clock_set_back_begins_again() -> None:
    tracker = MetricsTracker()
    update(tracker, 100.0, IDLE)
    assert isinstance(update(tracker, 50.0, IDLE).prompt_tokens_per_s, Missing)
    assert update(tracker, 51.0, IDLE).prompt_tokens_per_s == 0


def test_a_missing_page_passes_through_and_the_window_survives_it() -> None:
    tracker = MetricsTracker()
    update(tracker, 0.0, replace(IDLE, generation_tokens=0.0))
    gone = Missing("nothing answers")
    assert tracker.update(1.0, gone) == gone
    assert update(tracker, 2.0, replace(IDLE, generation_tokens=20.0)).generation_tokens_per_s == 10


def test_what_the_engine_does_not_tell_is_missing_with_a_reason() -> None:
    empty = parse(b"vllm:num_requests_running 2\n")
    assert isinstance(empty, Page)
    metrics = update(MetricsTracker(), 0.0, empty)
    assert metrics.running == 2
    for value in (metrics.kv_cache_usage, metrics.ttft, metrics.generation_tokens_per_s, metrics.prefix_cache_hit_rate):
        assert isinstance(value, Missing)
        assert value.reason.startswith("the engine does not tell: ")
    assert isinstance(metrics.sleep_state, Missing)


def test_percentiles_interpolate_inside_their_bucket() -> None:
    tracker = MetricsTracker()
    update(tracker, 0.0, replace(IDLE, ttft=histogram(5, 5, 5, 5, total=1.0)))
    metrics = update(tracker, 1.0, replace(IDLE, ttft=histogram(5, 104, 105, 105, total=2.5)))
    ttft = latency(metrics.ttft)
    assert (ttft.count, ttft.floor_s, ttft.rough) == (100, 0.01, False)
    assert (ttft.mean_s, ttft.p50_s, ttft.p99_s) == pytest.approx((0.015, 0.01 + 0.01 * 50 / 99, 0.02))


@pytest.mark.parametrize(("total", "p50_s", "p99_s"), [(632.0, 6.32, 7.6136), (950.0, 9.5, 9.99), (500.0, 5.0, 5.0)])
def test_in_one_bucket_percentiles_keep_to_the_mean_and_are_called_rough(
    total: float, p50_s: float, p99_s: float
) -> None:
    tracker = MetricsTracker()
    bounds = (1.0, 5.0, 10.0, INF)
    update(tracker, 0.0, replace(IDLE, e2e=Histogram(bounds, (0, 0, 0, 0), 0.0)))
    e2e = latency(update(tracker, 1.0, replace(IDLE, e2e=Histogram(bounds, (0, 0, 100, 100), total))).e2e)
    assert (e2e.p50_s, e2e.p99_s) == pytest.approx((p50_s, p99_s))
    assert e2e.rough


def test_below_the_first_bound_only_the_bound_and_the_mean_are_known() -> None:
    tracker = MetricsTracker()
    update(tracker, 0.0, replace(IDLE, itl=histogram(0, 0, 0, 0)))
    itl = latency(update(tracker, 1.0, replace(IDLE, itl=histogram(99, 100, 100, 100, total=0.315))).itl)
    assert itl.p50_s == itl.p90_s == itl.p99_s == itl.floor_s == 0.01
    assert itl.mean_s == pytest.approx(0.00315)


def test_beyond_the_last_bound_the_bound_is_shown() -> None:
    assert percentile((0.01, 0.02, INF), (0.0, 1.0, 10.0), 0.99) == 0.02
    assert percentile((0.01, 0.02, INF), (0.0, 0.0, 10.0), 0.50) == 0.02


def test_samples_leave_the_latency_window_and_none_are_left() -> None:
    tracker = MetricsTracker()
    update(tracker, 0.0, replace(IDLE, ttft=histogram(0, 0, 0, 0)))
    busy = replace(IDLE, ttft=histogram(0, 4, 4, 4, total=0.06))
    counts = [latency(update(tracker, 1.0 + second, busy).ttft).count for second in range(int(LATENCY_WINDOW_S) + 2)]
    assert counts == [4] * int(LATENCY_WINDOW_S) + [0, 0]
    assert latency(update(tracker, 100.0, busy).ttft).p50_s is None


def test_percentiles_without_a_sum_have_no_mean() -> None:
    tracker = MetricsTracker()
    update(tracker, 0.0, replace(IDLE, e2e=histogram(0, 0, 0, 0, total=None)))
    e2e = latency(update(tracker, 1.0, replace(IDLE, e2e=histogram(0, 2, 2, 2, total=None))).e2e)
    assert e2e.mean_s is None
    assert e2e.p50_s == pytest.approx(0.015)


def test_the_hit_rate_is_of_the_window_else_of_all_time() -> None:
    tracker = MetricsTracker()
    update(tracker, 0.0, replace(IDLE, prefix_queries=100.0, prefix_hits=0.0))
    hit = update(tracker, 1.0, replace(IDLE, prefix_queries=200.0, prefix_hits=75.0))
    assert hit.prefix_cache_hit_rate == 0.75
    later = update(tracker, 200.0, replace(IDLE, prefix_queries=200.0, prefix_hits=75.0))
    assert later.prefix_cache_hit_rate == 0.375
    none_yet = update(MetricsTracker(), 0.0, replace(IDLE, prefix_queries=0.0, prefix_hits=0.0))
    assert isinstance(none_yet.prefix_cache_hit_rate, Missing)
    v0 = update(MetricsTracker(), 0.0, replace(IDLE, prefix_queries=None, prefix_hits=None, prefix_hit_rate=0.4))
    assert v0.prefix_cache_hit_rate == 0.4
