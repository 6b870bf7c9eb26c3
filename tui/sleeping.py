"""Sleep and switches in words: who sleeps and how deep, when a server will, how it gives way, what a switch is at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from backends.snapshots import Missing, Server, ServerState, Snapshot
from backends.switches import GivingWay, Idle, Sleep, Switch, SwitchChoice, SwitchStep, Way, Yield
from tui.format import coarse, duration, indices, memory
from tui.progress import took_text

if TYPE_CHECKING:
    from backends.records import Launch

WAYS: dict[Way, str] = {
    Way.AWAKE: "serves",
    Way.WAKE_1: "wakes from level 1",
    Way.WAKE_2: "wakes from level 2",
    Way.START: "starts",
    Way.CANNOT: "cannot",
}
YIELDS: dict[Yield, str] = {Yield.SLEEP_1: "sleeps, level 1", Yield.SLEEP_2: "sleeps, level 2", Yield.STOP: "stops"}
STEPS: dict[str, str] = {
    "abort": "aborting",
    "drain": "draining",
    "first-token": "first token",
    "kv-cache": "KV cache",
    "memory": "memory back",
    "prefix-cache": "prefix cache",
    "restore": "restoring",
}
"""The steps of a switch whose names are no words."""

PAST = {"sleep": "asleep", "stop": "stopped", "drain": "drained", "abort": "aborted", "wake": "awake"} | {
    "start": "started",
    "first-token": "first token",
    "restore": "restored",
}

Taking = tuple[Switch, SwitchStep | None] | None
"""The running switch that a server takes part in, and the step it is at."""


def asleep_text(sleep: Sleep | None, now: float, *, brief: bool = False) -> str:
    """Say how deep a server sleeps, and since when: 'asleep · level 1 · 3 min', briefly 'asleep · L1 · 3 min'."""
    if sleep is None:
        return "asleep"
    return f"asleep · {'L' if brief else 'level '}{sleep.level} · {coarse(now - sleep.since)}"


def idle_text(idle: Idle, now: float) -> str:
    """Say when a server will sleep: 'sleeps in 4:10 / 10:00'; while it works, after how long without work."""
    left = idle_left(idle, now)
    if left is None:
        return f"sleeps after {duration(idle.ttl_s)} without work"
    return f"sleeps in {left} / {duration(idle.ttl_s)}"


def idle_left(idle: Idle, now: float) -> str | None:
    """Return what is left of a server's idle time: '4:10'; None while it works."""
    return None if idle.since is None else duration(idle.ttl_s - (now - idle.since))


def giving_text(giving: Sequence[GivingWay], servers: Iterable[Server] = ()) -> str:
    """Say who gives way, how, and on which GPUs: 'a (GPU 0) sleeps, level 1 · b (GPU 0-1) stops'."""
    known = {server.name: server for server in servers}
    return " · ".join(f"{one.server}{_place(known.get(one.server))} {YIELDS[one.how]}" for one in giving)


def _place(server: Server | None) -> str:
    if server is None:
        return ""
    return f" (GPU {indices(server.gpu_indices)})" if server.gpu_indices else " (CPU)"


def expected_text(choice: SwitchChoice) -> str:
    """Say how long a switch would take: '~0.9 s', '~62 s'; 'now' where it serves, '' where nobody can tell."""
    if choice.way is Way.AWAKE:
        return "now"
    return "" if choice.expected_s is None or choice.way is Way.CANNOT else f"~{took_text(choice.expected_s)}"


def start_times(launches: Iterable[Launch]) -> dict[str, float]:
    """Return by profile how long its starts took that are on record: the median in seconds."""
    took: dict[str, list[float]] = {}
    for launch in launches:
        if launch.start_s is not None:
            took.setdefault(launch.profile, []).append(launch.start_s)
    return {profile: median(times) for profile, times in took.items()}


def size_text(choice: SwitchChoice) -> str:
    """Say how large the weights are; '' where that is not known."""
    return "" if isinstance(choice.size_bytes, Missing) else memory(choice.size_bytes)


def step_text(step: SwitchStep) -> str:
    """Return what a step of a switch is called."""
    return STEPS.get(step.name, step.name)


def step_took(seconds: float) -> str:
    """Show how long a step took: '0.30 s', '12.1 s', '1:05'."""
    return f"{seconds:.2f} s" if seconds < 10 else took_text(seconds)


def switched_line(switch: Switch) -> str:
    """Return the one line about a switch that is over: 'switched in 0.98 s: asleep 0.30, awake 0.61, …'."""
    if switch.outcome == "restored":
        return f"not switched, what served before serves again: {switch.error}"
    if switch.outcome != "done":
        return f"not switched: {switch.error}"
    took: dict[str, float] = {}
    for step in switch.steps:
        took[step.name] = max(took.get(step.name, 0.0), step.took_s or 0.0)
    parts = ", ".join(f"{PAST.get(name, STEPS.get(name, name))} {seconds:.2f}" for name, seconds in took.items())
    return f"switched in {switch.took_s or 0.0:.2f} s" + (f": {parts}" if parts else "")


def switch_of(snapshot: Snapshot, server: str) -> Taking:
    """Return the running switch that a server takes part in, and the step it is at; None where there is none."""
    for switch in snapshot.switches:
        steps = [step for step in switch.steps if step.server == server]
        if switch.to == server or steps:
            return switch, next((step for step in reversed(steps) if step.took_s is None), None)
    return None


def steps_text(switch: Switch, now: float) -> str:
    """List the steps of a switch with their times: 'sleep 0.30 s · wake 0.2 s …'."""
    told = [
        f"{step_text(one)} {step_took(now - one.began_at if one.took_s is None else one.took_s)}"
        + (" …" if one.took_s is None else "")
        for one in switch.steps
    ]
    return " · ".join(told)


def state_words(server: Server, now: float, *, brief: bool = False) -> str:
    """Say what is told of a state in words of its own: asleep since when, or a state's name without its dash."""
    if server.state is ServerState.SLEEPING:
        return asleep_text(server.sleep, now, brief=brief)
    return server.state.value.replace("-", " ")


def sleepers(servers: Iterable[Server]) -> tuple[Server, ...]:
    """Return the servers that have pinned host memory for their sleep, asleep or awake; who holds most first."""
    return tuple(sorted((one for one in servers if one.host_bytes and one.is_live), key=lambda one: -one.host_bytes))


def held_text(servers: Iterable[Server]) -> str:
    """Say how much of the host's memory servers hold for their sleep, and which; '' where none does."""
    holding = sleepers(servers)
    if not holding:
        return ""
    names = ", ".join(f"{one.name} {memory(one.host_bytes)}" for one in holding)
    return f"sleep holds {memory(sum(one.host_bytes for one in holding))} of the host's memory: {names}"


def slot_parts(gpu_uuid: str, servers: Iterable[Server]) -> tuple[tuple[Server, str], ...]:
    """Return who is on a GPU, who is awake first, and what to say of each; empty where nobody there can sleep."""
    there = [one for one in servers if one.is_live and gpu_uuid in one.gpus]
    if not any(one.can_sleep for one in there):
        return ()
    there.sort(key=lambda one: (one.state is ServerState.SLEEPING, one.name))
    return tuple((one, _slot_words(one)) for one in there)


def _slot_words(server: Server) -> str:
    if server.state is ServerState.SLEEPING:
        return f"asleep{f', level {server.sleep.level}' if server.sleep else ''}"
    return "awake" if server.state is ServerState.READY else server.state.value.replace("-", " ")
