"""Switches of a simulated box: who would give way, and a played one's steps as a function of time.

The times are those measured on an H200 with vLLM 0.26 and a model of 7B; nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from backends.errors import ConflictError
from backends.simulated_servers import (
    DRAIN_S,
    SLEEP_FIRST_S,
    START_S,
    STOP_S,
    Life,
    Nap,
    host_bytes_at,
    state_at,
    weights_bytes,
)
from backends.snapshots import ServerState
from backends.switches import GivingWay, Level, Switch, SwitchChoice, SwitchStep, Way, Yield

SLEEP_S: dict[Level, float] = {1: 0.30, 2: 0.07}
WAKE: dict[Level, tuple[tuple[str, float], ...]] = {
    1: (("wake", 0.61),),
    2: (("wake", 0.11), ("weights", 1.76), ("kv-cache", 0.09), ("prefix-cache", 0.01)),
}
MEMORY_S = 0.01
FIRST_TOKEN_S = 0.02
BUSY_DRAIN_S = 0.4
"""How long requests in flight take to end."""

GONE = (ServerState.STOPPED, ServerState.FAILED)
HAS_ROOM = (ServerState.READY, ServerState.STARTING)
PIN = "its first sleep takes 9 s: it pins host memory"


@dataclass(frozen=True, slots=True)
class PlayedStep:
    """A step of a played switch: from when, and for how many seconds."""

    name: str
    server: str
    begins_at: float
    took_s: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class PlayedSwitch:
    """A switch whose every step is decided when it begins."""

    id: str
    to: str
    began_at: float
    steps: tuple[PlayedStep, ...]

    @property
    def ends_at(self) -> float:
        """When its last step is over."""
        return max(step.begins_at + step.took_s for step in self.steps)

    def switch_at(self, at: float) -> Switch:
        """Return the switch as a keeper would tell it at `at`."""
        steps = tuple(
            SwitchStep(
                one.name,
                one.server,
                one.begins_at,
                one.took_s if one.begins_at + one.took_s <= at else None,
                one.note,
            )
            for one in self.steps
            if one.begins_at <= at
        )
        if at < self.ends_at:
            return Switch(self.id, self.to, self.began_at, steps)
        return Switch(self.id, self.to, self.began_at, steps, "done", took_s=self.ends_at - self.began_at)


def asleep(life: Life, at: float, level: Level) -> Life:
    """Return a life that falls asleep from `at` on; raises ConflictError where it cannot."""
    state = state_at(life, at)[0]
    if not life.can_sleep:
        raise ConflictError(f"{life.name} cannot sleep", "its profile needs sleep = true")
    if state is not ServerState.READY:
        raise ConflictError(f"{life.name} is {state}: it does not fall asleep now", "gpubox status shows it")
    return replace(life, naps=(*life.naps, Nap(level, at, at + _sleep_s(life, at, level))))


def choice_of(target: Life, lives: Iterable[Life], at: float) -> SwitchChoice:
    """Return what a switch to `target` would do at `at`."""
    state = state_at(target, at)[0]
    if state is ServerState.READY:
        return SwitchChoice(target.name, Way.AWAKE, expected_s=0.0, size_bytes=weights_bytes(target))
    if state in (ServerState.DRAINING, ServerState.STOPPING):
        return SwitchChoice(target.name, Way.CANNOT, size_bytes=weights_bytes(target), note=f"it is {state}")
    room_makers = () if state in HAS_ROOM else lives
    giving = tuple(how for life in room_makers if (how := _gives_way(life, target, at, None)) is not None)
    by_name = {life.name: life for life in lives}
    giving_s = max((_giving_s(by_name[one.server], at, one.how) for one in giving), default=0.0)
    pins = any(one.how is Yield.SLEEP_1 and not host_bytes_at(by_name[one.server], at) for one in giving)
    way = _way(target, state)
    left_s = target.ready_at - at if state is ServerState.STARTING else START_S
    taking_s = left_s if way is Way.START else sum(took for _, took in WAKE[target.naps[-1].level])
    note = PIN if pins else f"it is {state} already" if state in (ServerState.STARTING, ServerState.WAKING) else ""
    return SwitchChoice(
        target.name, way, giving, giving_s + MEMORY_S + taking_s + FIRST_TOKEN_S, weights_bytes(target), note
    )


def play(
    target: Life, lives: Mapping[str, Life], at: float, level: Level | None, drain_s: float | None
) -> tuple[PlayedSwitch, tuple[Life, ...]]:
    """Return a switch to `target` that begins at `at`, and the lives that it changes, those that give way first.

    A target that is none of `lives` is to be started. Raises ConflictError where it is not to be had now.
    """
    state = state_at(target, at)[0] if lives.get(target.name) is target else ServerState.STOPPED
    if state not in (ServerState.SLEEPING, *HAS_ROOM, *GONE):
        raise ConflictError(f"{target.name} is {state}", "wait until it serves")
    steps, changed, room_at = [], [], at
    for life in lives.values() if state not in HAS_ROOM else ():
        giving = _gives_way(life, target, at, level)
        if giving is None:
            continue
        begins_at = at
        if giving.how is Yield.STOP:
            changed.append(replace(life, stop_asked_at=at))
            took_s = _giving_s(life, at, giving.how)
            steps.append(PlayedStep("stop", life.name, at, took_s, giving.why))
        else:
            if life.load:
                drains_s = BUSY_DRAIN_S if drain_s is None else min(BUSY_DRAIN_S, drain_s)
                steps.append(PlayedStep("drain", life.name, at, drains_s))
                begins_at += drains_s
            how: Level = 1 if giving.how is Yield.SLEEP_1 else 2
            took_s = _sleep_s(life, at, how)
            steps.append(PlayedStep("sleep", life.name, begins_at, took_s))
            changed.append(replace(life, naps=(*life.naps, Nap(how, at, begins_at + took_s))))
        room_at = max(room_at, begins_at + took_s)
    if changed:
        steps.append(PlayedStep("memory", target.name, room_at, MEMORY_S))
        room_at += MEMORY_S
    taken, taking = _taken(target, state, at, room_at)
    steps += taking
    ready_at = taking[-1].begins_at + taking[-1].took_s if taking else room_at
    steps.append(PlayedStep("first-token", target.name, ready_at, FIRST_TOKEN_S))
    return PlayedSwitch(f"{at:.6f}-{target.name}", target.name, at, tuple(steps)), (*changed, taken)


def _taken(target: Life, state: ServerState, at: float, room_at: float) -> tuple[Life, list[PlayedStep]]:
    match _way(target, state):
        case Way.AWAKE:
            return target, []
        case Way.START if state is ServerState.STARTING:
            return target, [PlayedStep("start", target.name, at, target.ready_at - at)]
        case Way.START:
            started = replace(
                target, launched_at=room_at, fails_with=None, stop_asked_at=None, stop_forced=False, naps=()
            )
            return started, [PlayedStep("start", target.name, room_at, START_S)]
    nap, steps, begins_at = target.naps[-1], [], room_at
    for name, took_s in WAKE[nap.level]:
        steps.append(PlayedStep(name, target.name, begins_at, took_s))
        begins_at += took_s
    woken = replace(nap, woken_at=room_at, awake_at=begins_at)
    return replace(target, naps=(*target.naps[:-1], woken)), steps


def _way(target: Life, state: ServerState) -> Way:
    if state in (ServerState.SLEEPING, ServerState.FALLING_ASLEEP):
        return Way.WAKE_1 if target.naps[-1].level == 1 else Way.WAKE_2
    return Way.AWAKE if state is ServerState.READY else Way.START


def _gives_way(life: Life, target: Life, at: float, level: Level | None) -> GivingWay | None:
    """Return how a server would make room; None where it need not."""
    state = state_at(life, at)[0]
    if life.name == target.name or state in GONE or not set(life.gpu_indices) & set(target.gpu_indices):
        return None
    if target.can_sleep and state is ServerState.SLEEPING:
        return None
    if life.can_sleep and target.can_sleep and state is ServerState.READY:
        return GivingWay(life.name, Yield.SLEEP_2 if level == 2 else Yield.SLEEP_1)
    if not life.can_sleep:
        return GivingWay(life.name, Yield.STOP, "it cannot sleep")
    why = f"it is {state}" if target.can_sleep else f"{target.name} takes the whole GPU"
    return GivingWay(life.name, Yield.STOP, why)


def _giving_s(life: Life, at: float, how: Yield) -> float:
    if how is Yield.STOP:
        return STOP_S + (DRAIN_S if state_at(life, at)[0] is ServerState.READY else 0.0)
    return _sleep_s(life, at, 1 if how is Yield.SLEEP_1 else 2) + (BUSY_DRAIN_S if life.load else 0.0)


def _sleep_s(life: Life, at: float, level: Level) -> float:
    return SLEEP_FIRST_S if level == 1 and not host_bytes_at(life, at) else SLEEP_S[level]
