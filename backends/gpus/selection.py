"""Which GPUs a start gets: those that were named, if they may be had, or the best that are free.

Pure functions of a reading in which the keeper has filled in `holder` and each process's `server`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from backends.errors import GpuBusyError, NoSuchGpuError, UsageError
from backends.gpus.visibility import bound_by_environment
from backends.snapshots import Gpu, GpuProcess, Grant, Missing, Owner

GIB = 2**30
MOST_GPUS = 16
"""Groups are compared one by one up to so many GPUs: 12,870 of eight."""

UNSEEN_LIMIT_BYTES = 2 * GIB
"""More memory than this in use beyond what the listed processes hold is a process that cannot be seen from here."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The GPUs chosen, in the order in which the engine sees them; why these, and what to be careful about."""

    gpus: tuple[Gpu, ...]
    why: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Need:
    count: int
    count_why: str
    memory_bytes: int | None
    memory_fraction: float | None
    memory_why: str
    share: bool


def select(
    gpus: Sequence[Gpu],
    wanted: Sequence[str],
    count: int,
    needed_bytes: int | None = None,
    *,
    needed_fraction: float | None = None,
    count_why: str = "",
    memory_why: str = "",
    share: bool = False,
    visible: str | None = None,
    no_gpus: str | None = None,
) -> Selection:
    """Choose `count` GPUs for a start.

    `wanted` is `("auto",)`, or indices and UUID prefixes. Each GPU must have `needed_fraction` (0–1) of its usable
    memory free, as vLLM means gpu_memory_utilization, or else `needed_bytes`; None where neither is known. `count_why`
    and `memory_why` name the settings that ask for it (`tensor_parallel_size 2`). `visible` is the asker's
    CUDA_VISIBLE_DEVICES; `no_gpus` says why `gpus` is empty. With `share`, a GPU may be one that other servers have,
    if those share it, too, and all that was granted has room.

    Raises UsageError (`wanted` makes no sense), NoSuchGpuError (not here, or may not be assigned) and GpuBusyError
    (held by a server of ours, or no room beside others).
    """
    if not gpus:
        why = no_gpus or "none was found"
        raise NoSuchGpuError(
            f"this box has no GPU to assign: {why}", 'serve on the CPU: --gpus cpu, or gpus = "cpu" in the profile'
        )
    need = _Need(count, count_why, needed_bytes, needed_fraction, memory_why, share)
    bounded = bound_by_environment(gpus, visible)
    if tuple(wanted) == ("auto",):
        return _choose(bounded, need)
    return _take(bounded, wanted, need)


def find(gpus: Sequence[Gpu], name: str) -> Gpu:
    """Return the GPU that an index or the beginning of a UUID (with or without `GPU-`) names.

    Raises NoSuchGpuError, and UsageError where it is no name of a GPU or fits several.
    """
    text = name.strip()
    if text.isdecimal():
        # A vanished GPU may stand behind one that has its index now: the first is the driver's own.
        by_index = next((gpu for gpu in gpus if gpu.index == int(text)), None)
        if by_index is None:
            raise NoSuchGpuError(f"there is no GPU {text}: this box has {_range(gpus)}")
        return by_index
    if text.upper().startswith("MIG-"):
        raise NoSuchGpuError(f"{text} is a MIG device: gpubox assigns whole GPUs")
    prefix = text.lower().removeprefix("gpu-")
    if not re.fullmatch("[0-9a-f][0-9a-f-]*", prefix):
        raise UsageError(f"{name!r} names no GPU", "say auto, cpu, indices (0,1) or beginnings of UUIDs (GPU-4a1f)")
    fitting = [gpu for gpu in gpus if gpu.uuid.lower().removeprefix("gpu-").startswith(prefix)]
    if not fitting:
        raise NoSuchGpuError(f"no UUID begins with {text}: this box has {_range(gpus)}", "gpubox status lists them")
    if len(fitting) > 1:
        named = ", ".join(f"GPU {gpu.index} ({gpu.uuid})" for gpu in fitting)
        raise UsageError(f"{text} is the beginning of {len(fitting)} UUIDs: {named}", "say more of it, or the index")
    return fitting[0]


def _take(gpus: Sequence[Gpu], wanted: Sequence[str], need: _Need) -> Selection:
    if "auto" in wanted or "cpu" in wanted:
        raise UsageError(f"{','.join(wanted)} mixes auto or cpu with GPUs", "say auto, cpu, or the GPUs themselves")
    named = [find(gpus, name) for name in wanted]
    for place, gpu in enumerate(named):
        if gpu in named[:place]:
            raise UsageError(f"GPU {gpu.index} is named twice in {','.join(wanted)}")
    if len(named) != need.count:
        were = f"{len(named)} {'was' if len(named) == 1 else 'were'} named"
        raise UsageError(f"the profile needs {_count(need)}, {were}", f"name {need.count} of them, or say auto")
    warnings: list[str] = []
    for gpu in named:
        if gpu.refusal:
            raise NoSuchGpuError(f"GPU {gpu.index} cannot be assigned: {gpu.refusal}")
        if taken := _taken(gpu, need):
            raise GpuBusyError(f"GPU {gpu.index} {taken}", _way_out(gpu))
        lack = _lack(gpu, need)
        if lack:
            raise GpuBusyError(f"GPU {gpu.index} has {lack}{_held_by(gpu)}", "choose another GPU, or let it take less")
        warnings += _cautions(gpu)
    return Selection(tuple(named), "named by you", (*warnings, *_mixture(named)))


def _choose(gpus: Sequence[Gpu], need: _Need) -> Selection:
    if need.count > len(gpus):
        raise NoSuchGpuError(f"the profile needs {_count(need)}, this box has {len(gpus)}")
    obstacles = {gpu.uuid: _obstacle(gpu, need) for gpu in gpus}
    free = [gpu for gpu in gpus if obstacles[gpu.uuid] is None]
    # A few MiB more are no reason to prefer one.
    free.sort(key=lambda gpu: (bool(gpu.grants), -(_free_bytes(gpu) // GIB), gpu.index))
    if len(free) < need.count:
        reasons = "; ".join(f"GPU {gpu.index} {why}" for gpu in gpus if (why := obstacles[gpu.uuid]))
        only_refused = all(gpu.refusal for gpu in gpus if obstacles[gpu.uuid])
        problem = f"the profile needs {_count(need)}, {len(free) or 'none'} of {len(gpus)} can be had: {reasons}"
        if only_refused:
            raise NoSuchGpuError(problem)
        raise GpuBusyError(problem, "stop a server, or name a GPU to share it with what is there")
    chosen = sorted(_nearest(_largest_alike(free, need.count) or free, need.count), key=lambda gpu: gpu.index)
    warnings = [caution for gpu in chosen for caution in _cautions(gpu)]
    return Selection(tuple(chosen), _why(chosen, free, len(free) < len(gpus)), (*warnings, *_mixture(chosen)))


def _largest_alike(free: Sequence[Gpu], count: int) -> list[Gpu] | None:
    """Return the GPUs of one kind that have the most room, since the slowest of a mixture sets the pace for all."""
    kinds: defaultdict[str, list[Gpu]] = defaultdict(list)
    for gpu in free:
        kinds[gpu.name].append(gpu)
    enough = [kind for kind in kinds.values() if len(kind) >= count]
    return max(enough, key=lambda kind: sum(map(_free_bytes, kind[:count])), default=None)


def _nearest(gpus: Sequence[Gpu], count: int) -> Sequence[Gpu]:
    """Return the GPUs that are nearest to each other, linked before on one NUMA node; `gpus` are the best first."""
    if count == 1 or len(gpus) > MOST_GPUS:
        return gpus[:count]

    def nearness(group: Sequence[Gpu]) -> tuple[int, int, int]:
        untouched = sum(not gpu.grants for gpu in group)
        return untouched, _pairs(group, "nvlink"), _pairs(group, "same_node")

    return max(combinations(gpus, count), key=nearness)  # the first of the best: that with most room


def _pairs(group: Sequence[Gpu], relation: str) -> int:
    return sum(other.uuid in getattr(one, relation) for one, other in combinations(group, 2))


def _nearness(group: Sequence[Gpu]) -> str:
    """Say how a group of GPUs hangs together; empty where that is not known."""
    pairs = len(group) * (len(group) - 1) // 2
    if not pairs or not any(gpu.nvlink or gpu.same_node for gpu in group):
        return ""
    if _pairs(group, "nvlink") == pairs:
        return ", NVLink between them"
    return ", on one NUMA node" if _pairs(group, "same_node") == pairs else ", without NVLink between all of them"


def _why(chosen: Sequence[Gpu], free: Sequence[Gpu], busy: bool) -> str:
    room = ", ".join(f"GPU {gpu.index} {_gib(gpu.memory_free_bytes)} GiB free" for gpu in chosen)
    others = [f"GPU {gpu.index} {_gib(gpu.memory_free_bytes)}" for gpu in free if gpu not in chosen]
    near = _nearness(chosen)
    if others:
        most = min(map(_free_bytes, chosen)) >= max(_free_bytes(gpu) for gpu in free if gpu not in chosen) - GIB
        reason = "the most free memory" if most else "enough free memory"
        return f"{room}: {reason}{near} (the others: {', '.join(others)})"
    return f"{room}: {'all others are taken' if busy else 'all of this box'}{near}"


def _obstacle(gpu: Gpu, need: _Need) -> str | None:
    """Say why `auto` passes over a GPU: it never shares one with what is no server."""
    if gpu.refusal:
        return f"cannot be assigned ({gpu.refusal})"
    if taken := _taken(gpu, need):
        return taken
    strangers = _strangers(gpu)
    if strangers:
        return f"is in use by {people(strangers)}"
    unseen = _unseen_bytes(gpu)
    if unseen > UNSEEN_LIMIT_BYTES:
        return f"has {_gib(unseen)} GiB in use by a process that cannot be seen from here"
    lack = _lack(gpu, need)
    return f"has {lack}" if lack else None


def _taken(gpu: Gpu, need: _Need) -> str:
    """Say which grants keep a start off a GPU; empty where none does."""
    if not gpu.grants:
        return ""
    held = f"is held by server {gpu.holder}"
    if not need.share:
        return held
    if alone := [grant.server for grant in gpu.grants if grant.memory_bytes is None]:
        return f"{held}; {alone[0]} does not share it"
    usable, wanted = _usable_bytes(gpu), _needed_bytes(gpu, need)
    granted = sum(grant.memory_bytes or 0 for grant in gpu.grants)
    if wanted is None or isinstance(usable, Missing):
        return f"{held}, and how much more a server would take is not known"
    if granted + wanted > usable:
        left = f"{_gib(usable - granted)} of {_gib(usable)} GiB are not granted yet"
        return f"{held}: {left}, the profile wants {_gib(wanted)}"
    return ""


def _way_out(gpu: Gpu) -> str:
    ours = [grant.server for grant in gpu.grants if grant.ours]
    return f"gpubox stop {ours[0]}" if ours else "choose another GPU, or ask its user"


def _promised_bytes(gpu: Gpu) -> int:
    """Return how much of what was granted has not been taken yet: its servers may still be starting."""
    return sum(max(0, (grant.memory_bytes or 0) - _held_by_grant(gpu, grant)) for grant in gpu.grants)


def _held_by_grant(gpu: Gpu, grant: Grant) -> int:
    processes = () if isinstance(gpu.processes, Missing) else gpu.processes
    held = [p.memory_bytes for p in processes if _is_of(p, grant)]
    return sum(amount for amount in held if not isinstance(amount, Missing))


def _is_of(process: GpuProcess, grant: Grant) -> bool:
    """Whether a process is one of a granted server's; those of other users' keepers are told by their user."""
    if grant.ours:
        return process.is_ours and process.server == grant.server
    return not process.is_ours and process.user == grant.user


def _needed_bytes(gpu: Gpu, need: _Need) -> int | None:
    usable = _usable_bytes(gpu)
    if need.memory_fraction is not None and not isinstance(usable, Missing):
        return int(usable * need.memory_fraction)
    return need.memory_bytes


def _usable_bytes(gpu: Gpu) -> int | Missing:
    """Return the GPU's memory less what the driver keeps for itself: CUDA's total, of which vLLM takes its fraction."""
    if isinstance(gpu.memory_used_bytes, Missing) or isinstance(gpu.memory_free_bytes, Missing):
        return gpu.memory_total_bytes
    return gpu.memory_used_bytes + gpu.memory_free_bytes


def _lack(gpu: Gpu, need: _Need) -> str:
    wanted = _needed_bytes(gpu, need)
    free = gpu.memory_free_bytes
    if wanted is None or isinstance(free, Missing):
        return ""
    promised = _promised_bytes(gpu)
    if free - promised >= wanted:
        return ""
    why = f" ({need.memory_why})" if need.memory_why else ""
    others = f" with {_gib(promised)} promised to {gpu.holder}" if promised else ""
    return f"{_gib(free)} of {_gib(_usable_bytes(gpu))} GiB free{others}, the profile wants {_gib(wanted)}{why}"


def _held_by(gpu: Gpu) -> str:
    processes = () if isinstance(gpu.processes, Missing) else gpu.processes
    if processes:
        return f"; held by {people(processes)}"
    return "; held by a process that cannot be seen from here" if _unseen_bytes(gpu) > UNSEEN_LIMIT_BYTES else ""


def _cautions(gpu: Gpu) -> list[str]:
    cautions = []
    strangers = _strangers(gpu)
    if strangers:
        cautions.append(f"GPU {gpu.index} is also in use by {people(strangers)}")
    elif (unseen := _unseen_bytes(gpu)) > UNSEEN_LIMIT_BYTES:
        cautions.append(f"GPU {gpu.index} has {_gib(unseen)} GiB in use by a process that cannot be seen from here")
    if isinstance(gpu.memory_free_bytes, Missing):
        cautions.append(f"the room on GPU {gpu.index} is not known: {gpu.memory_free_bytes.reason}")
    return cautions


def _mixture(gpus: Sequence[Gpu]) -> tuple[str, ...]:
    kinds = sorted({gpu.name for gpu in gpus})
    if len(kinds) < 2:
        return ()
    return (f"these GPUs are of different kinds ({', '.join(kinds)}): the smallest sets the limit",)


def _strangers(gpu: Gpu) -> tuple[GpuProcess, ...]:
    """Return the processes that compute here and are no server of ours; a desktop's graphics do not count."""
    if isinstance(gpu.processes, Missing):
        return ()
    computing = (process for process in gpu.processes if process.kind == "compute" and not process.is_ours)
    return tuple(process for process in computing if not any(_is_of(process, grant) for grant in gpu.grants))


def _unseen_bytes(gpu: Gpu) -> int:
    """Return how much memory is in use beyond what the listed processes hold; 0 where that cannot be told."""
    if isinstance(gpu.processes, Missing) or isinstance(gpu.memory_used_bytes, Missing):
        return 0
    held = [process.memory_bytes for process in gpu.processes]
    known = [amount for amount in held if not isinstance(amount, Missing)]
    return gpu.memory_used_bytes - sum(known) if len(known) == len(held) else 0


def people(processes: Sequence[GpuProcess]) -> str:
    """Name the first of some processes, its program and whose it is, and count the rest."""
    first, more = processes[0], len(processes) - 1
    hidden = first.command.startswith("hidden (")
    program = first.command if hidden else first.command.split(" ")[0].rpartition("/")[2]
    left = f"orphan of {first.server}" if first.owner is Owner.ORPHAN else first.user
    whose = f"server {first.server}" if first.is_ours else left
    return f"pid {first.pid} {program} ({whose})" + (f" and {more} more" if more else "")


def _count(need: _Need) -> str:
    why = f" ({need.count_why})" if need.count_why else ""
    return f"{need.count} GPU{'' if need.count == 1 else 's'}{why}"


def _range(gpus: Sequence[Gpu]) -> str:
    indices = sorted({gpu.index for gpu in gpus})
    if len(indices) == 1:
        return f"GPU {indices[0]} alone"
    if indices == list(range(indices[0], indices[-1] + 1)):
        return f"GPUs {indices[0]}–{indices[-1]}"
    return f"GPUs {', '.join(map(str, indices))}"


def _free_bytes(gpu: Gpu) -> int:
    return -1 if isinstance(gpu.memory_free_bytes, Missing) else gpu.memory_free_bytes


def _gib(amount: int | Missing) -> str:
    return "?" if isinstance(amount, Missing) else f"{amount / GIB:.1f}"
