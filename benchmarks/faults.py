"""Tries faults on real keepers, shims and (stand-in) engines, and prints how many were survived and how fast.

`python -m benchmarks.faults [--tries 20] [--only NAME …] [--json FILE] [--list]`. A try is survived when the state that
a client is told is true within 10 s, nothing of the hurt server lives or is left in /dev/shm, its log is whole to the
last line, and a bystander has lost nothing. Whatever is still there afterwards is ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from backends.errors import GpuboxError
from benchmarks import fault_kills as kills
from benchmarks import fault_noise as noise
from benchmarks import fault_state as state
from benchmarks.stage import Stage
from tests.keeper.chaos import Chaos, build_stub
from tests.keeper.chaos import run as run_chaos
from tests.keeper.conftest import box_in

Try = Callable[[Stage], float]
"""Strikes once; returns the seconds until the state was true, raises AssertionError or GpuboxError where it is not."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault; where it hurts the keeper, tries go one after another, else some at once."""

    name: str
    what: str
    strike: Try
    alone: bool = False
    tries: int | None = None


CHAOS_SEED = 1
CHAOS_OPERATIONS = 1000


def chaos(_: Stage) -> float:
    """Let two users' keepers do and suffer random things on one box of four GPUs; no GPU may ever have two owners."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        library = build_stub(Path(folder))
        run_chaos(Chaos(Path(folder), library, homes=2, gpus=4, seed=CHAOS_SEED), CHAOS_OPERATIONS)
    return time.monotonic() - begun


FAULTS = (
    Fault("screen-killed", "SIGKILL of a screen", kills.screen_killed),
    Fault("keeper-killed", "SIGKILL of the keeper of a ready server", kills.keeper_killed, alone=True),
    Fault("keeper-start", "… at any moment of a start", kills.keeper_killed_during_a_start, alone=True),
    Fault("keeper-stop", "… at any moment of a stop", kills.keeper_killed_during_a_stop, alone=True),
    Fault("keeper-restart", "… at any moment of a restart", kills.keeper_killed_during_a_restart, alone=True),
    Fault("keeper-backoff", "… while it waits for an attempt", kills.keeper_killed_during_the_back_off, alone=True),
    Fault("shim-killed", "SIGKILL of the shim", kills.part_killed("shim")),
    Fault("guard-killed", "SIGKILL of the guard", kills.part_killed("guard")),
    Fault("server-killed", "SIGKILL of the API server", kills.part_killed("engine")),
    Fault("core-killed", "SIGKILL of the engine core", kills.part_killed("core")),
    Fault("worker-killed", "SIGKILL of a worker", kills.part_killed("worker")),
    Fault("both-killed", "SIGKILL of shim and guard at once", kills.shim_and_guard_killed),
    Fault("term-ignored", "a server that ignores SIGTERM, stopped", kills.sigterm_ignored, tries=4),
    Fault("term-ignored-force", "… stopped by force", kills.sigterm_ignored_and_forced),
    Fault("restarts", "an engine that always dies, restarted on failure", kills.restarts_on_failure),
    Fault("several", "three clients start, stop, restart one server at once", kills.several_at_once),
    Fault("reboot", "state of another boot", state.rebooted, alone=True),
    Fault("pids-reused", "a dead server's pids are others' now", state.pids_reused, alone=True),
    Fault("record-damaged", "half a record of an ended server", state.record_damaged, alone=True),
    Fault("record-live", "half a record of a running server", state.record_damaged_while_it_runs, alone=True),
    Fault("facts-live", "half a process.json of a running server", state.facts_damaged_while_it_runs, alone=True),
    Fault("profiles", "a profile folder that cannot be read", state.profiles_unreadable, alone=True),
    Fault("disk-log", "disk full while logging", state.disk_full_for_the_log),
    Fault("disk-state", "disk full for state files", state.disk_full_for_state, alone=True),
    Fault("clock", "a clock that jumps a day ahead, then two back", state.clock_jumps, alone=True, tries=10),
    Fault("clock-start", "… a day ahead during a start", state.clock_jumps_during_a_start, alone=True, tries=5),
    Fault(
        "flood",
        f"{noise.FLOOD_LINES:,} lines as fast as they come",
        noise.engine_says([f"lines:{noise.FLOOD_LINES}", "exit:0"], noise.all_of_the_flood),
        alone=True,
    ),
    Fault("long-line", "a line of 1 MB", noise.engine_says([f"long:{1 << 20}", "exit:0"], noise.a_megabyte_in_pieces)),
    Fault(
        "no-text",
        "invalid UTF-8, escapes, no line feed at the end",
        noise.engine_says([noise.NOISE, "exit:0"], noise.clean_text),
    ),
    Fault("metrics-garbled", "metrics page garbled", noise.metrics("garbled"), alone=True, tries=5),
    Fault("metrics-truncated", "metrics page truncated", noise.metrics("truncated"), alone=True),
    Fault("metrics-slow", "metrics page that trickles in", noise.metrics("slow"), alone=True, tries=5),
    Fault("metrics-silent", "metrics page that never comes", noise.metrics("silent"), alone=True, tries=5),
    Fault("metrics-huge", "metrics page of 50 MB", noise.metrics("huge"), alone=True, tries=10),
    Fault("chaos", f"{CHAOS_OPERATIONS:,} random operations by two users' keepers", chaos, alone=True, tries=1),
)


@dataclass(slots=True)
class Outcome:
    """What became of a fault's tries: seconds to the true state of those survived, and why others were not."""

    fault: str
    what: str
    tried: int = 0
    took_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def row(self) -> str:
        """Return the outcome as a line of the table."""
        times = (
            f"{statistics.median(self.took_s):6.2f} {max(self.took_s):6.2f}" if self.took_s else f"{'–':>6} {'–':>6}"
        )
        return f"{self.what:<56} {len(self.took_s):>4}/{self.tried:<4} {times}"


HEAD = f"{'fault':<56} {'survived':>9} {'median s':>6} {'max s':>4}"


def outcome_of(fault: Fault, stage: Stage, tries: int, together: int) -> Outcome:
    """Try a fault so many times."""
    outcome = Outcome(fault.name, fault.what)
    writing = threading.Lock()

    def one() -> None:
        failure, took_s = "", 0.0
        try:
            took_s = fault.strike(stage)
            stage.expect_bystander_untouched()
        except (AssertionError, GpuboxError, OSError) as problem:
            failure = str(problem).partition("\n")[0][:300] or type(problem).__name__
        with writing:
            outcome.tried += 1
            if failure:
                outcome.failures.append(failure)
            else:
                outcome.took_s.append(took_s)

    with ThreadPoolExecutor(1 if fault.alone else together) as pool:
        for done in [pool.submit(one) for _ in range(min(tries, fault.tries or tries))]:
            done.result()
    return outcome


@contextlib.contextmanager
def stage_in_a_home_of_its_own() -> Iterator[Stage]:
    """Make a stage in a folder that is gone afterwards, as everything that was started in it."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, box_in(Path(folder), Stage) as stage:
        assert isinstance(stage, Stage)
        stage.standing()
        yield stage


def main() -> int:
    """Run the faults; returns 1 where one was not survived each time."""
    parser = argparse.ArgumentParser(prog="benchmarks.faults", description=__doc__)
    parser.add_argument("--tries", type=int, default=20, help="tries of each fault that is quick")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these faults")
    parser.add_argument("--together", type=int, default=4, help="tries at once, where they do not disturb each other")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there, too")
    parser.add_argument("--list", action="store_true", help="only name the faults")
    given = parser.parse_args()
    known = {fault.name: fault for fault in FAULTS}
    if given.list:
        print("\n".join(f"{name:<20} {fault.what}" for name, fault in known.items()))
        return 0
    if unknown := [name for name in given.only or () if name not in known]:
        parser.error(f"there is no fault {unknown[0]}; --list names them")
    outcomes = []
    print(HEAD, flush=True)
    begun = time.monotonic()
    for fault in [known[name] for name in given.only or known]:
        # Each in a home of its own: what one leaves behind must not look like the next one's doing.
        with stage_in_a_home_of_its_own() as stage:
            outcome = outcome_of(fault, stage, given.tries, given.together)
        outcomes.append(outcome)
        print(outcome.row(), flush=True)
        for failure in dict.fromkeys(outcome.failures):
            print(f"    ✗ {failure}", flush=True)
    print(f"{sum(o.tried for o in outcomes)} tries in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if given.json:
        given.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    return int(any(outcome.failures for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
