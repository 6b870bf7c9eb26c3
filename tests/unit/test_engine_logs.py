"""What real logs of vLLM say of a start's stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.engines.base import StageMark
from backends.engines.registry import engine_named
from backends.engines.stages import StageTracker

LOGS = Path(__file__).parent.parent / "data" / "logs"


def read(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("cpu-0.32-ready", ["config", "engine", "weights", "compile", "kv cache", "warm-up"]),
        (
            "h200-0.26-ready",
            ["config", "engine", "weights", "profiling", "compile", "kv cache", "cuda graphs", "warm-up"],
        ),
        (
            "h200-0.26-tp2-ready",
            ["config", "engine", "weights", "profiling", "compile", "kv cache", "cuda graphs", "warm-up"],
        ),
    ],
)
def test_the_stages_of_a_real_start(name: str, stages: list[str]) -> None:
    engine = engine_named("vllm")
    tracker, seen = StageTracker(engine.stages, 0.0), []
    for second, line in enumerate(read(name)):
        if (
            tracker.see(engine.mark(line), float(second))
            and tracker.stage is not None
            and tracker.stage.name not in seen
        ):
            seen.append(tracker.stage.name)
    assert seen == stages


def test_of_several_progress_states_on_a_line_the_last_counts() -> None:
    line = "Capturing CUDA graphs (FULL):   0%|  | 0/51Capturing CUDA graphs (FULL):  20%|██| 10/51"
    assert engine_named("vllm").mark(line) == StageMark("cuda graphs", 0.2, "")


def test_a_stage_does_not_go_back_and_keeps_its_begin() -> None:
    tracker = StageTracker(("config", "weights", "compile"), 10.0)
    assert tracker.see(StageMark("weights", 0.5), 10.0)
    assert not tracker.see(StageMark("config"), 11.0)
    assert tracker.see(StageMark("weights", 0.75), 12.0)
    assert not tracker.see(StageMark("weights"), 13.0)
    assert tracker.stage is not None
    assert (tracker.stage.name, tracker.stage.since, tracker.stage.progress) == ("weights", 10.0, 0.75)
