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

from backends.starts import Card, Exit, Stage, StartFigures, StartProgress

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Missing:
    """A reading that could not be had, and why."""

    reason: str


class Owner(StrEnum):
    """Whose memory on a GPU is."""

    SERVER = "server"
    RUN = "run"
    FOREIGN = "foreign"
    ORPHAN = "orphan"
    UNATTRIBUTED = "unattributed"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory on a GPU; `server` names the server of ours that it belongs to, or was left by.

    `start_ticks` tells it from any other process of that pid; None where it cannot be seen from here. `note` says what
    is odd about it.
    """

    pid: int
    command: str
    user: str
    memory_bytes: int | Missing
    kind: Literal["compute", "graphics"] = "compute"
    server: str | None = None
    owner: Owner = Owner.FOREIGN
    start_ticks: int | None = None
    note: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether a live server or run of ours has it; an orphan is nobody's to count on."""
        return self.owner in (Owner.SERVER, Owner.RUN)


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a GPU's memory in use, and whose it is: `who` names the server, or the user and the program."""

    owner: Owner
    who: str
    memory_bytes: int | Missing
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """What the machine's ledger grants of a GPU to a server; `memory_bytes` None is all of it.

    `ours` tells the servers of this keeper from those of other users or homes.
    """

    server: str
    user: str
    memory_bytes: int | None = None
    ours: bool = True


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one moment; `refusal` says why it may not be assigned, `grants` to which servers it is assigned.

    `shares` are the parts of the memory in use, the largest first; they sum up to `memory_used_bytes`. `nvlink` and
    `same_node` are the UUIDs of the GPUs that it is linked to, and that hang on its NUMA node.
    """

    index: int
    uuid: str
    name: str
    memory_total_bytes: int | Missing
    memory_used_bytes: int | Missing
    memory_free_bytes: int | Missing
    utilization: float | Missing
    temperature_c: int | Missing
    power_w: float | Missing
    power_limit_w: float | Missing
    processes: tuple[GpuProcess, ...] | Missing
    mig: bool = False
    refusal: str | None = None
    grants: tuple[Grant, ...] = ()
    shares: tuple[Share, ...] = ()
    nvlink: tuple[str, ...] = ()
    same_node: tuple[str, ...] = ()

    @property
    def holder(self) -> str | None:
        """Which servers it is assigned to, those of other users with the user's name; None where it is free."""
        names = [grant.server if grant.ours else f"{grant.server} of {grant.user}" for grant in self.grants]
        return ", ".join(names) or None


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
    `mean_s` is exact.
    """

    count: int
    mean_s: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    floor_s: float


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
    only found it running. `why` says why it got these GPUs, `warnings` what to be careful about on them.
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
    metrics: Metrics | Missing = Missing("not scraped yet")

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
    """All that the keeper knows at one moment."""

    keeper: KeeperInfo | None
    box: Box
    servers: tuple[Server, ...]


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


Update = SnapshotUpdate | BoxUpdate | ServerUpdate | ServerRemoved | EventUpdate


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Ask for a server: `profile` is the profile's content as its TOML says it, overrides already merged.

    `gpus` is `auto`, `cpu`, or a tuple of indices or UUID prefixes; None takes what the profile says. `environ` is the
    environment of whoever asks: the engine is started in it, and its CUDA_VISIBLE_DEVICES bounds what may be assigned.
    `port` 0 asks for any free one; None takes what the profile says.
    """

    profile: dict[str, Any]
    environ: dict[str, str]
    name: str | None = None
    gpus: tuple[str, ...] | None = None
    port: int | None = None


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
