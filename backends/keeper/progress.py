"""How far a start is: its stages and figures by its log, the time left by earlier starts like it, and whether it moves.

All of it is arithmetic on what it is told, with the times it is told; reading is done by `following`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from backends.engines.figures import FigureReader
from backends.engines.stages import STEPS, TURN, StageTracker
from backends.processes.logs import split_stamp
from backends.starts import Stage, StageTime, StartFigures, StartProgress

if TYPE_CHECKING:
    from backends.engines.base import Engine, StageMark
    from backends.records import Launch

WEDGED_AFTER_S = 90.0
"""So long nothing may move before a start looks wedged; twice a stage's usual time, where that is longer."""

NOISE_CPU_S, NOISE_CPU_SHARE = 0.5, 0.03
"""CPU time that processes which only wait take all the same: once, and as a share of the time that passes."""

NOISE_IO_BYTES = 1 << 20
NOISE_MEMORY_BYTES = 16 << 20

TRUSTED_PROGRESS = 0.1
"""From here on a stage's own progress says how long the rest of it takes; before, it says too little."""

LATE = 1.5
"""A stage without progress of its own that takes so many times its median leaves the time left unknown."""

ALMOST = 0.99
"""More is done only once the engine answers."""

SHORTEST_ETA_S = 0.5


@dataclass(frozen=True, slots=True)
class Activity:
    """What a start's processes have used up so far, and hold; growth of any of it is movement.

    `io_bytes` is all that they have read and written, `disk_bytes` what of it was read from a disk.
    """

    pids: frozenset[int] = frozenset()
    cpu_s: float = 0.0
    io_bytes: int = 0
    disk_bytes: int = 0
    memory_bytes: int = 0
    gpu_bytes: int = 0


class Stillness:
    """Knows since when nothing has moved: no word in the log, no CPU time beyond noise, no bytes, no memory."""

    def __init__(self, begun_at: float) -> None:
        self._moved_at = begun_at
        self._seen: Activity | None = None

    def moved(self, at: float) -> None:
        """Take note of a word in the log at `at` (Unix seconds)."""
        self._moved_at = max(self._moved_at, at)

    def see(self, activity: Activity, at: float) -> None:
        """Compare with what was seen when something moved last; slow growth adds up to movement."""
        if self._seen is None or _differs(self._seen, activity, at - self._moved_at):
            self._seen = activity
            self._moved_at = max(self._moved_at, at)

    def quiet_since(self, at: float, patience_s: float) -> float | None:
        """Return since when nothing has moved, where that is longer than `patience_s` ago."""
        return self._moved_at if at - self._moved_at >= patience_s else None


def _differs(before: Activity, now: Activity, passed_s: float) -> bool:
    return (
        now.pids != before.pids
        or now.cpu_s - before.cpu_s > NOISE_CPU_S + NOISE_CPU_SHARE * passed_s
        or now.io_bytes - before.io_bytes > NOISE_IO_BYTES
        or abs(now.memory_bytes - before.memory_bytes) > NOISE_MEMORY_BYTES
        or abs(now.gpu_bytes - before.gpu_bytes) > NOISE_MEMORY_BYTES
    )


class Pace:
    """What earlier starts alike (newest first) say of a start's stages, which come in `order`."""

    def __init__(self, order: Sequence[str], earlier: Sequence[Launch]) -> None:
        self._order = (*STEPS, *order)
        self._earlier = tuple(earlier)

    def alike(self, compile_cached: bool | None, version: str | None) -> tuple[Launch, ...]:
        """Return the starts to go by: those that found the compile cache as this one does, where there are any.

        While the log has not told it yet, an engine of the version that started last is taken to find its cache.
        """
        if not self._earlier:
            return ()
        newest = self._earlier[0]
        if compile_cached is None and newest.compile_cached is not None:
            compile_cached = version is None or newest.engine_version in (None, version)
        return tuple(one for one in self._earlier if one.compile_cached is compile_cached) or self._earlier

    def usual_s(self, stage: str, alike: Sequence[Launch]) -> float:
        """Return a stage's median time in seconds; a start that went without it counts as 0, as do waits for a turn."""
        times = [sum(time.took_s for time in one.stages if time.name == stage) for one in alike]
        return median(times) if times and stage != TURN else 0.0

    def left_s(self, stage: Stage, alike: Sequence[Launch], at: float) -> tuple[float, bool]:
        """Return the seconds that are left by what is usual, and whether the stage is late: then they are too few."""
        spent, usual = max(0.0, at - stage.since), self.usual_s(stage.name, alike)
        place = self._order.index(stage.name) if stage.name in self._order else -1
        later = sum(self.usual_s(name, alike) for name in self._order[place + 1 :])
        told = stage.progress
        if told is not None and TRUSTED_PROGRESS <= told < 1.0:
            return spent * (1.0 - told) / told + later, False
        if told is not None and told < TRUSTED_PROGRESS:
            return max(usual * (1.0 - told), usual - spent) + later, usual == 0.0
        return max(0.0, usual - spent) + later, spent > usual * LATE + 1.0


class StartWatch:
    """One start, launched at `launched_at` (Unix seconds): takes in what is seen of it, tells how far it is."""

    def __init__(self, engine: Engine, launched_at: float, earlier: Sequence[Launch] = ()) -> None:
        self._mark: Callable[[str], StageMark | None] = engine.mark
        self._stages = StageTracker(engine.stages, launched_at)
        self._figures = FigureReader()
        self._pace = Pace(engine.stages, earlier)
        self._stillness = Stillness(launched_at)
        self._ratio = 0.0
        self._progress_line = ""
        self.last_line = ""

    @property
    def stage(self) -> Stage | None:
        """What it is doing."""
        return self._stages.stage

    @property
    def figures(self) -> StartFigures | None:
        """What its log told of its memory so far."""
        return self._figures.figures

    @property
    def compile_cached(self) -> bool | None:
        """Whether compiled code comes from the engine's cache; None while that is not told."""
        return self._stages.compile_cached

    @property
    def version(self) -> str | None:
        """The engine's version, as its log tells it."""
        return self._stages.version

    def see_line(self, line: str, now: float) -> None:
        """Take a line of the log: what counts is its stamp, or `now` where it has none."""
        stamp, text = split_stamp(line)
        at = stamp.timestamp() if stamp else now
        self._stillness.moved(at)
        self._stages.see(self._mark(line), at)
        self._figures.see(text)
        self.last_line = text or self.last_line

    def see_progress(self, text: str, at: float) -> None:
        """Take the newest state of a line that the engine rewrites, as of `at`."""
        if text != self._progress_line:
            self._progress_line = text
            self._stillness.moved(at)
            self._stages.see(self._mark(text), at)

    def see_measured(self, mark: StageMark, at: float) -> None:
        """Take what the process itself shows of its stage, where its log tells less: bytes fetched or loaded."""
        stage = self.stage
        if stage is not None and stage.name == mark.name and (stage.progress or 0.0) > (mark.progress or 0.0):
            return
        self._stages.see(mark, at)

    def see_activity(self, activity: Activity, at: float) -> None:
        """Take what its processes have used up by `at`."""
        self._stillness.see(activity, at)

    def done(self, ended_at: float | None = None) -> tuple[StageTime, ...]:
        """Return the stages that are over; all of them, where the start `ended_at` a moment."""
        return self._stages.done(ended_at)

    def spent_s(self, at: float) -> float:
        """Return how long it has been at work by `at`, in seconds; waiting for its turn does not count."""
        in_stage_s = max(0.0, at - self.stage.since) if self.stage is not None else 0.0
        return in_stage_s + sum(time.took_s for time in self.done() if time.name != TURN)

    def progress(self, at: float) -> StartProgress:
        """Return how far it is at `at`; the ratio never runs backwards."""
        stage, alike = self.stage, self._pace.alike(self.compile_cached, self.version)
        ratio = eta_s = None
        patience_s = WEDGED_AFTER_S
        if stage is not None and alike:
            left_s, late = self._pace.left_s(stage, alike, at)
            spent_s = self.spent_s(at)
            self._ratio = max(self._ratio, min(ALMOST, spent_s / (spent_s + left_s) if left_s > 0 else ALMOST))
            ratio = self._ratio
            eta_s = left_s if not late and left_s >= SHORTEST_ETA_S else None
            patience_s = max(WEDGED_AFTER_S, 2 * self._pace.usual_s(stage.name, alike))
        return StartProgress(
            at=at,
            done=self.done(),
            ratio=ratio,
            eta_s=eta_s,
            based_on=len(alike),
            compile_cached=self.compile_cached,
            quiet_since=self._stillness.quiet_since(at, patience_s),
        )
