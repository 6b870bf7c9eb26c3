"""Which GPUs a start gets: the profile's needs, laid before `backends.gpus.selection`, and what the ledger grants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.errors import GpuBusyError, NoSuchGpuError, UsageError
from backends.gpus.selection import Selection, select
from backends.keeper.rooms import LEFT_ASLEEP_BYTES
from backends.snapshots import Box, Gpu, Missing, StartRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.ledger import Ledger
    from backends.records import Records
    from profiles.schema import Profile

VLLM_SMALLEST_DEFAULT_UTILIZATION = 0.9
"""vLLM's default has been 0.9 and 0.92: the smaller one decides what is refused before it is tried."""


def choose_gpus(profile: Profile, request: StartRequest, box: Box, fixed_bytes: int | None = None) -> Selection:
    """Choose the GPUs of a start on a box whose readings say who holds what; `fixed_bytes` is what `fixed_need` told.

    Raises UsageError, NoSuchGpuError and GpuBusyError as `select` does.
    """
    wanted = request.gpus
    if wanted == ("cpu",) and profile.sleep:
        raise UsageError(f"profile {profile.name} sleeps: the CPU build has no sleep mode", "copy it and delete sleep")
    if wanted == ("cpu",) or (wanted is None and profile.gpus == "cpu"):
        return Selection((), "on the CPU")
    if profile.gpus == "cpu":
        raise UsageError(f"profile {profile.name} is for the CPU", "copy it and set gpus, or say --gpus cpu")
    if request.asleep and not profile.sleep:
        raise UsageError(f"profile {profile.name} cannot be started asleep", "set sleep = true in it")
    fraction = None if request.asleep else _needed_fraction(profile)
    try:
        return select(
            box.gpus,
            wanted or ("auto",),
            profile.gpus,
            # A warm spare needs no more to be let in: it starts once there is room for all that it needs.
            LEFT_ASLEEP_BYTES if request.asleep else fixed_bytes,
            needed_fraction=fraction,
            count_why=_count_why(profile),
            memory_why="kv_cache_memory_bytes" if fraction is None else f"gpu_memory_utilization {fraction}",
            share=profile.shares,
            visible=request.environ.get("CUDA_VISIBLE_DEVICES"),
            no_gpus=box.no_gpus,
        )
    except GpuBusyError as busy:
        raise GpuBusyError(busy.message, _or_switch(busy.hint, request.name or profile.name, box)) from None


def reserved(profile: Profile, gpus: tuple[Gpu, ...], fixed_bytes: int | None) -> dict[str, int | None]:
    """Return what a start takes of each GPU, in bytes by UUID; None is all of it: a profile that does not share.

    One that sleeps is granted so much while it is awake, and less once its memory is back.
    """
    if not profile.shares:
        return {gpu.uuid: None for gpu in gpus}
    fraction = _needed_fraction(profile)
    if fraction is None:
        return {gpu.uuid: fixed_bytes for gpu in gpus}
    return {gpu.uuid: int(_usable(gpu) * fraction) for gpu in gpus}


def indices_of(uuids: tuple[str, ...], box: Box) -> tuple[int, ...]:
    """Return the indices that GPUs have now; raises NoSuchGpuError where one is gone."""
    by_uuid = {gpu.uuid: gpu for gpu in box.gpus}
    for uuid in uuids:
        if uuid not in by_uuid:
            raise NoSuchGpuError(f"GPU {uuid} is not in this box any more")
        if by_uuid[uuid].refusal:
            raise NoSuchGpuError(f"GPU {by_uuid[uuid].index} cannot be assigned: {by_uuid[uuid].refusal}")
    return tuple(by_uuid[uuid].index for uuid in uuids)


def grant_again(ledger: Ledger, server: str, memory: Mapping[str, int | None]) -> tuple[str, ...]:
    """Renew a server's grants, which a keeper before this one let go when it died; blocks for a moment.

    Returns the ledger's files; raises GpuBusyError where somebody else was granted a GPU meanwhile, and KeeperError.
    """
    with ledger.changing():
        granted = ledger.grants()
        for uuid, memory_bytes in memory.items():
            others = [one for one in granted.get(uuid, ()) if not (one.ours and one.server == server)]
            if any(memory_bytes is None or other.memory_bytes is None for other in others):
                raise GpuBusyError(f"GPU {uuid} was given to {others[0].server} of {others[0].user} meanwhile")
        return ledger.grant(server, memory)


def _or_switch(hint: str, name: str, box: Box) -> str:
    """Say, where servers of ours hold GPUs, that they can give way."""
    if hint.startswith("gpubox stop "):
        return f"{hint}, or let it give way: gpubox switch {name}"
    if any(grant.ours for gpu in box.gpus for grant in gpu.grants):
        return f"gpubox switch {name} lets one of yours give way; or {hint}"
    return hint


def _usable(gpu: Gpu) -> int:
    used, free, total = gpu.memory_used_bytes, gpu.memory_free_bytes, gpu.memory_total_bytes
    if isinstance(used, Missing) or isinstance(free, Missing):
        return 0 if isinstance(total, Missing) else total
    return used + free


def _needed_fraction(profile: Profile) -> float | None:
    """Return the share of a GPU's memory that must be free, or vLLM ends at once; None where that is not known."""
    if profile.engine != "vllm" or "kv_cache_memory_bytes" in profile.args:
        return None
    asked = profile.args.get("gpu_memory_utilization", VLLM_SMALLEST_DEFAULT_UTILIZATION)
    return float(asked) if isinstance(asked, int | float) else None


def fixed_need(profile: Profile, environ: Mapping[str, str], box: Box, records: Records) -> int | None:
    """Return what a start with `kv_cache_memory_bytes` takes of each GPU, by its weights and what earlier starts told.

    None where the profile says a share instead, or where it is not known. Reads files: not on an event loop.
    """
    if profile.engine != "vllm" or "kv_cache_memory_bytes" not in profile.args or not box.gpus:
        return None
    from backends.fit.estimate import reservation_bytes

    learned = records.learned(profile, box.gpus[0].name)
    needed = reservation_bytes(profile, min(map(_usable, box.gpus)), learned, environ)
    return None if isinstance(needed, Missing) else needed


def _count_why(profile: Profile) -> str:
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    return ", ".join(f"{size} {profile.args[size]}" for size in sizes if size in profile.args)
