"""The hour of figures: order, gaps, bounds."""

from __future__ import annotations

from pathlib import Path

from backends.metrics.rates import MetricsTracker
from backends.metrics.scrape import parse
from backends.metrics.series import SeriesStore, gpu_figures, server_figures
from backends.snapshots import Gpu, Metrics, Missing, Series, dump, load

REAL = (Path(__file__).parents[1] / "data" / "metrics" / "vllm-0.26-h200.txt").read_bytes()


def test_points_come_back_in_order_with_gaps_where_nothing_was_read() -> None:
    store = SeriesStore()
    store.append("a", 1.0, {"x": 10.0})
    store.append("a", 2.0, {"x": None, "y": 0.5})
    store.append("a", 3.0, {})
    series = store.series("a")
    assert series == Series((1.0, 2.0, 3.0), {"x": (10.0, None, None), "y": (None, 0.5, None)})
    assert load(Series, dump(series)) == series


def test_since_returns_only_newer_points() -> None:
    store = SeriesStore()
    for second in range(5):
        store.append("a", float(second), {"x": float(second)})
    assert store.series("a", since=2.0) == Series((3.0, 4.0), {"x": (3.0, 4.0)})


def test_no_more_than_the_time_asked_for_is_kept() -> None:
    store = SeriesStore(seconds=10, every_s=1)
    for second in range(1000):
        store.append("a", float(second), {"x": float(second)})
    assert store.series("a").at == tuple(float(second) for second in range(990, 1000))
    store.append("a", 1005.0, {"x": 0.0})
    assert store.series("a").at == (996.0, 997.0, 998.0, 999.0, 1005.0)


def test_readings_faster_than_the_grid_replace_each_other() -> None:
    store = SeriesStore(seconds=10, every_s=1)
    for tenth in range(100):
        store.append("a", tenth / 10, {"x": float(tenth)})
    assert store.series("a").at == tuple(second + 0.9 for second in range(10))


def test_a_clock_set_back_drops_the_points_of_the_future() -> None:
    store = SeriesStore()
    for at in (1.0, 2.0, 3.0, 4.0):
        store.append("a", at, {"x": at})
    store.append("a", 2.5, {"x": 0.0})
    assert store.series("a") == Series((1.0, 2.5), {"x": (1.0, 0.0)})
    store.append("a", 0.5, {"x": 7.0})
    assert store.series("a") == Series((0.5,), {"x": (7.0,)})


def test_keys_are_apart_and_can_be_forgotten() -> None:
    store = SeriesStore()
    store.append("a", 1.0, {"x": 1.0})
    store.append("b", 1.0, {"x": 2.0})
    store.forget("a")
    assert store.series("a") == store.series("never") == Series((), {})
    assert store.series("b").points == {"x": (2.0,)}


def test_figures_of_a_server() -> None:
    metrics = MetricsTracker().update(0.0, parse(REAL))
    assert isinstance(metrics, Metrics)
    figures = server_figures(metrics)
    assert figures == {
        "kv_cache_usage": 0.0,
        "running": 0.0,
        "waiting": 0.0,
        "prompt_tokens_per_s": None,
        "generation_tokens_per_s": None,
        "ttft_p50_s": None,
        "ttft_p99_s": None,
        "ttft_mean_s": None,
        "itl_p50_s": None,
        "itl_p99_s": None,
        "itl_mean_s": None,
        "e2e_p50_s": None,
        "e2e_p99_s": None,
        "e2e_mean_s": None,
        "prefix_cache_hit_rate": 0.0,
        "preemptions_total": 0.0,
    }
    assert server_figures(Missing("asleep")) == {}


def test_figures_of_a_gpu() -> None:
    gpu = Gpu(
        index=0,
        uuid="GPU-1",
        name="H200",
        memory_total_bytes=100,
        memory_used_bytes=40,
        memory_free_bytes=60,
        utilization=0.5,
        temperature_c=Missing("not supported"),
        power_w=300.5,
        power_limit_w=700.0,
        processes=(),
    )
    assert gpu_figures(gpu) == {
        "memory_used_bytes": 40.0,
        "utilization": 0.5,
        "power_w": 300.5,
        "temperature_c": None,
    }
