"""Which GPUs an inherited CUDA_VISIBLE_DEVICES leaves to us: what CUDA itself would make of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from backends.snapshots import Gpu

UUID_DIGITS = 32


def bound_by_environment(gpus: Sequence[Gpu], value: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs, those outside CUDA_VISIBLE_DEVICES=`value` with a refusal; None (not set) bounds nothing.

    Indices count in PCI order, as NVML's do, which is how job schedulers and container runtimes mean them.
    """
    if value is None:
        return tuple(gpus)
    inside = set(visible_uuids(gpus, value))
    refusal = f"outside CUDA_VISIBLE_DEVICES={value}" if value else "CUDA_VISIBLE_DEVICES is set and empty"
    return tuple(gpu if gpu.uuid in inside else replace(gpu, refusal=gpu.refusal or refusal) for gpu in gpus)


def visible_uuids(gpus: Sequence[Gpu], value: str) -> tuple[str, ...]:
    """Return the UUIDs that CUDA would show, in its order.

    As driver 580 was seen to do it: the list ends before its first entry that names no one GPU (`-1`, `NoDevFiles`, a
    MIG device, an index too high, a UUID prefix that fits two), a repeated GPU voids the whole list, and the first
    entry decides whether it is a list of indices or of UUIDs.
    """
    entries = value.split(",")
    named = _by_uuid if entries[0].startswith("GPU-") else _by_index
    found: list[str] = []
    for entry in entries:
        gpu = named(gpus, entry)
        if gpu is None:
            break
        if gpu.uuid in found:
            return ()
        found.append(gpu.uuid)
    return tuple(found)


def _by_index(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    """CUDA reads the number at the entry's start and passes over what follows it."""
    number = re.match(r"\s*\+?(\d+)", entry)
    return next((gpu for gpu in gpus if gpu.index == int(number[1])), None) if number else None


def _by_uuid(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    """CUDA takes hex digits in either case, with or without hyphens, and passes over what follows a whole UUID."""
    prefix = _digits(entry.removeprefix("GPU-"))[:UUID_DIGITS]
    if not entry.startswith("GPU-") or not re.fullmatch("[0-9a-f]+", prefix):
        return None
    fitting = [gpu for gpu in gpus if _digits(gpu.uuid.removeprefix("GPU-")).startswith(prefix)]
    return fitting[0] if len(fitting) == 1 else None


def _digits(uuid: str) -> str:
    return uuid.replace("-", "").lower()
