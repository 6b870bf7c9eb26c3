"""What the charts of the metrics panel say, and how their charts follow time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.simulation import SimulatedKeeper
from backends.snapshots import Latency, Metrics, Missing, Series
from tui.themes import Palette
from tui.widgets.metric_axis import TimeAxis
from tui.widgets.metric_chart import GUTTER, chart_lines, drawn
from tui.widgets.metric_history import History, high_and_low
from tui.widgets.metric_readings import METRICS, Reading, latency_s, read_gpus, read_host

NOW = 1_795_264_500.0


def some_metrics() -> Metrics:
    metrics = SimulatedKeeper(clock=lambda: NOW).snapshot().servers[0].metrics
    assert isinstance(metrics, Metrics)
    return metrics


def tile(title: str, metrics: Metrics | Missing) -> Reading:
    return next(metric for metric in METRICS if metric.title == title).reading(metrics)


def said(reading: Reading) -> list[str]:
    return [f"{figure.value} {figure.label}".strip() for figure in reading.figures]


def test_each_tile_says_its_figure() -> None:
    metrics = replace(
        some_metrics(),
        kv_cache_usage=0.97,
        kv_cache_tokens=791_808,
        running=36,
        waiting=2,
        generation_tokens_per_s=2345.0,
        generation_tokens_total=24_000_000,
        ttft=Latency(40, 0.146, 0.131, 0.3, 0.444, 0.001),
        e2e=Latency(40, 5.15, 4.6, 9.0, 15.6, 0.3),
        prefix_cache_hit_rate=0.021,
        preemptions_total=0,
    )
    assert said(tile("KV cache usage", metrics)) == ["97%"]
    assert tile("KV cache usage", metrics).figures[0].tone == "bad"
    assert tile("KV cache usage", metrics).detail == "of 792k tokens"
    assert said(tile("Requests", metrics)) == ["36 running", "2 waiting"]
    assert tile("Requests", metrics).figures[1].tone == "warn"
    assert said(tile("Generation", metrics)) == ["2.3k tok/s"]
    assert said(tile("TTFT", metrics)) == ["131 ms p50", "444 ms p99"]
    assert tile("TTFT", metrics).detail == "mean 146 ms"
    assert said(tile("E2E latency", metrics)) == ["4.60 s p50", "15.6 s p99"]
    assert said(tile("Prefix-cache hits", metrics)) == ["2.1%"]
    assert said(tile("Preemptions", metrics)) == ["0 since the start"]


def test_percentiles_of_one_bucket_are_said_to_be_about() -> None:
    rough = tile("E2E latency", replace(some_metrics(), e2e=Latency(150, 6.32, 6.32, 7.38, 7.61, 0.3, rough=True)))
    assert said(rough) == ["≈6.32 s p50", "≈7.61 s p99"]
    assert rough.detail == "mean 6.32 s"


def test_a_percentile_in_the_first_bucket_is_only_known_to_be_below_it_and_the_mean_stands_beside() -> None:
    reading = tile("ITL", replace(some_metrics(), itl=Latency(400, 0.0031, 0.005, 0.009, 0.012, 0.01)))
    assert said(reading) == ["3.1 ms mean", "12 ms p99"]
    assert reading.detail == "p50 <10 ms"
    assert reading.figures[0].chart.series == "itl_mean_s", "what is drawn is what is said"
    whole = tile("E2E latency", replace(some_metrics(), e2e=Latency(400, 0.1, 0.3, 0.3, 0.3, 0.3)))
    assert said(whole) == ["100 ms mean", "<300 ms p99"]


def test_what_is_missing_is_a_dash_with_its_reason_and_never_a_zero() -> None:
    metrics = replace(
        some_metrics(),
        kv_cache_usage=Missing("the engine does not tell: kv_cache_usage_perc"),
        waiting=Missing("nobody counts"),
        itl=Latency(0, None, None, None, None, 0.01),
    )
    assert said(tile("KV cache usage", metrics)) == ["–"]
    assert tile("KV cache usage", metrics).detail == "the engine does not tell: kv_cache_usage_perc"
    assert said(tile("Requests", metrics))[1] == "– waiting"
    assert said(tile("ITL", metrics)) == ["–", "–"]
    assert tile("ITL", metrics).detail == "no request in the last minute"
    for metric in METRICS:
        assert {figure.value for figure in metric.reading(Missing("not ready")).figures} == {"–"}


def test_a_gpu_that_tells_little_and_a_box_without_gpus() -> None:
    box = SimulatedKeeper(clock=lambda: NOW).snapshot().box
    gpu = replace(box.gpus[0], memory_used_bytes=Missing("NVML: not supported"), power_w=Missing("no sensor"))
    memory, utilization, power = read_gpus([gpu])
    assert (said(memory), memory.detail) == (["–"], "NVML: not supported")
    assert said(utilization)[0].endswith("%")
    assert (said(power), power.detail) == (["–"], "no sensor")
    both = read_gpus([replace(gpu, utilization=0.5), replace(box.gpus[1], utilization=0.9)])
    assert said(both[1]) == ["90% most", "50% least"]
    assert said(both[2]) == ["– of 2 GPUs"], "a sum with an unknown part is unknown"
    assert said(read_host(replace(box.host, cpu_utilization=0.5, cpu_count=8))[0]) == ["50% of 8 cores"]
    assert said(read_host(replace(box.host, cpu_utilization=Missing("first reading")))[0])[0].startswith("–")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0004, "0.4 ms"), (0.012, "12 ms"), (0.99951, "1.00 s"), (2.4, "2.40 s"), (9.999, "10.0 s"), (75, "75 s")],
)
def test_latencies_keep_their_unit(seconds: float, shown: str) -> None:
    assert latency_s(seconds) == shown


def a_history(*values: float | None, every_s: float = 1.0) -> History:
    history = History()
    ats = tuple(NOW - (len(values) - 1 - number) * every_s for number in range(len(values)))
    history.take(Series(ats, {"x": tuple(values)}))
    return history


def test_columns_are_shares_of_time_and_keep_peaks() -> None:
    history = a_history(*[float(number % 10 == 5) * 9 + 1 for number in range(100)])
    # The last column has just begun.
    assert history.columns("x", TimeAxis(NOW, 100, 10)) == [10.0] * 9 + [1.0]
    assert history.columns("x", TimeAxis(NOW, 200, 10)) == [None] * 4 + [10.0] * 5 + [1.0]
    assert history.columns("unknown", TimeAxis(NOW, 100, 3)) == [None] * 3


def test_a_chart_moves_by_whole_columns_as_time_goes() -> None:
    history = a_history(*[float(number) for number in range(600)])
    before = history.columns("x", TimeAxis(NOW, 300, 30))
    for second in range(1, 10):
        history.append(NOW + second, {"x": 600.0 + second})
        assert history.columns("x", TimeAxis(NOW + second, 300, 30))[:-1] == before[:-1]
    history.append(NOW + 10, {"x": 610.0})
    assert history.columns("x", TimeAxis(NOW + 10, 300, 30))[:-2] == before[1:-1]


def test_sparse_readings_are_joined_and_real_gaps_stay_gaps() -> None:
    sparse = a_history(1.0, 2.0, 3.0, every_s=10)
    assert None not in sparse.columns("x", TimeAxis(NOW, 20, 20))[1:]
    history = a_history(*[1.0] * 60)
    history.append(NOW + 60, {"x": 2.0})
    columns = history.columns("x", TimeAxis(NOW + 60, 120, 12))
    assert (columns[0], columns[-1]) == (1.0, 2.0)
    assert columns[7:-1] == [None] * 4
    missing = a_history(1.0, 1.0, None, None, None, None, 1.0, 1.0)
    assert missing.columns("x", TimeAxis(NOW, 8, 8)) == [1.0, 1.0, None, None, None, None, 1.0, 1.0]


def test_a_counter_is_drawn_by_its_growth_and_a_restart_is_no_growth() -> None:
    history = a_history(5.0, 5.0, 7.0, 7.0, 0.0, 1.0)
    assert history.columns("x", TimeAxis(NOW, 6, 6), grows=True) == [0.0, 0.0, 2.0, 0.0, 0.0, 1.0]


def test_what_the_keeper_kept_and_what_came_meanwhile_make_one_line() -> None:
    history = History()
    history.append(NOW - 1, {"x": 4.0, "y": 1.0})
    history.append(NOW, {"x": 5.0})
    history.append(NOW, {"x": 99.0})
    history.take(Series((NOW - 3, NOW - 2, NOW - 1), {"x": (1.0, 2.0, 3.0)}))
    assert history.columns("x", TimeAxis(NOW, 4, 4)) == [1.0, 2.0, 3.0, 5.0]


def test_history_is_bounded() -> None:
    history = History()
    for second in range(0, 40_000, 5):
        history.append(NOW + second, {"x": 1.0})
    assert len(history._at) <= 2 * 3600 / 5 + 1
    assert len(history._points["x"]) == len(history._at)


def test_several_gpus_become_the_most_the_least_and_the_sum() -> None:
    one = Series((NOW, NOW + 1), {"power_w": (100.0, 110.0), "utilization": (0.5, None)})
    two = Series((NOW, NOW + 1), {"power_w": (300.0, None), "utilization": (0.7, 0.9)})
    merged = high_and_low([one, two])
    assert merged.at == (NOW, NOW + 1)
    assert merged.points["power_w_sum"] == (400.0, None)
    assert merged.points["utilization_high"] == (0.7, 0.9)
    assert merged.points["utilization_low"] == (0.5, 0.9)


def test_the_least_and_the_most_of_a_window_are_those_of_its_readings() -> None:
    history = a_history(9.0, 5.0, 2.0, 7.0, 4.0)
    assert history.span("x", TimeAxis(NOW, 4, 2)) == (2.0, 7.0)
    assert history.span("x", TimeAxis(NOW + 100, 4, 2)) is None


@pytest.mark.parametrize(("width", "bounds"), [(49, False), (90, True)])
def test_which_line_is_which_is_never_cut_and_bounds_stand_where_there_is_room(width: int, bounds: bool) -> None:
    latency = Latency(150, 0.2168, 0.213, 0.4, 0.494, 0.001)
    history = History()
    history.take(Series((NOW - 1, NOW), {"ttft_p50_s": (0.0901, 0.222), "ttft_p99_s": (0.1002, 0.494)}))
    what = drawn(tile("TTFT", replace(some_metrics(), ttft=latency)), history, TimeAxis(NOW, 300.0, 40), [], None,
                 chosen=False)  # fmt: skip
    detail = chart_lines(what, width, 12, Palette(*["#000000"] * 10))[1].text.strip()
    assert detail == (
        "mean 217 ms · ━ p50 90 ms…222 ms · ┅ p99 100 ms…494 ms" if bounds else "mean 217 ms · ━ p50 · ┅ p99"
    )


@pytest.mark.parametrize("height", [1, 3, 12])
def test_why_a_chart_is_empty_is_told_once_and_whole(height: int) -> None:
    reading = tile("KV cache usage", replace(some_metrics(), kv_cache_usage=Missing("the engine tells no such figure")))
    what = drawn(reading, History(), TimeAxis(NOW, 300.0, 31), [], None, chosen=False)
    lines = [line.text for line in chart_lines(what, 60, height, Palette(*["#000000"] * 10))]
    assert len(lines) == height
    told = " ".join([lines[0], *(line[GUTTER:] for line in lines[1:])])
    assert " ".join(told.split()).count("the engine tells no such figure") == 1
