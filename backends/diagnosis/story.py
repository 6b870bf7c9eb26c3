"""What a log tells of one launch: its phases, who raised what, the lines that name a cause, and the figures in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from backends.diagnosis.lines import Line, read_line
from backends.diagnosis.reading import RawLine
from backends.diagnosis.tracebacks import LONGEST_TEXT, Chain, Phase, TracebackReader
from backends.engines.stages import VLLM, read_mark

MOST_CHAINS = 300
MOST_SIGNS = 100
MARK_CELLS = 600
"""What tells of a start's progress stands at the beginning of a line."""

START_LINES = 200_000
"""Where a start takes more lines than that, its stages are no longer looked for."""

_READY = re.compile(r"Application startup complete|Uvicorn running on")
_BOOT = re.compile(
    r"non-default args: (?P<args>\{.*\})|\bargs: Namespace\((?P<space>.*)\)|"
    r"vLLM API server version (?P<version>\d[\w.+]*)"
)
_LITERAL = r"'[^']*'|\d+(?:\.\d+)?|True|False|None"
_BANNER = re.compile(r"version (?P<version>\d+\.\d+[\w.+]*)")
_USAGE = re.compile(r"^usage: ")
_FLAG = re.compile(r"--[a-z][\w-]+")
_MEMORY = re.compile(r"\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\)")
_OLD_TOTAL = re.compile(r"total_gpu_memory \((?P<total>[\d.]+) ?GiB\)|total capacity of (?P<capacity>[\d.]+) GiB")
_CHECKPOINT = re.compile(r"Checkpoint size: (?P<gib>[\d.]+) GiB")
_WARM_STAGES = ("profiling", "compile", "kv cache", "cuda graphs", "warm-up")
_SIGN = re.compile(
    r"error: |address already in use|died unexpectedly|exited unexpectedly|[Kk]illed|oom|out of memory|Fatal Python|"
    r"Segmentation|core dumped|Bus error|terminate called|what\(\):|No space left|No module named|command not found|"
    r"cannot open shared object|libcuda|NVIDIA driver|NCCL|Traceback|cannot execute|No such file|Permission denied|"
    r"not found|fatal:|Illegal instruction|chat template|LoRA rank|failed|free memory|Cannot|could not|couldn't",
    re.I,
)


@dataclass(slots=True)
class Story:
    """One launch; `signs` are lines outside tracebacks that may name a cause, `flags` what its usage text offers.

    `complaint` is the first line that its logger calls an error. Amounts are GiB: `total_gib` of the GPU,
    `checkpoint_gib` of the weights.
    """

    chains: list[Chain] = field(default_factory=list)
    signs: list[tuple[int, Line]] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    args: dict[str, Any] = field(default_factory=dict)
    complaint: tuple[int, Line] | None = None
    phase: Phase = "load"
    ready: bool = False
    version: str = ""
    total_gib: float | None = None
    checkpoint_gib: float | None = None
    stopped: bool = False
    boot_process: str = ""


class _Teller:
    """Builds the story of the last launch in a log."""

    def __init__(self) -> None:
        self.story = Story()
        self._tracebacks = TracebackReader()
        self._seen = 0
        self._in_usage = False
        self._part = 0

    def hear(self, raw: RawLine) -> None:
        self._part = self._tracebacks.part = raw.part
        for line in read_line(raw.number, raw.text):
            self._hear_line(line)

    def end(self) -> Story:
        for chain in self._tracebacks.flush():
            self._add(chain)
        self.story.chains.sort(key=lambda chain: (chain.part, chain.began))
        return self.story

    def _hear_line(self, line: Line) -> None:
        text = line.text
        if boot := _BOOT.search(text):
            self._boot(boot, line)
        self._tracebacks.phase = self.story.phase
        for chain in self._tracebacks.feed(line):
            self._add(chain)
        if self._tracebacks.taken:
            return
        self._seen += 1
        story = self.story
        if not story.ready:
            self._look_at_start(text[:MARK_CELLS])
        if self._in_usage or _USAGE.match(text):
            self._in_usage = text.startswith((" ", "usage: "))
            if self._in_usage:
                story.flags.update(_FLAG.findall(text)[: max(0, 2000 - len(story.flags))])
                return
        is_bad = line.level in ("", "ERROR", "CRITICAL")
        is_sign = _SIGN.search(text) if is_bad else line.level == "WARNING" and "exited unexpectedly" in text
        if is_sign and len(story.signs) < MOST_SIGNS:
            story.signs.append((self._part, replace(line, text=text[:LONGEST_TEXT])))
        if story.complaint is None and line.level in ("ERROR", "CRITICAL") and text.strip():
            story.complaint = (self._part, line)
        if text.startswith("gpubox: stopping"):
            story.stopped = True

    def _look_at_start(self, text: str) -> None:
        story = self.story
        if _READY.search(text):
            story.ready, story.phase = True, "use"
            return
        if self._seen > START_LINES:
            return
        mark = read_mark(text, VLLM)
        if mark is not None:
            story.phase = "warm-up" if mark.name in _WARM_STAGES else story.phase
        if not story.version and (found := _BANNER.search(text)):
            story.version = found["version"]
        if found := _CHECKPOINT.search(text):
            story.checkpoint_gib = float(found["gib"])
        self._look_for_total(text)

    def _look_for_total(self, text: str) -> None:
        if found := _MEMORY.search(text):
            self.story.total_gib = float(found["total"])
        elif found := _OLD_TOTAL.search(text):
            self.story.total_gib = float(found["total"] or found["capacity"])

    def _boot(self, found: re.Match[str], line: Line) -> None:
        """Begin anew where a log goes on with another launch: only the last one counts."""
        story = self.story
        if story.boot_process and (story.boot_process != (line.process or "?") or story.chains):
            for _ in self._tracebacks.flush():
                pass
            self.story = story = Story()
            self._seen = 0
        story.boot_process = line.process or "?"
        story.version = found["version"] or story.version
        if found["args"]:
            story.args = _read_args(found["args"])
        elif found["space"]:
            story.args = _read_pairs(re.findall(rf"(\w+)=({_LITERAL})", found["space"]))

    def _add(self, chain: Chain) -> None:
        for link in chain.links:
            self._look_for_total(link.message)
        story = self.story
        if len(story.chains) < MOST_CHAINS:
            story.chains.append(chain)


def _read_args(text: str) -> dict[str, Any]:
    """Read the arguments that vLLM says it was given; of what is no literal, the rest."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = _read_pairs(re.findall(rf"'(\w+)': ({_LITERAL})", text))
    return value if isinstance(value, dict) else {}


def _read_pairs(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    return {key: ast.literal_eval(given) for key, given in pairs if given != "None"}


def tell(lines: Iterable[RawLine]) -> Story:
    """Read a log's lines into the story of its last launch."""
    teller = _Teller()
    for line in lines:
        teller.hear(line)
    return teller.end()
