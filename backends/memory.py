"""A server's memory on each of its GPUs, as weights, KV cache, activation, CUDA graphs and other.

The parts come from the engine's log (`StartFigures`), what it holds from NVML (`Gpu.shares`). What is not told is
Missing with its reason; what NVML shows beyond the parts that are known is `other`, which is never negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from backends.snapshots import Box, Gpu, Missing, Owner, Server, ServerState
from backends.starts import StartFigures

ASLEEP = frozenset({ServerState.SLEEPING, ServerState.FALLING_ASLEEP, ServerState.WAKING})


class Kind(StrEnum):
    """What memory is used for; the values are what screens show, and their order is that of a bar."""

    WEIGHTS = "weights"
    KV_CACHE = "KV cache"
    GRAPHS = "graphs"
    ACTIVATION = "activation"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Part:
    """One use of a server's memory on one GPU, in bytes."""

    kind: Kind
    memory_bytes: int | Missing


@dataclass(frozen=True, slots=True)
class Division:
    """A server's memory on one GPU, or on the host where `gpu` is None; all in bytes.

    `held_bytes` is what NVML shows that the server holds, `others_bytes` what everybody else does. `excess_bytes` is by
    how much the log's figures exceed what is held: reserved, and not taken yet.
    """

    gpu: int | None
    total_bytes: int | Missing
    held_bytes: int | Missing
    others_bytes: int | Missing
    parts: tuple[Part, ...]
    excess_bytes: int = 0


def divisions(server: Server, box: Box) -> tuple[Division, ...]:
    """Divide the memory of `server`, one entry a GPU of its that the box shows, one for the host where it has none.

    Empty where the server has no process.
    """
    if not server.is_live:
        return ()
    if not server.gpus:
        held = Missing("the memory of its processes is not told")
        return (_divided(server, None, box.host.memory_total_bytes, held, held),)
    return tuple(_of_gpu(server, gpu) for gpu in box.gpus if gpu.uuid in server.gpus)


def _of_gpu(server: Server, gpu: Gpu) -> Division:
    held = _held(server, gpu)
    used = gpu.memory_used_bytes
    if isinstance(held, Missing):
        others: int | Missing = held
    else:
        others = used if isinstance(used, Missing) else max(0, used - held)
    return _divided(server, gpu.index, gpu.memory_total_bytes, held, others)


def _held(server: Server, gpu: Gpu) -> int | Missing:
    """Return what the GPU's shares say is the server's."""
    if server.foreign is not None:
        mine = [share for share in gpu.shares if server.foreign.pid in share.pids]
    else:
        mine = [share for share in gpu.shares if share.owner is Owner.SERVER and share.who == server.name]
    if not mine:
        return Missing("no process of it is seen on the GPU")
    sizes = [share.memory_bytes for share in mine]
    unknown = next((size for size in sizes if isinstance(size, Missing)), None)
    return unknown or sum(size for size in sizes if not isinstance(size, Missing))


def _divided(
    server: Server, gpu: int | None, total: int | Missing, held: int | Missing, others: int | Missing
) -> Division:
    sizes = _told(server)
    known = {kind: size for kind, size in sizes.items() if not isinstance(size, Missing)}
    excess = 0
    if isinstance(held, Missing):
        other: int | Missing = held
    else:
        fixed = sum(size for kind, size in known.items() if kind is not Kind.ACTIVATION)
        if Kind.ACTIVATION in known:
            # The log tells the peak of a step; outside of it an engine holds less.
            sizes[Kind.ACTIVATION] = known[Kind.ACTIVATION] = min(known[Kind.ACTIVATION], max(0, held - fixed))
        rest = held - sum(known.values())
        other, excess = max(0, rest), max(0, -rest)
    parts = (*(Part(kind, size) for kind, size in sizes.items()), Part(Kind.OTHER, other))
    return Division(gpu, total, held, others, parts, excess)


def _told(server: Server) -> dict[Kind, int | Missing]:
    """Return what the log told of each use but `other`."""
    if server.state in ASLEEP:
        asleep = Missing("the server is asleep: its weights are in host memory or dropped, its KV cache is dropped")
        return dict.fromkeys((Kind.WEIGHTS, Kind.KV_CACHE, Kind.GRAPHS, Kind.ACTIVATION), asleep)
    figures = server.figures or StartFigures()
    told = {
        Kind.WEIGHTS: figures.weights_bytes,
        Kind.KV_CACHE: figures.kv_available_bytes,
        Kind.GRAPHS: figures.graphs_bytes,
        Kind.ACTIVATION: figures.activation_bytes,
    }
    why = "has not told it yet" if server.state in (ServerState.STARTING, ServerState.QUEUED) else "does not tell it"
    # Measured as a difference, a small figure can come out below zero.
    return {kind: Missing(f"the engine's log {why}") if size is None else max(0, size) for kind, size in told.items()}
