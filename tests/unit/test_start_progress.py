"""How far a start is, by given clocks: the time left by earlier starts, ratios that never go back, and stillness."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from backends.engines.base import StageMark
from backends.engines.registry import engine_named
from backends.keeper.progress import WEDGED_AFTER_S, Activity, StartWatch, Stillness
from backends.records import Launch
from backends.starts import StageTime

BEGUN = 1_790_000_000.0
VLLM = engine_named("vllm")

LINES = {
    "boot": "gpubox: m7b: boot, pid 7: python -m vllm",
    "config": "non-default args: {'model': 'x'}",
    "engine": "Initializing a V1 LLM engine (v0.26.0) with config: x",
    "weights": "Loading model from scratch...",
    "cached": "Directly load AOT compilation from path /x",
    "compiled": "Compiling a graph for compile range (1, 8192) takes 6.29 s",
    "kv cache": "GPU KV cache size: 791,808 tokens",
    "last": "init engine (profile, create kv cache, warmup model) took 26.59 s",
}


def earlier(cached: bool | None = True, version: str = "0.26.0", **seconds: float) -> Launch:
    times = {
        "boot": 5.0,
        "config": 10.0,
        "engine": 5.0,
        "weights": 20.0,
        "compile": 10.0,
        "kv cache": 5.0,
        "warm-up": 5.0,
    }
    times |= {name.replace("_", " "): took for name, took in seconds.items()}
    return Launch(
        id="m7b/0",
        server="m7b",
        profile="m7b",
        fingerprint="f",
        engine="vllm",
        engine_version=version,
        gpu_kind="CPU",
        gpu_count=0,
        launched_at=BEGUN - 1000,
        ready_at=BEGUN - 900,
        outcome="ready",
        compile_cached=cached,
        stages=tuple(StageTime(name, took) for name, took in times.items()),
    )


def watching(starts: Sequence[Launch] = (), **seen_at: float) -> StartWatch:
    """Return a start of which some lines were seen, each so many seconds after its launch."""
    watch = StartWatch(VLLM, BEGUN, starts)
    for name, after_s in seen_at.items():
        tell(watch, LINES[name.replace("_", " ")], after_s)
    return watch


def tell(watch: StartWatch, text: str, after_s: float) -> None:
    stamp = datetime.fromtimestamp(BEGUN + after_s, UTC).isoformat(timespec="milliseconds")
    watch.see_line(f"{stamp} {text}", now=BEGUN + 10_000)


def test_without_earlier_starts_nobody_knows_what_is_left() -> None:
    progress = watching(boot=0, config=4, weights=9).progress(BEGUN + 12)
    assert (progress.ratio, progress.eta_s, progress.based_on) == (None, None, 0)
    assert progress.done == (StageTime("boot", 4.0), StageTime("config", 5.0))


def test_what_is_left_is_the_rest_of_the_stage_and_the_later_ones() -> None:
    watch = watching([earlier()] * 3, boot=0, config=5, engine=15, weights=20)
    progress = watch.progress(BEGUN + 24)
    assert (progress.eta_s, progress.based_on) == (16.0 + 20.0, 3)
    assert progress.ratio == pytest.approx(24 / 60)


def test_each_stage_goes_by_its_median() -> None:
    starts = [earlier(weights=20), earlier(weights=24), earlier(weights=300)]
    assert watching(starts, boot=0, engine=15, weights=20).progress(BEGUN + 20).eta_s == 24.0 + 20.0


def test_a_stages_own_progress_tells_more_than_the_clock() -> None:
    watch = watching([earlier()], boot=0, engine=15, weights=20)
    tell(watch, "Loading safetensors checkpoint shards:  25% Completed | 1/4", 30)
    assert watch.progress(BEGUN + 30).eta_s == 30.0 + 20.0


def test_before_the_log_tells_it_the_same_version_is_taken_to_find_its_cache() -> None:
    starts = [earlier(cached=False, compile=30), earlier(cached=True, compile=4), earlier(cached=True, compile=4)]
    watch = watching(starts, boot=0, config=5, engine=15)
    assert (watch.progress(BEGUN + 15).eta_s, watch.progress(BEGUN + 15).based_on) == (5 + 20 + 4 + 10, 2)
    other = [earlier(cached=False, version="0.25.0", compile=30), earlier(version="0.25.0", compile=4)]
    assert watching(other, boot=0, config=5, engine=15).progress(BEGUN + 15).eta_s == 5 + 20 + 30 + 10


def test_once_it_is_known_only_starts_with_the_same_cache_count() -> None:
    starts = [earlier(cached=True, compile=4), earlier(cached=False, compile=30, kv_cache=9)]
    watch = watching(starts, boot=0, engine=15, weights=20, compiled=40)
    assert watch.compile_cached is False
    progress = watch.progress(BEGUN + 40)
    assert (progress.eta_s, progress.based_on, progress.compile_cached) == (30 + 9 + 5, 1, False)


def test_a_late_stage_leaves_the_time_open_and_never_tells_nothing_or_less() -> None:
    watch = watching([earlier()], boot=0, engine=15, weights=20)
    told = [watch.progress(BEGUN + at).eta_s for at in range(20, 200)]
    assert all(eta is None or eta > 0 for eta in told)
    assert told[-1] is None
    last = watching([earlier()], boot=0, last=55)
    assert last.progress(BEGUN + 59).eta_s == 1.0
    assert last.progress(BEGUN + 60).eta_s is None


def test_the_ratio_never_goes_back_and_is_not_full_before_ready() -> None:
    watch = watching([earlier()], boot=0)
    ratios = []
    for at in range(300):
        if at == 30:
            tell(watch, LINES["weights"], at)
        if at == 60:
            tell(watch, "Loading safetensors checkpoint shards:  50% Completed | 1/2", at)
        if at == 200:
            tell(watch, "Loading safetensors checkpoint shards:  51% Completed | 51/100", at)
        if at == 250:
            tell(watch, LINES["last"], at)
        ratios.append(watch.progress(BEGUN + at).ratio or 0.0)
    assert ratios == sorted(ratios)
    assert 0.0 <= ratios[0] < ratios[-1] < 1.0


def test_waiting_for_a_turn_is_neither_progress_nor_expected() -> None:
    watch = StartWatch(VLLM, BEGUN, [earlier()])
    tell(watch, "gpubox: m7b: turn, pid 6: python gate.py", 0)
    tell(watch, LINES["boot"], 600)
    progress = watch.progress(BEGUN + 602)
    assert (progress.eta_s, watch.spent_s(BEGUN + 602)) == (58.0, 2.0)
    assert progress.ratio == pytest.approx(2 / 60)


def test_the_stamps_count_and_not_when_the_lines_are_read() -> None:
    watch = watching(boot=0, config=4, weights=9, last=30)
    assert [stage.took_s for stage in watch.done(BEGUN + 33)] == [4.0, 5.0, 21.0, 3.0]


def test_what_is_measured_counts_where_the_log_tells_less() -> None:
    watch = watching(boot=0, weights=10)
    watch.see_measured(StageMark("weights", 0.4, "4.9 of 12.2 GiB"), BEGUN + 12)
    assert watch.stage is not None
    assert (watch.stage.progress, watch.stage.detail) == (0.4, "4.9 of 12.2 GiB")
    tell(watch, "Loading safetensors checkpoint shards:  67% Completed | 2/3", 13)
    watch.see_measured(StageMark("weights", 0.5, "6.1 of 12.2 GiB"), BEGUN + 14)
    assert watch.stage.progress == pytest.approx(2 / 3)


BUSY: dict[str, Any] = {"pids": frozenset({1, 2}), "cpu_s": 10.0, "io_bytes": 1 << 30, "memory_bytes": 4 << 30}


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu_s": 20.0},
        {"io_bytes": 2 << 30},
        {"memory_bytes": 5 << 30},
        {"memory_bytes": 3 << 30},
        {"gpu_bytes": 1 << 30},
        {"pids": frozenset({1, 2, 3})},
    ],
)
def test_any_growth_is_movement(changes: dict[str, Any]) -> None:
    still = Stillness(BEGUN)
    still.see(Activity(**BUSY), BEGUN)
    still.see(Activity(**BUSY | changes), BEGUN + 60)
    assert still.quiet_since(BEGUN + 100, WEDGED_AFTER_S) is None
    assert still.quiet_since(BEGUN + 150, WEDGED_AFTER_S) == BEGUN + 60


def test_waiting_processes_make_noise_and_do_not_move() -> None:
    still = Stillness(BEGUN)
    for second in range(120):
        # A poll loop: one percent of a core, and a few bytes.
        at = BEGUN + second
        still.see(Activity(**BUSY | {"cpu_s": 10 + second / 100, "io_bytes": (1 << 30) + 100 * second}), at)
    assert still.quiet_since(BEGUN + 120, WEDGED_AFTER_S) == BEGUN


def test_slow_growth_adds_up_to_movement() -> None:
    still = Stillness(BEGUN)
    for second in range(200):
        still.see(Activity(**BUSY | {"io_bytes": (1 << 30) + second * (64 << 10)}), BEGUN + second)
    assert still.quiet_since(BEGUN + 200, WEDGED_AFTER_S) is None


def test_a_start_looks_wedged_once_nothing_moved_and_no_longer_once_a_line_came() -> None:
    watch = watching(boot=0, weights=10)
    watch.see_activity(Activity(**BUSY), BEGUN + 11)
    watch.see_activity(Activity(**BUSY), BEGUN + 100)
    assert watch.progress(BEGUN + 100).quiet_since is None
    assert watch.progress(BEGUN + 101).quiet_since == BEGUN + 11
    tell(watch, "a word", 105)
    assert watch.progress(BEGUN + 106).quiet_since is None


def test_a_stage_that_takes_long_as_a_rule_gets_more_patience() -> None:
    watch = watching([earlier(weights=100)], boot=0, weights=10)
    assert watch.progress(BEGUN + 10 + 199).quiet_since is None
    assert watch.progress(BEGUN + 10 + 200).quiet_since == BEGUN + 10
