"""A start's progress in words: what is left, what it looks stuck on, how long its stages took."""

from __future__ import annotations

from collections.abc import Iterable

from backends.snapshots import Server, ServerState
from backends.starts import StageTime, StartFigures, StartProgress, took_words
from tui.format import clock_time, counted, duration, memory, percent

FEW_S = 8.0


def left_s(progress: StartProgress, now: float) -> float | None:
    """Return how many seconds are left at `now`, by what was said at `progress.at`; None where nobody can tell."""
    if progress.eta_s is None:
        return None
    left = progress.eta_s - (now - progress.at)
    return left if left > 0 else None


def left_text(progress: StartProgress, now: float) -> str:
    """Say what is left: 'about 40 s left'; empty where no earlier start tells."""
    if not progress.based_on:
        return ""
    left = left_s(progress, now)
    if left is None:
        return "a little longer than usual"
    return "a few seconds left" if left < FEW_S else f"about {_rounded(left)} left"


def left_short(progress: StartProgress, now: float) -> str:
    """Say what is left in a few cells: '~40 s'; empty where nobody can tell."""
    left = left_s(progress, now)
    return "" if left is None else f"~{_rounded(left)}"


def _rounded(seconds: float) -> str:
    if seconds < FEW_S:
        return f"{max(1, round(seconds))} s"
    if seconds < 57.5:
        return f"{5 * max(1, round(seconds / 5))} s"
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.0f} h"


def wedged_text(progress: StartProgress) -> str:
    """Say since when nothing moves, and what it waits for; empty where it moves."""
    if progress.quiet_since is None:
        return ""
    waits = f" · waits for {progress.waits_for}" if progress.waits_for else ""
    return f"looks wedged since {clock_time(progress.quiet_since)}{waits}"


def start_text(server: Server, now: float) -> str:
    """Say what a start is at and what is left: 'weights 62% · about 40 s left'; empty where it does not start."""
    if server.state is not ServerState.STARTING or server.stage is None:
        return ""
    stage, progress = server.stage, server.progress
    done = f" {percent(stage.progress)}" if stage.progress is not None else ""
    left = left_text(progress, now) if progress is not None else ""
    return f"{stage.name}{done} · {left}" if left else f"{stage.name}{done} · for {duration(now - stage.since)}"


def took_text(seconds: float) -> str:
    """Show how long something took: '0.3 s', '12.1 s', '79 s', '3:05'."""
    return f"{seconds:.1f} s" if seconds < 59.95 else took_words(seconds)


def stages_text(stages: Iterable[StageTime]) -> str:
    """List stages with their times: 'boot 6.2 s · config 7.1 s'."""
    return " · ".join(f"{stage.name} {took_text(stage.took_s)}" for stage in stages)


def figures_text(figures: StartFigures) -> str:
    """List what a start told of its memory: 'weights 12.3 GiB · KV cache 42.3 GiB · 791,808 tokens'."""
    parts = [
        f"{name} {memory(amount)}"
        for name, amount in (
            ("weights", figures.weights_bytes),
            ("activation", figures.activation_bytes),
            ("non-torch", figures.non_torch_bytes),
            ("graphs", figures.graphs_bytes),
            ("KV cache", figures.kv_available_bytes),
        )
        if amount
    ]
    if figures.kv_tokens is not None:
        parts.append(f"{figures.kv_tokens:,} tokens")
    if figures.max_concurrency is not None:
        length = f" of {figures.max_model_len:,} tokens" if figures.max_model_len else ""
        parts.append(f"{counted(figures.max_concurrency, 'request')}{length} at once")
    return " · ".join(parts)
