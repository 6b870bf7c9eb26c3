"""What a simulated box has to tell of the past: events, and launches of its servers and a few before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from zlib import crc32

from backends.records import CPU, Launch
from backends.simulated_servers import FAIL_S, START, START_S, Life, figures_at, server_at
from backends.snapshots import Event, ServerState
from backends.starts import StageTime, gpu_words, took_words

DAY_S = 86_400.0
OUTCOMES = {
    ServerState.STARTING: "starting",
    ServerState.STOPPED: "stopped",
    ServerState.FAILED: "failed",
    ServerState.DRAINING: "ready",
    ServerState.STOPPING: "ready",
}


def earlier_lives(life: Life) -> Iterator[Life]:
    """Yield launches of a server before the one that is told of; each was stopped as asked."""
    for number in (1, 2):
        launched_at = life.launched_at - number * (0.7 * DAY_S + crc32(life.name.encode()) % 20_000)
        ran_s = 1_800.0 + crc32(f"{life.name}{number}".encode()) % 30_000
        yield replace(
            life,
            launched_at=launched_at,
            log_path=f"{life.log_path}.{number}",
            stop_asked_at=launched_at + START_S + ran_s,
            fails_with=None,
            card=None,
            naps=(),
        )


def launches_of(lives: Iterable[Life], gpu_names: Mapping[str, str], at: float, limit: int) -> tuple[Launch, ...]:
    """Return what would be on record of `lives` at `at`, newest first; `gpu_names` are by UUID."""
    launches = [_launch(life, gpu_names, at) for life in lives if life.launched_at <= at]
    return tuple(sorted(launches, key=lambda launch: launch.launched_at, reverse=True)[:limit])


def _launch(life: Life, gpu_names: Mapping[str, str], at: float) -> Launch:
    server = server_at(life, at)
    started_s = FAIL_S if life.fails_with else START_S
    stages, over_s = [], 0.0
    for name, took_s, _ in START:
        over_s += took_s
        if over_s <= min(started_s, at - life.launched_at):
            stages.append(StageTime(name, took_s))
    return Launch(
        id=f"{life.name}/{life.launched_at:.0f}",
        server=life.name,
        profile=life.profile,
        fingerprint=f"{crc32(life.model.encode()):016x}",
        engine=life.engine,
        engine_version=server.engine_version,
        gpu_kind=", ".join(sorted({gpu_names[uuid] for uuid in life.gpus})) or CPU,
        gpu_count=len(life.gpus),
        launched_at=life.launched_at,
        ready_at=server.ready_at,
        ended_at=server.exit.at if server.exit else None,
        outcome=OUTCOMES.get(server.state, "ready"),
        cause=server.cause,
        card=server.card.cause if server.card else None,
        compile_cached=True,
        stages=tuple(stages),
        figures=figures_at(life, min(at, life.ready_at)),
        log_path=life.log_path,
    )


TOLD = frozenset(
    {ServerState.STARTING, ServerState.READY, ServerState.FAILED, ServerState.STOPPED, ServerState.SLEEPING}
)


def told(life: Life, state: ServerState, at: float) -> tuple[str, str]:
    """Return the kind and the words of the event that a server's change to `state` at `at` is; one of `TOLD`."""
    where = gpu_words(life.gpu_indices if life.gpus else ())
    if state is ServerState.READY and any(nap.awake_at <= at for nap in life.naps):
        return "awake", "awake: it serves again"
    return {
        ServerState.STARTING: ("started", "started on " + where),
        ServerState.READY: ("ready", f"ready in {took_words(START_S)}"),
        ServerState.FAILED: ("failed", f"failed: {life.fails_with}"),
        ServerState.STOPPED: ("stopped", "stopped; its memory is back" if life.gpus else "stopped"),
        ServerState.SLEEPING: ("asleep", f"asleep at level {life.naps[-1].level if life.naps else 1}"),
    }[state]


def events_of(lives: Iterable[Life], now: float) -> list[Event]:
    """Return what a keeper would have told of these lives until now."""
    events = []
    for life in lives:
        end = (ServerState.FAILED, life.ended_at or now) if life.fails_with else (ServerState.READY, life.ready_at)
        naps = [(ServerState.SLEEPING, nap.asleep_at) for nap in life.naps if nap.awake_at > now]
        for state, at in ((ServerState.STARTING, life.launched_at), end, *naps):
            if at <= now:
                events.append(Event(at, life.name, *told(life, state, at)))
    return events
