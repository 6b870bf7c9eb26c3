"""Where a server may go: the memory of some GPUs, or of the host, and who else is there."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.snapshots import Gpu, Host, Missing


@dataclass(frozen=True, slots=True)
class Room:
    """What one server may have: on GPUs, the least that any of them has; `count` 0 is the host.

    `usable_bytes` is the memory as CUDA counts it, without the driver's part. `holders` says who has how much of the
    GPU with the least free, `refusal` why one of the GPUs cannot be had at all.
    """

    count: int
    name: str
    usable_bytes: int | Missing
    free_bytes: int | Missing
    indices: tuple[int, ...] = ()
    holders: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def where(self) -> str:
        """Name it: `GPU 4,5 (NVIDIA H200)`, `the CPU`, `2 GPUs`."""
        if not self.count:
            return "the CPU"
        if self.indices:
            return f"GPU {','.join(map(str, self.indices))} ({self.name})"
        return f"{self.count} GPU{'' if self.count == 1 else 's'}"


def usable_bytes(gpu: Gpu) -> int | Missing:
    """Return a GPU's memory less what the driver keeps for itself: the total of which vLLM takes its share."""
    if isinstance(gpu.memory_used_bytes, Missing) or isinstance(gpu.memory_free_bytes, Missing):
        return gpu.memory_total_bytes
    return gpu.memory_used_bytes + gpu.memory_free_bytes


def gpu_room(gpus: Sequence[Gpu], *, share: bool = False) -> Room:
    """Return what a server on all of these GPUs may have; `share` says whether it has them beside other servers."""
    refusals = [f"GPU {gpu.index} {why}" for gpu in gpus if (why := _refusal(gpu, share))]
    usable, free = [usable_bytes(gpu) for gpu in gpus], [_to_be_had(gpu) for gpu in gpus]
    tightest = min(gpus, key=lambda gpu: -1 if isinstance(free := _to_be_had(gpu), Missing) else free)
    return Room(
        count=len(gpus),
        name=", ".join(sorted({gpu.name for gpu in gpus})),
        usable_bytes=_least(usable),
        free_bytes=_least(free),
        indices=tuple(gpu.index for gpu in gpus),
        holders=_holders(tightest),
        refusal="; ".join(refusals),
    )


def host_room(host: Host, nodes: Path = Path("/sys/devices/system/node")) -> Room:
    """Return what a server on the CPU may have: of several memory nodes only that of the first CPU, as vLLM does."""
    total, available = _first_node(nodes)
    return Room(0, "CPU", int(min(total, host.memory_total_bytes)), int(min(available, host.memory_available_bytes)))


def unknown_room(count: int) -> Room:
    """Return a room of GPUs that this box does not have."""
    nothing = Missing("this box has no such GPUs")
    return Room(count, "", nothing, nothing)


def freest(gpus: Sequence[Gpu], count: int, *, share: bool = False) -> tuple[Gpu, ...]:
    """Return the `count` GPUs that a launch would most likely get, fewer where there are not so many.

    Last come those that are held, before them those that strangers use; of the others the most free memory counts.
    """

    def rank(gpu: Gpu) -> tuple[bool, bool, int, int]:
        free = -1 if isinstance(amount := _to_be_had(gpu), Missing) else amount
        strangers = not isinstance(gpu.processes, Missing) and any(
            process.kind == "compute" and not process.is_ours for process in gpu.processes
        )
        return (bool(_refusal(gpu, share)), strangers, -(free >> 30), gpu.index)

    ranked = sorted((gpu for gpu in gpus if not gpu.refusal), key=rank)
    best = ranked[:count]
    alike = [gpu for gpu in ranked if best and gpu.name == best[0].name][:count]
    if len(alike) == count and not any(_refusal(gpu, share) for gpu in alike):
        best = alike  # the slowest of a mixture sets the pace for all
    return tuple(sorted(best, key=lambda gpu: gpu.index))


def _first_node(nodes: Path) -> tuple[float, float]:
    """Return the total and the available bytes of the first CPU's memory node; infinite where there are no nodes."""
    first = min(os.sched_getaffinity(0))
    found = next((folder for folder in sorted(nodes.glob("node[0-9]*")) if (folder / f"cpu{first}").exists()), None)
    try:
        lines = (found / "meminfo").read_text().splitlines() if found else []
    except OSError:
        lines = []
    said = {words[2].rstrip(":"): int(words[3]) * 1024 for line in lines if len(words := line.split()) >= 4}
    free = [said[name] for name in ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable") if name in said]
    return said.get("MemTotal", math.inf), sum(free) if free else math.inf


def _refusal(gpu: Gpu, share: bool) -> str:
    """Say why a GPU cannot be had at all; one that is granted in part is for servers that share."""
    whole = [grant for grant in gpu.grants if grant.memory_bytes is None]
    return gpu.refusal or (f"is held by {gpu.holder}" if whole or (gpu.grants and not share) else "")


def _to_be_had(gpu: Gpu) -> int | Missing:
    """Return the memory that is free and not promised: a server that starts takes what it was granted by and by."""
    usable, free = usable_bytes(gpu), gpu.memory_free_bytes
    if isinstance(usable, Missing) or isinstance(free, Missing):
        return free
    return max(0, min(free, usable - sum(grant.memory_bytes or 0 for grant in gpu.grants)))


def _least(amounts: Sequence[int | Missing]) -> int | Missing:
    missing = next((amount for amount in amounts if isinstance(amount, Missing)), None)
    return missing or min(amount for amount in amounts if not isinstance(amount, Missing))


def _holders(gpu: Gpu) -> tuple[str, ...]:
    if gpu.shares:
        return tuple(
            f"{share.who} {share.memory_bytes / (1 << 30):.1f} GiB"
            for share in gpu.shares
            if not isinstance(share.memory_bytes, Missing)
        )
    if isinstance(gpu.processes, Missing):
        return ()
    return tuple(
        f"{process.server or f'{process.command} of {process.user}'} {process.memory_bytes / (1 << 30):.1f} GiB"
        for process in gpu.processes
        if not isinstance(process.memory_bytes, Missing)
    )
