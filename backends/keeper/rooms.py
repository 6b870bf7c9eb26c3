"""What the ledger grants to a server that sleeps: little while it does, and all that it needs before it wakes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
    held: Mapping[str, int] | None = None,
    must_be_free: bool = True,
) -> None:
    """Grant a server all that it needs awake, where nobody else was granted it; blocks for a moment.

    By `memory` it `must_be_free` now, too, unless it is waited for later: beside what the server is seen to have `held`
    already, in bytes by UUID, or else beside what it is granted. `promised` are GPUs that are just being given to
    another server. Raises GpuBusyError, KeeperError, OSError.
    """
    needs = needs_of(record)
    with ledger.changing():
        granted = ledger.grants()
        for uuid, needed in needs.items():
            now = memory.get(uuid)
            if now is None or isinstance(now, Missing):
                continue
            others = [one for one in granted.get(uuid, ()) if not _is_own(one, record)]
            if uuid in promised and not any(one.ours and one.server == promised[uuid].server for one in others):
                others.append(promised[uuid])
            gpu = f"GPU {_index(record, uuid)}"
            _check_granted(gpu, needed, now, others)
            if must_be_free and needed is not None:
                own = next((one.memory_bytes or 0 for one in granted.get(uuid, ()) if _is_own(one, record)), 0)
                # What it gave back it takes again, also where that was more than its share.
                awake = record.awake_bytes.get(uuid, 0)
                lacks = max(needed - own, awake - record.asleep_bytes.get(uuid, 0))
                if held is not None and uuid in held:
                    lacks = max(needed, awake) - held[uuid]
                _check_free(gpu, lacks, now)
        try:
            ledger.resize(record.name, needs)
        except KeyError as missing:
            raise GpuBusyError(f"GPU {_index(record, missing.args[0])} is not granted to it any more") from None


def _check_granted(gpu: str, needed: int | None, now: MemoryNow, others: Sequence[Grant]) -> None:
    usable = now.used_bytes + now.free_bytes

    def size(grant: Grant) -> int:
        return usable if grant.memory_bytes is None else grant.memory_bytes

    left = max(0, usable - sum(map(size, others)))
    # One whose need is not known, even from an earlier sleep, takes what is left.
    if left and (needed is None or needed <= left):
        return
    of_whom = ", ".join(one.server if one.ours else f"{one.server} of {one.user}" for one in others)
    wanted = f", {needed / GIB:.1f} are needed" if needed is not None else ""
    beside = f" beside what {of_whom} {'has' if len(others) == 1 else 'have'}" if others else ""
    raise GpuBusyError(
        f"{gpu} has {left / GIB:.1f} of {usable / GIB:.1f} GiB{beside}{wanted}", "let it have them: gpubox switch"
    )


def _check_free(gpu: str, needed: int, now: MemoryNow) -> None:
    if now.free_bytes < needed:
        raise GpuBusyError(
            f"{gpu} has {now.free_bytes / GIB:.1f} GiB free, {needed / GIB:.1f} are needed",
            "see who holds it: gpubox status",
        )


def _is_own(grant: Grant, record: Record) -> bool:
    return grant.ours and grant.server == record.name


def _index(record: Record, uuid: str) -> int | str:
    indices = dict(zip(record.gpus, record.gpu_indices, strict=False))
    return indices.get(uuid, uuid)
