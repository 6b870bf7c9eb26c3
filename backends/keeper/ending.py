"""How a launch ended, judged from what the shim wrote down, and when it is to be tried again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backends.diagnosis.card import PORT_IN_USE, cause_line, diagnose
from backends.diagnosis.ended import how_it_ended
from backends.processes.facts import ProcessFacts
from backends.snapshots import ServerState
from backends.starts import Card, Exit

if TYPE_CHECKING:
    from backends.keeper.record import Record
    from profiles.schema import Restart

STEADY_S = 60.0
"""A server that was ready for so long begins its count of restarts anew."""

LONGEST_BACKOFF_S = 300.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state a launch ends in, how its engine ended, and the cause where that was not asked for.

    `card` says more of the cause, where the engine's log was asked.
    """

    state: ServerState
    exit: Exit | None
    cause: str | None
    was_launched: bool = True
    card: Card | None = None

    @property
    def lost_its_port(self) -> bool:
        """Whether somebody else got the port first."""
        return self.card is not None and self.card.cause == PORT_IN_USE


def judge(
    record: Record,
    facts: ProcessFacts | None,
    launch_problem: str | None,
    *,
    oom_killed: bool | None = None,
    gpu_count: int | None = None,
    gpu_memory_bytes: int | None = None,
) -> Verdict:
    """Judge a launch that is over, by its log where nobody asked for the end; an unasked exit 0 is a failure, too.

    It reads the log, which may be long: not on an event loop. `oom_killed` says whether the kernel has killed for want
    of memory, `gpu_count` and `gpu_memory_bytes` (of one GPU) what the box has, where that is known.
    """
    if launch_problem is not None:
        return Verdict(ServerState.FAILED, None, launch_problem, was_launched=False)
    if facts is None or facts.phase != "exited":
        return Verdict(ServerState.LOST, None, "its shim ended without a word; the box may have been rebooted")
    asked, end = not record.wanted, facts.exit
    how = Exit(end.at, end.code, end.signal, asked) if end else None
    if asked:
        return Verdict(ServerState.STOPPED, how, None)
    if facts.error:
        return Verdict(ServerState.FAILED, how, facts.error)
    try:
        card = diagnose(
            Path(record.log_path),
            end,
            record.profile,
            port=record.port,
            gpu_count=gpu_count,
            gpu_memory_bytes=gpu_memory_bytes,
            oom_killed=oom_killed,
        )
    except OSError as problem:
        cause = f"{how_it_ended(end, oom_killed=oom_killed)} (its log cannot be read: {problem})"
        return Verdict(ServerState.FAILED, how, cause)
    cause = cause_line(card, end, oom_killed=oom_killed, dropped_lines=facts.dropped_lines)
    return Verdict(ServerState.FAILED, how, cause, card=card)


def next_attempt(record: Record, restart: Restart, now: float) -> tuple[int, float] | None:
    """Return which restart comes next after a failure at `now` and in how many seconds; None where there is none."""
    if restart.policy != "on-failure":
        return None
    was_steady = record.ready_at is not None and now - record.ready_at > STEADY_S
    attempt = 1 if was_steady else record.attempt + 1
    if attempt > restart.max_attempts:
        return None
    return attempt, min(restart.backoff_s * 2 ** (attempt - 1), LONGEST_BACKOFF_S)
