"""What flows from the keeper to its clients: frozen readings of the box and of the servers.

A reading that failed is `Missing` with its reason, never an exception and never a zero. Units are in the names;
ratios (`utilization`, `kv_cache_usage`, `progress`, …) are 0–1; times called `*_at` and `since` are Unix seconds.
All of it turns to JSON and back with `dump` and `load`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Literal, TypeVar, cast

from backends.gpu_readings import EccErrors as EccErrors
from backends.gpu_readings import Gpu as Gpu
from backends.gpu_readings import GpuProcess as GpuProcess
from backends.gpu_readings import Grant as Grant
from backends.gpu_readings import Missing as Missing
from backends.gpu_readings import Owner as Owner
from backends.gpu_readings import Share as Share
from backends.gpu_readings import Xid as Xid
from backends.starts import Card, Exit, Stage, StartFigures, StartProgress
from backends.switches import Idle, Level, Sleep, Switch

T = TypeVar("T")

NOT_SCRAPED = Missing("not scraped yet")


@dataclass(frozen=True, slots=True)
class Host:
    """CPU and memory of the box."""

    hostname: str
    cpu_count: int
    cpu_utilization: float | Missing
    load_1m: float | Missing
    memory_total_bytes: int
    memory_available_bytes: int


@dataclass(frozen=True, slots=True)
class Box:
    """The box at one moment; where there is no GPU to read, `gpus` is empty and `no_gpus` says why."""

    at: float
    host: Host
    gpus: tuple[Gpu, ...]
    no_gpus: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    simulated: bool = False


class ServerState(StrEnum):
    """Where a server is in its life; `backends.keeper.states` lists the legal transitions."""

    STOPPED = "stopped"
    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    UNRESPONSIVE = "unresponsive"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"
    LOST = "lost"
    FALLING_ASLEEP = "falling-asleep"
    SLEEPING = "sleeping"
    WAKING = "waking"


class ModelKind(StrEnum):
    """What a model can be asked: chat, completions only, or embeddings only."""

    UNKNOWN = "unknown"
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class Foreign:
    """The process of a server that gpubox did not start: it can be watched and talked to, and is never signalled."""

    pid: int
    start_ticks: int
    user: str
    command: str


@dataclass(frozen=True, slots=True)
class Latency:
    """A latency over the last window, from histogram deltas; `None` where nothing was sampled.

    A percentile at or below `floor_s` (the first bucket's bound) is known only to be below it: show '<10 ms'.
    `mean_s` is exact. Where all samples lie in one bucket the percentiles are `rough`: show '≈6.3 s'.
    """

    count: int
    mean_s: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    floor_s: float
    rough: bool = False


@dataclass(frozen=True, slots=True)
class Metrics:
    """An engine's own figures at one moment; rates cover the last 5 s, latencies and the hit rate the last minute."""

    at: float
    kv_cache_usage: float | Missing
    running: int | Missing
    waiting: int | Missing
    prompt_tokens_per_s: float | Missing
    generation_tokens_per_s: float | Missing
    prompt_tokens_total: int | Missing
    generation_tokens_total: int | Missing
    prefix_cache_hit_rate: float | Missing
    preemptions_total: int | Missing
    requests_total: int | Missing
    ttft: Latency | Missing
    itl: Latency | Missing
    e2e: Latency | Missing
    kv_cache_tokens: int | Missing
    sleep_state: str | Missing


@dataclass(frozen=True, slots=True)
class Server:
    """One instance of a profile, as the keeper knows it; `gpus` holds UUIDs, empty on the CPU.

    `progress` is that of a start, `figures` what its log told, `card` why it failed. Where `foreign` is set, gpubox
    only found it running. `why` says why it got these GPUs, `warnings` what to be careful about on them;
    `profile_digest` is the SHA-256 of its profile's file as it was started, in hex. `can_sleep` says that it can give
    way asleep; `host_bytes` is what it has pinned of host memory for that, which it keeps until it ends.
    """

    name: str
    profile: str
    engine: str
    engine_version: str | None
    model: str
    served_name: str
    kind: ModelKind
    state: ServerState
    state_since: float
    gpus: tuple[str, ...]
    gpu_indices: tuple[int, ...]
    host: str
    port: int
    launched_at: float | None
    ready_at: float | None
    log_path: str | None
    stage: Stage | None = None
    pid: int | None = None
    max_model_len: int | None = None
    exit: Exit | None = None
    cause: str | None = None
    attempt: int = 0
    retry_at: float | None = None
    has_api_key: bool = False
    why: str = ""
    warnings: tuple[str, ...] = ()
    progress: StartProgress | None = None
    figures: StartFigures | None = None
    card: Card | None = None
    foreign: Foreign | None = None
    metrics: Metrics | Missing = NOT_SCRAPED
    profile_digest: str | None = None
    can_sleep: bool = False
    sleep: Sleep | None = None
    idle: Idle | None = None
    host_bytes: int = 0

    @property
    def address(self) -> str:
        """Where a client on this box reaches it, without the `/v1`: `http://127.0.0.1:8000`."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def is_live(self) -> bool:
        """Whether it has, or is about to have, a process."""
        return self.state not in (ServerState.STOPPED, ServerState.FAILED, ServerState.LOST)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened and is worth a line in the history: `server` is empty where it concerns the box."""

    at: float
    server: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class KeeperInfo:
    """Who keeps this state."""

    pid: int
    version: str
    started_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the keeper knows at one moment; `switches` are those that run."""

    keeper: KeeperInfo | None
    box: Box
    servers: tuple[Server, ...]
    switches: tuple[Switch, ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotUpdate:
    """The first update of an event stream."""

    snapshot: Snapshot
    type: Literal["snapshot"] = "snapshot"


@dataclass(frozen=True, slots=True)
class BoxUpdate:
    """A newer reading of the box."""

    box: Box
    type: Literal["box"] = "box"


@dataclass(frozen=True, slots=True)
class ServerUpdate:
    """A newer state of one server."""

    server: Server
    type: Literal["server"] = "server"


@dataclass(frozen=True, slots=True)
class ServerRemoved:
    """A server that the keeper has forgotten."""

    name: str
    type: Literal["removed"] = "removed"


@dataclass(frozen=True, slots=True)
class EventUpdate:
    """An event; never dropped, never coalesced."""

    event: Event
    type: Literal["event"] = "event"


@dataclass(frozen=True, slots=True)
class SwitchUpdate:
    """A newer state of a switch; that which says its outcome is the last of it."""

    switch: Switch
    type: Literal["switch"] = "switch"


Update = SnapshotUpdate | BoxUpdate | ServerUpdate | ServerRemoved | EventUpdate | SwitchUpdate


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Ask for a server: `profile` is the profile's content as its TOML says it, overrides already merged.

    `gpus` is `auto`, `cpu`, or a tuple of indices or UUID prefixes; None takes what the profile says. `environ` is the
    environment of whoever asks: the engine is started in it, and its CUDA_VISIBLE_DEVICES bounds what may be assigned.
    `port` 0 asks for any free one; None takes what the profile says. `profile_digest` is the SHA-256 of the text of the
    file that the profile was read from, in hex; None where there is no such file. `asleep` asks for a warm spare: it
    starts once its GPUs have room, and is put to sleep as soon as it is ready.
    """

    profile: dict[str, Any]
    environ: dict[str, str]
    name: str | None = None
    gpus: tuple[str, ...] | None = None
    port: int | None = None
    profile_digest: str | None = None
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class SwitchRequest:
    """Ask that the server `name` serve, and that those in its way sleep or stop.

    `start` says how to start it where it does not live; None starts it again as it was. `level` and `drain_s` are for
    those that give way: None takes the level for which there is room, and what their profiles say.
    """

    name: str
    start: StartRequest | None = None
    level: Level | None = None
    drain_s: float | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """What a client needs to talk to an engine; it crosses the keeper's private socket only."""

    base_url: str
    served_name: str
    kind: ModelKind
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Figures of one server or GPU on one time axis: `points[name][i]` was read at `at[i]`; None is a gap."""

    at: tuple[float, ...]
    points: dict[str, tuple[float | None, ...]]


@cache
def _adapter(kind: Hashable) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def dump(value: object, kind: object = None) -> bytes:
    """Turn a snapshot (or any dataclass here) into JSON; `kind` is needed where the type is a union."""
    encoded: bytes = _adapter(kind or type(value)).dump_json(value)
    return encoded


def load(kind: type[T], data: bytes | str) -> T:
    """Read a value of `kind` back from JSON; raises `pydantic.ValidationError` when it is not one."""
    value: T = _adapter(cast("Hashable", kind)).validate_json(data)
    return value
