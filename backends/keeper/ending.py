"""How a launch ended, judged from what the shim wrote down, and when it is to be tried again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backends.engines.diagnosis import PORT_IN_USE, cause_of_end
from backends.processes.facts import ProcessFacts
from backends.snapshots import Exit, ServerState

if TYPE_CHECKING:
    from backends.keeper.record import Record
    from profiles.schema import Restart

STEADY_S = 60.0
"""A server that was ready for so long begins its count of restarts anew."""

LONGEST_BACKOFF_S = 300.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state a launch ends in, how its engine ended, and the cause where that was not asked for."""

    state: ServerState
    exit: Exit | None
    cause: str | None
    was_launched: bool = True

    @property
    def lost_its_port(self) -> bool:
        """Whether somebody else got the port first."""
        return self.cause is not None and self.cause.startswith(PORT_IN_USE)


def judge(record: Record, facts: ProcessFacts | None, launch_problem: str | None) -> Verdict:
    """Judge a launch that is over, by its log where nobody asked for the end; an unasked exit 0 is a failure, too."""
    if launch_problem is not None:
        return Verdict(ServerState.FAILED, None, launch_problem, was_launched=False)
    if facts is None or facts.phase != "exited":
        return Verdict(ServerState.LOST, None, "its shim ended without a word; the box may have been rebooted")
    asked, end = not record.wanted, facts.exit
    how = Exit(end.at, end.code, end.signal, asked) if end else None
    if asked:
        return Verdict(ServerState.STOPPED, how, None)
    return Verdict(ServerState.FAILED, how, facts.error or cause_of_end(Path(record.log_path), end))


def next_attempt(record: Record, restart: Restart, now: float) -> tuple[int, float] | None:
    """Return which restart comes next after a failure at `now` and in how many seconds; None where there is none."""
    if restart.policy != "on-failure":
        return None
    was_steady = record.ready_at is not None and now - record.ready_at > STEADY_S
    attempt = 1 if was_steady else record.attempt + 1
    if attempt > restart.max_attempts:
        return None
    return attempt, min(restart.backoff_s * 2 ** (attempt - 1), LONGEST_BACKOFF_S)
