"""Where a starting engine is, read from its log: patterns in one table an engine, searched, never matched
at a line's start.

A stage is for people to see; readiness is always asked of the engine itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from backends.engines.base import StageMark
from backends.snapshots import Stage


@dataclass(frozen=True, slots=True)
class Sign:
    """A pattern that tells a stage; its group `pct` (0–100), or `done` and `of`, tell the progress within it."""

    stage: str
    pattern: re.Pattern[str]
    detail: str = ""


def sign(stage: str, pattern: str, detail: str = "") -> Sign:
    """Compile one row of a table; `detail` may use the pattern's groups as {name}."""
    return Sign(stage, re.compile(pattern), detail)


VLLM = (
    sign("config", r"non-default args: |Resolved architecture: (?P<arch>\S+)"),
    sign("engine", r"Initializing a V1 LLM engine \(v"),
    sign("download", r"Fetching (?P<of>\d+) files:\s+(?P<pct>\d+)%", "{of} files"),
    sign("download", r"(?P<file>\S+\.(?:safetensors|bin|gguf)):\s+(?P<pct>\d+)%\|", "{file}"),
    sign("weights", r"Starting to load model |Loading model from scratch|Time spent downloading weights"),
    sign("weights", r"Checkpoint size: (?P<gib>[\d.]+) GiB", "{gib} GiB"),
    sign("weights", r"Loading .*?:\s+(?P<pct>\d+)% Completed \| (?P<done>\d+)/(?P<of>\d+)", "shard {done} of {of}"),
    sign("weights", r"Loading weights took (?P<s>[\d.]+) seconds", "read in {s} s"),
    sign("compile", r"Using cache directory: .*torch_compile_cache|Warming up model for the compilation"),
    sign("compile", r"Dynamo bytecode transform time: |Compiling a graph for compile range "),
    sign("compile", r"Directly load (?:AOT compilation|the compiled graph)", "from the cache"),
    sign("kv cache", r"torch\.compile took (?P<s>[\d.]+) s in total|Initial profiling/warmup run took"),
    sign("kv cache", r"Available KV cache memory: (?P<gib>-?[\d.]+) GiB", "{gib} GiB"),
    sign("kv cache", r"KV cache size: (?P<tokens>[\d,]+) tokens", "{tokens} tokens"),
    sign("cuda graphs", r"Capturing CUDA graphs[^%]*?(?P<pct>\d+)%"),
    sign("cuda graphs", r"Graph capturing finished in (?P<s>\d+) secs", "captured in {s} s"),
    sign("warm-up", r"init engine \(profile, create kv cache, warmup model\) took|Supported tasks: "),
)
"""vLLM from 0.10 to 0.32; see the project's notes on its start-up log."""

TRANSFORMERS = (
    sign("download", r"Fetching (?P<of>\d+) files:\s+(?P<pct>\d+)%", "{of} files"),
    sign("download", r"(?P<file>\S+\.(?:safetensors|bin)):\s+(?P<pct>\d+)%\|", "{file}"),
    sign("weights", r"Loading (?:weights|checkpoint shards):\s+(?P<pct>\d+)%"),
    sign("warm-up", r"Application startup complete|Uvicorn running on"),
)
"""`transformers serve`, 5.x."""

_PREPARE = sign("prepare", r"training the demo model: (?P<pct>\d+)%(?P<rest>.*)", "training the demo model{rest}")


def read_mark(line: str, signs: Sequence[Sign]) -> StageMark | None:
    """Return what `line` says of the start's stage, or None; of several progress states on a line the last counts."""
    for row in (_PREPARE, *signs):
        states = list(row.pattern.finditer(line))
        if states:
            groups = {name: value or "" for name, value in states[-1].groupdict().items()}
            return StageMark(row.stage, _progress(groups), row.detail.format(**groups))
    return None


def stage_names(signs: Sequence[Sign]) -> tuple[str, ...]:
    """Return the stages of a table in their order."""
    return tuple(dict.fromkeys(row.stage for row in signs))


class StageTracker:
    """The stage of one start; a log that looks back (a second worker's line) does not move it back."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._order = ("prepare", "boot", *stages)
        self.stage: Stage | None = None

    def see(self, mark: StageMark | None, now: float) -> bool:
        """Take a mark that was read at `now` (Unix seconds); returns whether the stage is another than before."""
        if mark is None or mark.name not in self._order:
            return False
        stage, newer = self.stage, Stage(mark.name, now, mark.progress, mark.detail)
        if stage is not None:
            if self._order.index(mark.name) < self._order.index(stage.name):
                return False
            if mark.name == stage.name:
                progress = stage.progress if mark.progress is None else mark.progress
                newer = Stage(stage.name, stage.since, progress, mark.detail or stage.detail)
        self.stage = newer
        return newer != stage


def _progress(groups: dict[str, str]) -> float | None:
    if groups.get("done") and int(groups.get("of") or 0):
        return int(groups["done"]) / int(groups["of"])
    return int(groups["pct"]) / 100 if groups.get("pct") else None
