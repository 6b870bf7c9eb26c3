"""What is told of a server's start, and of its failure: stages, progress, figures, and the crash card.

Times called `*_at`, `at` and `since` are Unix seconds; ratios are 0–1. See `backends.snapshots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def took_words(seconds: float) -> str:
    """Show how long a start took: '61 s', '2:02', '1h 03m'."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    if whole < 100:
        return f"{whole} s"
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02}m"


def gpu_words(indices: Sequence[int]) -> str:
    """Name a server's GPUs: 'GPU 3', 'GPUs 0 and 1', 'the CPU'."""
    if not indices:
        return "the CPU"
    *others, last = map(str, indices)
    return f"GPUs {', '.join(others)} and {last}" if others else f"GPU {last}"


@dataclass(frozen=True, slots=True)
class Stage:
    """What a starting engine is doing; `progress` is 0–1 where the engine tells, `detail` its own words."""

    name: str
    since: float
    progress: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StageTime:
    """A stage of a start that is over, and how long it took."""

    name: str
    took_s: float


@dataclass(frozen=True, slots=True)
class StartProgress:
    """How far a start was at the moment `at`; `ratio` and `eta_s` come from `based_on` earlier starts like it.

    `compile_cached` says whether the engine takes compiled code from its cache. `quiet_since` is set once nothing has
    moved for long: it looks wedged; `waits_for` says on what, as far as that can be told.
    """

    at: float
    done: tuple[StageTime, ...] = ()
    ratio: float | None = None
    eta_s: float | None = None
    based_on: int = 0
    compile_cached: bool | None = None
    quiet_since: float | None = None
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class StartFigures:
    """What an engine's log told of its memory at start, in bytes per GPU (on the CPU: of the host); None: not told.

    `kv_tokens` and `max_concurrency` (at `max_model_len`) are the whole server's.
    """

    weights_bytes: int | None = None
    activation_bytes: int | None = None
    non_torch_bytes: int | None = None
    graphs_bytes: int | None = None
    kv_available_bytes: int | None = None
    kv_tokens: int | None = None
    max_concurrency: float | None = None
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """The line of a log that tells a cause: its number from 1, and its text without stamp."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to do about a failure; `set` is a change of the profile: dotted keys (`args.max_model_len`) and new values.

    None as a value removes the key; an empty `set` is something that no change of the profile does.
    """

    text: str
    set: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Card:
    """Why a start or a server failed: the code of its first root cause, in one line, with its evidence and frames.

    `frames` are the traceback lines of the exception that began it, as `file:line in function`, outermost first;
    `remedies` are the best first.
    """

    cause: str
    summary: str
    evidence: Evidence | None
    remedies: tuple[Remedy, ...] = ()
    frames: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exit:
    """How an engine ended: an exit code, or the signal that killed it; `asked` tells whether we wanted it."""

    at: float
    code: int | None
    signal: int | None
    asked: bool
