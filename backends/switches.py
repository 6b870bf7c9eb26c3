"""What is told of sleep and of switches: who sleeps, who gives way to whom, and how long each step of it took.

Times called `*_at` and `since` are Unix seconds, those called `*_s` durations in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from backends.gpu_readings import Missing

NOT_KNOWN = Missing("not known before its first start")

Level = Literal[1, 2]
"""How deep an engine sleeps: 1 keeps its weights in host memory, 2 reads them from disk again; neither keeps its KV."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """That a server sleeps; where what its engine says tells no level, `level` is what gpubox asked for."""

    level: Level
    since: float


@dataclass(frozen=True, slots=True)
class Idle:
    """A server that is put to sleep after `ttl_s` without work; `since` is when it last worked, None while it does."""

    ttl_s: float
    since: float | None


class Way(StrEnum):
    """How a server comes to serve: it does already, it wakes, it is started, or it cannot."""

    AWAKE = "awake"
    WAKE_1 = "wake-1"
    WAKE_2 = "wake-2"
    START = "start"
    CANNOT = "cannot"


class Yield(StrEnum):
    """How a server gives way."""

    SLEEP_1 = "sleep-1"
    SLEEP_2 = "sleep-2"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class GivingWay:
    """A server that gives way in a switch, and how; `why` says why it is not a lighter way."""

    server: str
    how: Yield
    why: str = ""


@dataclass(frozen=True, slots=True)
class SwitchChoice:
    """What a switch to one server would do now; `size_bytes` is that of its weights, over all GPUs.

    `expected_s` comes from earlier switches and starts alike (None: there were none). `note` says why it cannot be, or
    what to be careful about.
    """

    server: str
    way: Way
    giving_way: tuple[GivingWay, ...] = ()
    expected_s: float | None = None
    size_bytes: int | Missing = NOT_KNOWN
    note: str = ""


@dataclass(frozen=True, slots=True)
class SwitchStep:
    """One step of a switch; `took_s` is None while it lasts.

    `name` is one of drain, abort, sleep, stop, memory, wake, weights, kv-cache, prefix-cache, start, first-token; and
    restore, in a roll-back.
    """

    name: str
    server: str
    began_at: float
    took_s: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Switch:
    """A switch to the server `to`, running or over; `error` says what went wrong.

    `restored`: it failed, and who had given way serves again. `took_s` is from the request to the first token.
    """

    id: str
    to: str
    began_at: float
    steps: tuple[SwitchStep, ...] = ()
    outcome: Literal["running", "done", "restored", "failed"] = "running"
    error: str | None = None
    took_s: float | None = None
