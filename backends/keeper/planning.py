"""Who gives way in a switch, and where a server that is to be started goes. Pure functions.

The CPU is a place like a GPU, that one server has as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from backends.errors import GpuBusyError
from backends.gpus.selection import GIB, UNSEEN_LIMIT_BYTES, people
from backends.snapshots import Gpu, GpuProcess, Grant, Missing, Owner

CPU = "cpu"
"""The place of servers that have no GPU."""

MOST_GROUPS = 2000
"""So many groups of GPUs are compared: all of eight GPUs, and the first of more."""

HIDDEN = "hidden ("
"""How the command of a process begins that cannot be seen from here."""

Needs = Mapping[str, int | None]
"""Bytes by place; None is all of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A GPU, by its UUID, or the CPU.

    `capacity_bytes` is what servers can have of it, None where that is not known; `outside_bytes` of that is in use by
    `outsiders`, who are no servers of ours and never give way; `grants` are those of the ledger.
    """

    id: str
    name: str
    capacity_bytes: int | None
    grants: tuple[Grant, ...] = ()
    outside_bytes: int = 0
    outsiders: str = ""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A server of ours that lives: what it has of each place, and what it would keep if it slept.

    `asleep_keeps` None: it cannot sleep, or does so already (`sleeps`); then only a stop makes room. `fixed` says why
    it does not give way now at all.
    """

    server: str
    has: Needs
    last_used_at: float
    asleep_keeps: Mapping[str, int] | None = None
    sleeps: bool = False
    fixed: str = ""


@dataclass(frozen=True, slots=True)
class Ceding:
    """A server that gives way: asleep, or else by a stop; `why` says why sleep does not do, where it could."""

    server: str
    asleep: bool
    why: str = ""


def place_of(gpu: Gpu) -> Place:
    """Return what of a GPU there is to be had."""
    used, free, total = gpu.memory_used_bytes, gpu.memory_free_bytes, gpu.memory_total_bytes
    if isinstance(used, Missing) or isinstance(free, Missing):
        capacity = None if isinstance(total, Missing) else total
    else:
        capacity = used + free
    outsiders, unseen = _outsiders(gpu), _unseen_bytes(gpu)
    held = sum(one.memory_bytes for one in outsiders if not isinstance(one.memory_bytes, Missing))
    named = [people(outsiders)] if outsiders else []
    if unseen:
        named.append("a process that cannot be seen from here")
    return Place(gpu.uuid, f"GPU {gpu.index}", capacity, gpu.grants, held + unseen, " and ".join(named))


def cede(target: str, needs: Needs, places: Sequence[Place], tenants: Sequence[Tenant]) -> tuple[Ceding, ...]:
    """Return who gives way so that `target` has what it needs, the least recently used first, and nobody in vain.

    `tenants` are our own servers. Raises GpuBusyError, naming who is in the way, where no room can be made.
    """
    by_id = {place.id: place for place in places}
    movable = {one.server: one for one in tenants if not one.fixed and one.server != target}
    keeps: dict[str, Mapping[str, int] | None] = {}

    def lacks(place_id: str) -> bool:
        return _lack(by_id[place_id], needs[place_id], target, keeps) > 0

    for place_id in needs:
        _check_others(by_id[place_id], needs[place_id], target, movable, {one.server: one.fixed for one in tenants})
    oldest_first = sorted(movable.values(), key=lambda one: (one.last_used_at, one.server))
    # Who is awake gives way before what the sleepers keep is asked for.
    for who in ([one for one in oldest_first if not one.sleeps], oldest_first):
        for tenant in who:
            there = [place_id for place_id in needs if place_id in tenant.has]
            if any(lacks(place_id) for place_id in there):
                whole = any(needs[place_id] is None for place_id in there)
                keeps[tenant.server] = None if whole or tenant.server in keeps else tenant.asleep_keeps
    for place_id in needs:
        if lacks(place_id):
            raise GpuBusyError(f"{by_id[place_id].name} has no room for {target}, even with all others gone")
    _spare(keeps, movable, oldest_first, lambda: not any(lacks(place_id) for place_id in needs))
    return tuple(_ceding(tenant, keeps, needs) for tenant in oldest_first if tenant.server in keeps)


def best_group(
    target: str, count: int, need: Mapping[str, int | None], places: Sequence[Place], tenants: Sequence[Tenant]
) -> tuple[tuple[str, ...], tuple[Ceding, ...]]:
    """Return the places for a server that is to be started, and who gives way there.

    That is the group of `count` whose holders were used the longest ago, then that with the fewest of them, then the
    first. Raises GpuBusyError, naming who is in the way, where no group can have room.
    """
    used_at = {one.server: one.last_used_at for one in tenants}
    best: tuple[tuple[float, int], tuple[str, ...], tuple[Ceding, ...]] | None = None
    refused: list[str] = []
    for group in islice(combinations([place.id for place in places], count), MOST_GROUPS):
        try:
            ceding = cede(target, {place_id: need[place_id] for place_id in group}, places, tenants)
        except GpuBusyError as problem:
            if problem.message not in refused:
                refused.append(problem.message)
            continue
        newest = max((used_at[one.server] for one in ceding), default=0.0)
        if best is None or (newest, len(ceding)) < best[0]:
            best = (newest, len(ceding)), group, ceding
    if best is None:
        reasons = "; ".join(refused[:4]) or f"the profile needs {count}, this box has {len(places)}"
        raise GpuBusyError(f"no GPU can be had for {target}: {reasons}")
    return best[1], best[2]


def _spare(
    keeps: dict[str, Mapping[str, int] | None],
    movable: Mapping[str, Tenant],
    oldest_first: Sequence[Tenant],
    fits: Callable[[], bool],
) -> None:
    """Let those stay as they are, or asleep, who would give way in vain: the most recently used first."""
    for tenant in reversed(oldest_first):
        if tenant.server not in keeps:
            continue
        given = keeps.pop(tenant.server)
        if fits():
            continue
        asleep = movable[tenant.server].asleep_keeps
        keeps[tenant.server] = asleep if given is None and asleep is not None else given
        if not fits():
            keeps[tenant.server] = given


def _lack(place: Place, need: int | None, target: str, keeps: Mapping[str, Mapping[str, int] | None]) -> int:
    """Return how many bytes are missing on a place, given what those who give way keep of it (None: nothing)."""
    granted = 0
    for grant in place.grants:
        if grant.ours and grant.server == target:
            continue
        size = grant.memory_bytes
        if grant.ours and grant.server in keeps:
            kept = keeps[grant.server]
            size = 0 if kept is None else kept.get(place.id, 0)
            if kept is None:
                continue
        if need is None or size is None:
            return place.capacity_bytes or 1
        granted += size
    if need is None or place.capacity_bytes is None:
        return 0
    return granted + place.outside_bytes + need - place.capacity_bytes


def _check_others(
    place: Place, need: int | None, target: str, movable: Mapping[str, Tenant], fixed: Mapping[str, str]
) -> None:
    """Raise GpuBusyError where those who never give way leave too little."""
    staying = [g for g in place.grants if not (g.ours and (g.server == target or g.server in movable))]
    granted = sum(grant.memory_bytes or 0 for grant in staying)
    whole = any(grant.memory_bytes is None for grant in staying) or (need is None and bool(staying))
    capacity = place.capacity_bytes
    short = capacity is not None and need is not None and granted + place.outside_bytes + need > capacity
    if not whole and not short:
        return
    in_the_way = [_named(grant, fixed) for grant in staying] + ([place.outsiders] if place.outside_bytes else [])
    wants = f"{target} needs {_gib(need)} GiB of {_gib(capacity)}" if need is not None else f"{target} needs all of it"
    if not in_the_way:
        raise GpuBusyError(f"{place.name} is too small: {wants}")
    ours = any(grant.ours for grant in staying)
    hint = "wait for it, or stop it" if ours else "what is not ours is left alone: ask its user, or choose another GPU"
    raise GpuBusyError(f"{place.name} is in use by {', '.join(in_the_way)}; {wants}", hint)


def _ceding(tenant: Tenant, keeps: Mapping[str, Mapping[str, int] | None], needs: Needs) -> Ceding:
    if keeps[tenant.server] is not None:
        return Ceding(tenant.server, asleep=True)
    if tenant.asleep_keeps is None:
        return Ceding(tenant.server, asleep=False)
    whole = any(needs[place_id] is None for place_id in needs if place_id in tenant.has)
    why = "the whole GPU is needed" if whole else "what it keeps of the GPU asleep is needed"
    return Ceding(tenant.server, asleep=False, why=why)


def _named(grant: Grant, fixed: Mapping[str, str]) -> str:
    if not grant.ours:
        return f"{grant.server} of {grant.user}"
    return f"server {grant.server}" + (f" ({why})" if (why := fixed.get(grant.server)) else "")


def _outsiders(gpu: Gpu) -> tuple[GpuProcess, ...]:
    """Return the processes that no grant accounts for."""
    if isinstance(gpu.processes, Missing):
        return ()
    users = {grant.user for grant in gpu.grants if not grant.ours}
    # Where processes cannot be told (another PID namespace), a grant of ours accounts for them.
    hidden = any(grant.ours for grant in gpu.grants)
    return tuple(
        process
        for process in gpu.processes
        if process.owner is Owner.ORPHAN
        or not (process.is_ours or process.user in users or (hidden and process.command.startswith(HIDDEN)))
    )


def _unseen_bytes(gpu: Gpu) -> int:
    """Return what is in use beyond what the processes hold, where that is much and no grant accounts for it."""
    if gpu.grants or isinstance(gpu.processes, Missing) or isinstance(gpu.memory_used_bytes, Missing):
        return 0
    sizes = [process.memory_bytes for process in gpu.processes]
    known = [size for size in sizes if not isinstance(size, Missing)]
    unseen = gpu.memory_used_bytes - sum(known)
    return unseen if len(known) == len(sizes) and unseen > UNSEEN_LIMIT_BYTES else 0


def _gib(amount: int | None) -> str:
    return "?" if amount is None else f"{amount / GIB:.1f}"
