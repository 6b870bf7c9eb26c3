"""Whose memory a GPU holds, in words and signs that need no colour."""

from __future__ import annotations

from collections.abc import Iterable

from backends.snapshots import Gpu, GpuProcess, Missing, Owner, Share
from tui.format import NOTHING, fit, memory, shown

SIGNS = {Owner.SERVER: "█", Owner.RUN: "▓", Owner.FOREIGN: "▒", Owner.ORPHAN: "×", Owner.UNATTRIBUTED: "░"}
"""What a share is drawn with, in the bar and before its name."""

WHO_CELLS = 48
TRIVIAL_BYTES = 64 << 20
"""What the driver holds of a GPU that nobody uses is not worth a line."""


def share_text(share: Share) -> str:
    """Say a share: 'server m7b 56.7 GiB', 'foreign alice python train.py pid 123 38.2 GiB'."""
    size = shown(share.memory_bytes, memory)
    if share.owner is Owner.UNATTRIBUTED:
        return f"unattributed {size} ({share.who})"
    pids = ""
    if share.owner in (Owner.FOREIGN, Owner.ORPHAN) and share.pids:
        pids = " pid " + ", ".join(map(str, share.pids))
    whose = f"of {share.who}" if share.owner is Owner.ORPHAN else fit(share.who, WHO_CELLS)
    return f"{share.owner.value} {whose}{pids} {size}"


def worth_telling(gpu: Gpu) -> bool:
    """Whether a GPU holds more than what the driver keeps of an idle one."""
    sizes = [share.memory_bytes for share in gpu.shares]
    return any(isinstance(size, Missing) or size > TRIVIAL_BYTES for size in sizes)


def owned(gpus: Iterable[Gpu], owner: Owner) -> tuple[GpuProcess, ...]:
    """Return the processes of that owner on these GPUs, each once."""
    found = {
        process.pid: process
        for gpu in gpus
        if not isinstance(gpu.processes, Missing)
        for process in gpu.processes
        if process.owner is owner
    }
    return tuple(found.values())


def owner_text(process: GpuProcess) -> str:
    """Say whose a process is, in a few words: '█ m7b', '× left by m7b', '▒ foreign'."""
    sign = SIGNS[process.owner]
    if process.owner is Owner.ORPHAN:
        return f"{sign} left by {process.server or NOTHING}"
    return f"{sign} {process.server or process.owner.value}"
