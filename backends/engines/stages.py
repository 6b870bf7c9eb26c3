"""Where a starting engine is, read from its log: patterns in one table an engine, searched, never matched
at a line's start.

A stage is for people to see; readiness is always asked of the engine itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from backends.engines.base import StageMark
from backends.starts import Stage, StageTime

DOWNLOAD, WEIGHTS = "download", "weights"
TURN = "turn"
"""The wait for other starts on the same GPU."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A pattern that tells a stage; its group `pct` (0–100), or `done` and `of`, tell the progress within it.

    A group `version` is the engine's, a group `fetched_s` says how long the download took that is over; `cached` says
    whether compiled code comes from the engine's cache.
    """

    stage: str
    pattern: re.Pattern[str]
    detail: str = ""
    cached: bool | None = None


def sign(stage: str, pattern: str, detail: str = "", cached: bool | None = None) -> Sign:
    """Compile one row of a table; `detail` may use the pattern's groups as {name}."""
    return Sign(stage, re.compile(pattern), detail, cached)


VLLM = (
    sign("config", r"non-default args: |Resolved architecture: (?P<arch>\S+)"),
    sign("engine", r"Initializing a V1 LLM engine \(v(?P<version>[^)]+)\)"),
    sign(DOWNLOAD, r"Fetching (?P<of>\d+) files:\s+(?P<pct>\d+)%", "{of} files"),
    sign(DOWNLOAD, r"(?P<file>\S+\.(?:safetensors|bin|gguf)):\s+(?P<pct>\d+)%\|", "{file}"),
    sign(WEIGHTS, r"Time spent downloading weights for \S+: (?P<fetched_s>[\d.]+) seconds"),
    sign(WEIGHTS, r"Starting to load model |Loading model from scratch"),
    sign(WEIGHTS, r"Checkpoint size: (?P<gib>[\d.]+) GiB", "{gib} GiB"),
    sign(WEIGHTS, r"Loading .*?:\s+(?P<pct>\d+)% Completed \| (?P<done>\d+)/(?P<of>\d+)", "shard {done} of {of}"),
    sign(WEIGHTS, r"Loading weights took (?P<s>[\d.]+) seconds", "read in {s} s"),
    sign("profiling", r"Model loading took "),
    sign("compile", r"Using cache directory: .*torch_compile_cache|Warming up model for the compilation"),
    sign("compile", r"Compiling (?:a graph for|model again)|saved AOT compiled function", cached=False),
    sign("compile", r"Directly load (?:AOT compilation|the compiled graph)", "from the cache", cached=True),
    sign("compile", r"Dynamo bytecode transform time: "),
    sign("kv cache", r"torch\.compile took (?P<s>[\d.]+) s in total|Initial profiling/warmup run took|Warming up done"),
    sign("kv cache", r"Available KV cache memory: (?P<gib>-?[\d.]+) GiB", "{gib} GiB"),
    sign("kv cache", r"(?:Explicitly|Auto) set \((?P<gib>[\d.]+)/[\d.]+\) GiB for KV cache", "{gib} GiB"),
    sign("kv cache", r"KV cache size: (?P<tokens>[\d,]+) tokens", "{tokens} tokens"),
    sign("cuda graphs", r"Capturing CUDA graphs[^%]*?(?P<pct>\d+)%"),
    sign("warm-up", r"Graph capturing finished in (?P<s>\d+) secs", "graphs captured in {s} s"),
    sign("warm-up", r"init engine \(profile, create kv cache, warmup model\) took|Supported tasks: "),
)
"""vLLM from 0.10 to 0.32; see the project's notes on its start-up log."""

TRANSFORMERS = (
    sign(DOWNLOAD, r"Fetching (?P<of>\d+) files:\s+(?P<pct>\d+)%", "{of} files"),
    sign(DOWNLOAD, r"(?P<file>\S+\.(?:safetensors|bin)):\s+(?P<pct>\d+)%\|", "{file}"),
    sign(WEIGHTS, r"Loading (?:weights|checkpoint shards):\s+(?P<pct>\d+)%"),
    sign("warm-up", r"Application startup complete|Uvicorn running on"),
)
"""`transformers serve`, 5.x."""


def stage_names(signs: Sequence[Sign]) -> tuple[str, ...]:
    """Return the stages of a table in their order."""
    return tuple(dict.fromkeys(row.stage for row in signs))


_STEPS = (
    sign("prepare", r" gpubox: \S+: prepare, pid \d+: "),
    sign(TURN, r" gpubox: \S+: turn, pid \d+: "),
    sign("boot", r" gpubox: \S+: boot, pid \d+: "),
    sign("prepare", r"training the demo model: (?P<pct>\d+)%(?P<rest>.*)", "training the demo model{rest}"),
)
"""What the shim says as it begins each step of a launch, and what the demo model's training says."""

STEPS = stage_names(_STEPS)

LONGEST_LINE = 2000
"""Characters of a line that are looked at: some patterns take time by the square of its length."""


def read_mark(line: str, signs: Sequence[Sign]) -> StageMark | None:
    """Return what `line` says of the start's stage, or None; of several progress states on a line the last counts."""
    text = line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} {line[-LONGEST_LINE // 2 :]}"
    for row in (*_STEPS, *signs):
        states = list(row.pattern.finditer(text))
        if states:
            groups = {name: value or "" for name, value in states[-1].groupdict().items()}
            fetched_s = groups.get("fetched_s")
            return StageMark(
                row.stage,
                _progress(groups),
                row.detail.format(**groups),
                row.cached,
                groups.get("version") or None,
                StageTime(DOWNLOAD, float(fetched_s)) if fetched_s else None,
            )
    return None


class StageTracker:
    """The stages of one start that was launched at `launched_at` (Unix seconds), and what its marks tell besides.

    A log that looks back (a second worker's line) does not move it back, with one exception: weights whose loading has
    told no progress yet may turn out to be fetched first. `compile_cached` and `version` are None until told.
    """

    def __init__(self, stages: Sequence[str], launched_at: float) -> None:
        self._order = (*STEPS, *stages)
        self._begun: dict[str, float] = {}
        self._launched_at = launched_at
        self.stage: Stage | None = None
        self.compile_cached: bool | None = None
        self.version: str | None = None

    def see(self, mark: StageMark | None, at: float) -> bool:
        """Take a mark that was made at `at` (Unix seconds); returns whether that told anything new."""
        if mark is None or mark.name not in self._order:
            return False
        before = (self.stage, self.compile_cached, self.version)
        self.version = mark.version or self.version
        if mark.compile_cached is not None and self.compile_cached is not False:
            self.compile_cached = mark.compile_cached  # where anything had to be compiled, it was not cached
        if mark.before is not None:
            self._fetched(mark, at)
        else:
            self._move(mark, at)
        return (self.stage, self.compile_cached, self.version) != before

    def done(self, ended_at: float | None = None) -> tuple[StageTime, ...]:
        """Return the stages that are over, the last one too where the start `ended_at` a moment (Unix seconds)."""
        begun = list(self._begun.items())
        ends = [since for _, since in begun[1:]] + ([ended_at] if ended_at is not None else [])
        spans = zip(begun, ends, strict=False)
        return tuple(StageTime(name, round(max(0.0, end - since), 3)) for (name, since), end in spans)

    def _move(self, mark: StageMark, at: float) -> None:
        stage = self.stage
        if stage is None:
            # What comes before the first mark of a log that tells no steps belongs to the first stage.
            self._begin(mark, at if mark.name in STEPS else self._launched_at)
        elif mark.name == stage.name:
            progress = stage.progress if mark.progress is None else mark.progress
            self.stage = Stage(stage.name, stage.since, progress, mark.detail or stage.detail)
        elif self._place(mark.name) > self._place(stage.name):
            self._begin(mark, max(at, stage.since))
        elif mark.name == DOWNLOAD and stage.name == WEIGHTS and stage.progress is None:
            since = self._begun.pop(WEIGHTS)
            self._begin(mark, self._begun.get(DOWNLOAD, since))

    def _fetched(self, mark: StageMark, at: float) -> None:
        """Take the end of a download, which tells how long it took."""
        if mark.before is None or self._place(mark.name) < self._place(self.stage.name if self.stage else mark.name):
            return
        earlier = [since for name, since in self._begun.items() if self._place(name) < self._place(mark.before.name)]
        for name in (mark.before.name, mark.name):
            self._begun.pop(name, None)
        self._begun[mark.before.name] = max(at - mark.before.took_s, earlier[-1] if earlier else self._launched_at)
        self._begin(mark, at)

    def _begin(self, mark: StageMark, since: float) -> None:
        self._begun[mark.name] = since
        self.stage = Stage(mark.name, since, mark.progress, mark.detail)

    def _place(self, name: str) -> int:
        return self._order.index(name)


def _progress(groups: dict[str, str]) -> float | None:
    if groups.get("done") and int(groups.get("of") or 0):
        return int(groups["done"]) / int(groups["of"])
    return int(groups["pct"]) / 100 if groups.get("pct") else None
