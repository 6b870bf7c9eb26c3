"""What real logs of vLLM tell of an engine's memory, and of its stages' times and caches."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from backends.engines.base import StageMark
from backends.engines.figures import read_figures
from backends.engines.registry import engine_named
from backends.engines.stages import StageTracker
from backends.starts import StageTime, StartFigures

LOGS = Path(__file__).parent.parent / "data" / "logs"
GIB = 1 << 30


def read(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text().splitlines()


def gib(amount: float) -> int:
    return round(amount * GIB)


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        (
            "h200-0.26-ready",
            StartFigures(gib(12.29), gib(1.12), gib(0.22), gib(0.89), gib(42.29), 791_808, 96.66, 8192),
        ),
        (
            "h200-0.26-tp2-ready",
            StartFigures(gib(6.15), gib(0.66), gib(0.07), gib(0.55), gib(63.02), 2_360_000, 288.09, 8192),
        ),
        (
            "cpu-0.32-ready",
            StartFigures(
                kv_available_bytes=GIB,
                kv_tokens=262_144,
                max_concurrency=256.0,
                max_model_len=1024,
            ),
        ),
        ("cpu-0.32-unknown-flag", None),
    ],
)
def test_the_figures_of_a_real_start(name: str, figures: StartFigures | None) -> None:
    assert read_figures(read(name)) == figures


def test_newer_words_tell_weights_and_the_rest_in_one_sum() -> None:
    lines = [
        "(EngineCore pid=7) INFO [gpu_model_runner.py:5150] Model loading took 12.25 GiB memory and 3.39 seconds",
        "(EngineCore pid=7) INFO [gpu_worker.py:1019] Free memory on device (139.29/139.8 GiB) on startup. Desired GPU "
        "memory utilization is (0.5, 69.9 GiB). Actual usage is 12.5 GiB for consumed memory (weights + non-torch), "
        "1.5 GiB for peak activation, and 0.5 GiB for CUDAGraph memory.",
        "(EngineCore pid=7) INFO GPU KV cache size: 1,024 tokens, Maximum concurrency for 512 tokens per request: 2.0x",
    ]
    assert read_figures(lines) == StartFigures(
        weights_bytes=gib(12.25),
        activation_bytes=gib(1.5),
        non_torch_bytes=gib(0.25),
        graphs_bytes=gib(0.5),
        kv_tokens=1024,
        max_concurrency=2.0,
        max_model_len=512,
    )


def test_a_start_without_graphs_tells_that_they_take_nothing() -> None:
    told = (
        "Actual usage is 6.15 GiB for weight, 0.74 GiB for peak activation, 0.06 GiB for non-torch memory, and 0.0 GiB"
    )
    found = read_figures(
        [f"(Worker_TP0 pid=1164) INFO 11-21 21:45:41 [gpu_worker.py:857] {told} for CUDAGraph memory."]
    )
    assert found is not None
    assert found.graphs_bytes == 0


def test_of_the_workers_the_largest_weights_and_the_smallest_cache_count() -> None:
    lines = [
        "(Worker_PP0 pid=1) INFO Model loading took 7.5 GiB and 3.0 seconds",
        "(Worker_PP1 pid=2) INFO Model loading took 6.5 GiB and 3.0 seconds",
        "(Worker_PP0 pid=1) INFO Available KV cache memory: 40.0 GiB",
        "(Worker_PP1 pid=2) INFO Available KV cache memory: 41.0 GiB",
        "(EngineCore pid=3) INFO GPU KV cache size: 1,100 tokens",
        "(EngineCore pid=3) INFO GPU KV cache size: 1,000 tokens",
    ]
    assert read_figures(lines) == StartFigures(weights_bytes=gib(7.5), kv_available_bytes=gib(40.0), kv_tokens=1000)


def test_the_caches_of_data_parallel_engines_add_up() -> None:
    lines = [
        f"(EngineCore_DP{rank} pid={rank}) INFO GPU KV cache size: 1,000 tokens, "
        "Maximum concurrency for 500 tokens per request: 2.00x"
        for rank in range(2)
    ]
    assert read_figures(lines) == StartFigures(kv_tokens=2000, max_concurrency=4.0, max_model_len=500)


def moment(line: str) -> float | None:
    """Return when vLLM itself says that it wrote a line."""
    found = line.split(" INFO 11-21 ")
    if len(found) < 2:
        return None
    return datetime.strptime(f"2026-11-21 {found[1][:8]}", "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()


def follow(name: str, launched: str) -> tuple[StageTracker, float]:
    engine = engine_named("vllm")
    begun = datetime.fromisoformat(f"2026-11-21T{launched}+00:00").timestamp()
    tracker, at = StageTracker(engine.stages, begun), begun
    tracker.see(StageMark("boot"), at)
    for line in read(name):
        at = moment(line) or at
        tracker.see(engine.mark(line), at)
        if "Application startup complete" in line:
            break
    return tracker, at


def test_the_times_of_a_real_start() -> None:
    tracker, at = follow("h200-0.26-ready", "09:45:08")
    assert tracker.done(at + 1) == (
        StageTime("boot", 10.0),
        StageTime("config", 13.0),
        StageTime("engine", 2.0),
        StageTime("weights", 3.0),
        StageTime("profiling", 4.0),
        StageTime("compile", 9.0),
        StageTime("kv cache", 2.0),
        StageTime("cuda graphs", 3.0),
        StageTime("warm-up", 10.0),
    )
    assert (tracker.compile_cached, tracker.version) == (False, "0.26.0")


def test_without_a_compiler_profiling_is_no_part_of_reading_weights() -> None:
    engine = engine_named("vllm")
    tracker = StageTracker(engine.stages, 0.0)
    for at, line in (
        (0.0, "Starting to load model /tmp/m7b..."),
        (3.6, "(Worker_TP0 pid=1164) INFO [model_runner.py:305] Model loading took 6.15 GiB and 4.033855 seconds"),
        (10.1, "(Worker_TP0 pid=1164) INFO [gpu_worker.py:560] Available KV cache memory: 62.94 GiB"),
    ):
        tracker.see(engine.mark(line), at)
    assert tracker.done() == (StageTime("weights", 3.6), StageTime("profiling", 6.5))


def test_compiled_code_from_the_cache_is_told_from_code_that_is_compiled() -> None:
    engine = engine_named("vllm")

    def cached(*lines: str) -> bool | None:
        tracker = StageTracker(engine.stages, 0.0)
        for line in lines:
            tracker.see(engine.mark(line), 1.0)
        return tracker.compile_cached

    directly = "Directly load the compiled graph(s) for compile range (1, 8192) from the cache, took 1.5 s"
    assert cached("Dynamo bytecode transform time: 3.67 s") is None
    assert cached("Directly load AOT compilation from path /x") is True
    assert cached("[backbone] Compiling model again due to a load failure from /x, reason: y") is False
    assert cached("Dynamo bytecode transform time: 3.67 s", directly) is True
    assert cached(directly, "Compiling a graph for compile range (1, 8192) takes 6.29 s") is False
    assert cached("Compiling a graph for compile range (1, 8192) takes 6.29 s", directly) is False


def test_a_download_is_known_by_its_end() -> None:
    engine, tracker = engine_named("vllm"), StageTracker(engine_named("vllm").stages, 0.0)
    tracker.see(StageMark("engine"), 5.0)
    tracker.see(engine.mark("Starting to load model org/m..."), 10.0)
    tracker.see(engine.mark("Time spent downloading weights for org/m: 30.5 seconds"), 41.0)
    tracker.see(engine.mark("Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00]"), 43.0)
    assert tracker.done(45.0) == (StageTime("engine", 10.5), StageTime("download", 30.5), StageTime("weights", 4.0))


def test_weights_that_turn_out_to_be_fetched_first_are_a_download() -> None:
    tracker = StageTracker(engine_named("vllm").stages, 0.0)
    tracker.see(StageMark("engine"), 0.0)
    tracker.see(StageMark("weights"), 10.0)
    assert tracker.see(StageMark("download", 0.5), 12.0)
    assert tracker.stage is not None
    assert (tracker.stage.name, tracker.stage.since) == ("download", 10.0)
    tracker.see(StageMark("weights", 0.1), 20.0)
    assert not tracker.see(StageMark("download", 0.9), 21.0)
    assert tracker.done(25.0) == (StageTime("engine", 10.0), StageTime("download", 10.0), StageTime("weights", 5.0))


def test_each_step_of_a_launch_is_told_by_the_shim() -> None:
    engine, tracker = engine_named("vllm"), StageTracker(engine_named("vllm").stages, 100.0)
    tracker.see(engine.mark("2026-11-21T12:00:00.000+00:00 gpubox: demo: prepare, pid 7: python train.py"), 100.5)
    tracker.see(engine.mark("2026-11-21T12:00:00.000+00:00 training the demo model: 50% loss 1.2"), 101.0)
    tracker.see(engine.mark("2026-11-21T12:00:02.000+00:00 gpubox: demo: turn, pid 8: python gate.py"), 102.0)
    tracker.see(engine.mark("2026-11-21T12:00:09.000+00:00 gpubox: demo: boot, pid 9: python -m vllm"), 109.0)
    assert tracker.done(112.0) == (StageTime("prepare", 1.5), StageTime("turn", 7.0), StageTime("boot", 3.0))
