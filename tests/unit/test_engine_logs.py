"""What real logs of vLLM say of a start's stages and of a failure's cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.engines.base import StageMark
from backends.engines.diagnosis import cause_of_end, find_cause
from backends.engines.registry import engine_named
from backends.engines.stages import StageTracker
from backends.processes.facts import StepExit

LOGS = Path(__file__).parent.parent / "data" / "logs"


def read(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        (
            "cpu-0.32-max-model-len-too-long",
            "max_model_len 100000 is more than the model was made for (2048); lower it",
        ),
        ("cpu-0.32-model-not-found", "there is no model at /models/nonexistent"),
        ("cpu-0.32-port-in-use", "its port is in use; choose another"),
        ("cpu-0.32-unknown-flag", "this version of the engine does not know --no-such-flag"),
        (
            "h200-0.26-kv-cache-too-small",
            "max_model_len 32768 needs 1.75 GiB of KV cache, 0.35 GiB are left; set max_model_len = 6496, "
            "or raise gpu_memory_utilization",
        ),
        ("cpu-0.32-ready", None),
        ("h200-0.26-ready", None),
        ("h200-0.26-tp2-ready", None),
    ],
)
def test_the_cause_in_a_real_log(name: str, cause: str | None) -> None:
    assert find_cause(read(name)) == cause


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("cpu-0.32-ready", ["config", "engine", "weights", "compile", "kv cache", "warm-up"]),
        ("h200-0.26-ready", ["config", "engine", "weights", "compile", "kv cache", "cuda graphs", "warm-up"]),
        ("h200-0.26-tp2-ready", ["config", "engine", "weights", "compile", "kv cache", "cuda graphs", "warm-up"]),
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


def test_the_first_exception_counts_not_the_wrapper() -> None:
    lines = [
        "(EngineCore pid=1) ERROR torch.cuda.SomeError: the bus fell over",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ]
    assert find_cause(lines) == "SomeError: the bus fell over"


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


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        (StepExit(0.0, 0, None, "boot"), "it ended with exit code 0, though nobody asked it to"),
        (StepExit(0.0, None, 9, "boot"), "killed by SIGKILL, perhaps by the kernel for want of memory"),
        (StepExit(0.0, None, 15, "boot"), "killed by SIGTERM"),
        (StepExit(0.0, 3, None, "boot"), "exit code 3"),
        (None, "it ended, nobody saw how"),
    ],
)
def test_how_it_ended_is_told_where_the_log_says_nothing(tmp_path: Path, ended: StepExit | None, says: str) -> None:
    log = tmp_path / "x.log"
    log.write_text("2026-11-21T12:00:00.000+00:00 nothing of note\n")
    assert cause_of_end(log, ended) == says
