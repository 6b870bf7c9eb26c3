"""What a server costs while it sleeps: host memory that holds its weights, and what stays on its GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.fit.words import gib
from backends.snapshots import Missing

if TYPE_CHECKING:
    from profiles.schema import Profile

HOST_PER_WEIGHT = 2
"""Level 1 pinned 24 GB of host memory for 12.3 GB of weights, and does not give them back on waking."""

LEFT_BYTES = 1_800_000_000
"""Stays on each GPU: the process's own, and CUDA graphs."""


@dataclass(frozen=True, slots=True)
class Asleep:
    """What a sleeping server holds: of the host at level 1 (at level 2 nothing), and of each GPU at any level.

    `measured` tells that a server of this profile has slept, and held as much.
    """

    host_bytes: int | Missing
    left_bytes: int
    measured: bool


def asleep(profile: Profile, weights_bytes: int | Missing, gpu_count: int, held_bytes: int = 0) -> Asleep | None:
    """Return what sleep costs on so many GPUs, None where the profile does not sleep.

    `weights_bytes` are on each GPU; `held_bytes` is what a server of the profile holds of the host, 0 where none does.
    """
    if not profile.sleep or not gpu_count:
        return None
    if held_bytes:
        return Asleep(held_bytes, LEFT_BYTES, measured=True)
    if isinstance(weights_bytes, Missing):
        return Asleep(weights_bytes, LEFT_BYTES, measured=False)
    return Asleep(HOST_PER_WEIGHT * weights_bytes * gpu_count, LEFT_BYTES, measured=False)


def told(cost: Asleep, gpu_count: int) -> tuple[str, str]:
    """Return the amount of host memory, and what it is for."""
    amount = "?" if isinstance(cost.host_bytes, Missing) else gib(cost.host_bytes)
    source = "as it holds now" if cost.measured else f"{HOST_PER_WEIGHT} × its weights"
    each = " on each" if gpu_count > 1 else " on the GPU"
    return amount, f"of host memory while it sleeps ({source}), and {gib(cost.left_bytes)} stay{each}"
