"""What the ledger grants to a server that sleeps: little while it does, and all that it needs before it wakes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from backends.errors import GpuBusyError
from backends.gpus.sampler import MemoryNow
from backends.snapshots import Box, Grant, Missing

if TYPE_CHECKING:
    from backends.keeper.record import Record
    from backends.ledger import Ledger

log = logging.getLogger(__name__)

GIB = 2**30
LEFT_ASLEEP_BYTES = 2 * GIB
"""What an engine keeps of a GPU asleep, where that cannot be seen: 1.8 GB was measured."""


def needs_of(record: Record) -> dict[str, int | None]:
    """Return what a server takes of its GPUs awake, in bytes by UUID: what was reserved, or else seen; None: all."""
    return {uuid: record.awake_bytes.get(uuid) if size is None else size for uuid, size in record.reserved.items()}


def granted_first(record: Record) -> dict[str, int | None]:
    """Return what a start is granted of its GPUs; a warm spare gets all that it needs at its gate only."""
    return dict.fromkeys(record.reserved, LEFT_ASLEEP_BYTES) if record.spare else record.reserved


def memory_in(box: Box) -> dict[str, MemoryNow | Missing]:
    """Return what of each GPU's memory is used and free, by UUID, as a reading of the box has it."""
    return {
        gpu.uuid: MemoryNow(gpu.memory_used_bytes, gpu.memory_free_bytes)
        for gpu in box.gpus
        if not isinstance(gpu.memory_used_bytes, Missing) and not isinstance(gpu.memory_free_bytes, Missing)
    }


def resize(ledger: Ledger, record: Record, memory: Mapping[str, int | None]) -> None:
    """Have no more and no less granted to a server than `memory`, in bytes by UUID; blocks for a moment.

    A grant that is not held any more is left alone. Raises KeeperError, OSError.
    """
    with ledger.changing():
        try:
            ledger.resize(record.name, memory)
        except KeyError as missing:
            log.warning("%s is not granted %s any more", record.name, missing)


def claim(
    ledger: Ledger,
    record: Record,
    memory: Mapping[str, MemoryNow | Missing],
    promised: Mapping[str, Grant],
    *,
    must_be_free: bool = True,
) -> None:
    """Grant a server all that it needs awake, where nobody else was granted it; blocks for a moment.

    By `memory` it `must_be_free` now, too, unless it is waited for later. `promised` are GPUs that are just being given
    to another server. Raises GpuBusyError, KeeperError, OSError.
    """
    needs = needs_of(record)
    with ledger.changing():
        granted = ledger.grants()
        for uuid, needed in needs.items():
            others = {f"{one.user}/{one.server}": one for one in granted.get(uuid, ()) if not _is_own(one, record)}
            if uuid in promised:
                others.setdefault(f"{promised[uuid].user}/{promised[uuid].server}", promised[uuid])
            now = memory.get(uuid, Missing("not read"))
            if not isinstance(now, Missing):
                own = next((one.memory_bytes for one in granted.get(uuid, ()) if _is_own(one, record)), None)
                _check(f"GPU {_index(record, uuid)}", needed, now, own if must_be_free else needed, others.values())
        try:
            ledger.resize(record.name, needs)
        except KeyError as missing:
            raise GpuBusyError(f"GPU {_index(record, missing.args[0])} is not granted to it any more") from None


def _check(gpu: str, needed: int | None, now: MemoryNow, own: int | None, others: Iterable[Grant]) -> None:
    others = tuple(others)
    usable = now.used_bytes + now.free_bytes
    held = sum(usable if one.memory_bytes is None else one.memory_bytes for one in others)
    wanted = usable - held if needed is None and held < usable else needed or usable
    if held + wanted > usable:
        biggest = max(others, key=lambda one: usable if one.memory_bytes is None else one.memory_bytes)
        who = biggest.server if biggest.ours else f"{biggest.server} of {biggest.user}"
        raise GpuBusyError(
            f"{gpu} has {max(0, usable - held) / GIB:.1f} of {usable / GIB:.1f} GiB that are not granted to others"
            f" ({who}), {wanted / GIB:.1f} are needed",
            "let it have them: gpubox switch",
        )
    missing = wanted - (own or 0)
    if needed is not None and now.free_bytes < missing:
        raise GpuBusyError(
            f"{gpu} has {now.free_bytes / GIB:.1f} GiB free, {missing / GIB:.1f} are needed",
            "see who holds it: gpubox status",
        )


def _is_own(grant: Grant, record: Record) -> bool:
    return grant.ours and grant.server == record.name


def _index(record: Record, uuid: str) -> int | str:
    indices = dict(zip(record.gpus, record.gpu_indices, strict=False))
    return indices.get(uuid, uuid)
