"""The simulated box's GPUs and host: plausible readings for whoever is said to work on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID
from zlib import crc32

from backends.errors import UsageError
from backends.gpus.ownership import shares_of
from backends.orphans import Orphan
from backends.simulated_servers import GIB, Life, load_at, memory_at, state_at, wave
from backends.snapshots import Box, EccErrors, Gpu, GpuProcess, Grant, Host, Missing, Owner, ServerState, Xid

KINDS = {
    # name, memory in GiB as NVML tells it, power limit in W
    "H200": ("NVIDIA H200", 139.8, 700.0),
    "H100": ("NVIDIA H100 80GB HBM3", 79.6, 700.0),
    "A100": ("NVIDIA A100-SXM4-80GB", 80.0, 400.0),
    "L40S": ("NVIDIA L40S", 45.0, 350.0),
    "RTX4090": ("NVIDIA GeForce RTX 4090", 24.0, 450.0),
}
AWAKE_SHARE = 0.9
"""What a server that can sleep is granted of a GPU while it is awake."""

EMPTY_BYTES = 4 * 1024 * 1024
"""What the driver holds of a GPU that nobody uses."""

CONTEXT_BYTES = 420 * 1024 * 1024
"""What the driver holds beside the processes of one that is used."""

STRANGER_AT = 6
STRANGER = GpuProcess(31_337, "python train.py", "alice", int(38.2 * GIB), start_ticks=2_000)
ORPHAN_AT = 7
LEFT_BY = "gemma-2-9b"
ORPHAN = GpuProcess(
    30_210,
    "VLLM::EngineCore",
    "you",
    int(21.4 * GIB),
    server=LEFT_BY,
    owner=Owner.ORPHAN,
    start_ticks=1_000,
)
ORPHAN_HOST_BYTES = int(3.1 * GIB)
HOT_AT = 1
"""A GPU that is too hot, and so a little slower than its neighbours once it has work."""

FAULTY_AT = 5
FAULTS = EccErrors(corrected=3, uncorrected=1)
FAULTY_SINCE_S = 505.0
FAULT = 94


@dataclass(frozen=True, slots=True)
class Tenant:
    """A simulated server on a GPU: which share of its memory it holds, and how busy it is (both 0–1).

    `granted` is the share it is granted, None for all of it.
    """

    life: Life
    memory: float
    load: float
    granted: float | None = None


def tenants_of(lives: Iterable[Life], at: float) -> dict[int, list[Tenant]]:
    """Return who is on which GPU (by index) at `at`; who can sleep is granted what it holds then, not all of it."""
    tenants: dict[int, list[Tenant]] = {}
    for life in lives:
        state = state_at(life, at)[0]
        if at >= life.launched_at and state not in (ServerState.STOPPED, ServerState.FAILED):
            held = memory_at(life, at)
            granted = None if not life.can_sleep else held if state is ServerState.SLEEPING else AWAKE_SHARE
            for index in life.gpu_indices:
                tenants.setdefault(index, []).append(Tenant(life, held, load_at(life, at), granted))
    return tenants


class SimulatedGpus:
    """GPUs as `8xH200` or `2xRTX4090,1xL40S` describes them (`0` for none); raises UsageError where it does not."""

    def __init__(self, spec: str, seed: int = 0) -> None:
        self._kinds: list[tuple[str, float, float]] = []
        for part in spec.split(",") if spec.strip() != "0" else []:
            found = re.fullmatch(r"\s*(?:(\d+)x)?([A-Za-z0-9]+)\s*", part)
            kind = KINDS.get(found[2].upper()) if found else None
            if found is None or kind is None:
                raise UsageError(f"cannot simulate {part!r}", f"say COUNTxKIND, of {', '.join(KINDS)}, or 0 for no GPU")
            self._kinds += [kind] * int(found[1] or 1)
        self._is_reaped = False
        self.fault: Xid | None = None
        self.uuids = tuple(
            f"GPU-{UUID(int=crc32(f'{seed} {index}'.encode()) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128))}"
            for index in range(len(self._kinds))
        )

    def break_at(self, at: float) -> bool:
        """Have one GPU report an XID at `at`; returns whether this box has that GPU."""
        if len(self._kinds) > FAULTY_AT:
            self.fault = Xid(at, FAULT)
        return self.fault is not None

    def box(self, at: float, tenants: Mapping[int, Sequence[Tenant]], pinned_bytes: int = 0) -> Box:
        """Return the box at `at` with `tenants` (by index) on its GPUs, and so much of the host pinned for sleep."""
        busy = sum(tenant.load for there in tenants.values() for tenant in there) / max(1, len(self._kinds))
        host = Host(
            hostname="simulated",
            cpu_count=192,
            cpu_utilization=0.03 + 0.2 * busy + 0.05 * wave("cpu", at),
            load_1m=3.0 + 40 * busy + 4 * wave("load", at),
            memory_total_bytes=2015 * GIB,
            memory_available_bytes=int((1700 - 60 * len(tenants)) * GIB) - pinned_bytes,
        )
        gpus = tuple(self._gpu(index, at, tenants.get(index, ())) for index in range(len(self._kinds)))
        return Box(
            at=at,
            host=host,
            gpus=gpus,
            no_gpus=None if gpus else "this simulated box has none",
            driver_version="580.65.06" if gpus else None,
            cuda_version="13.0" if gpus else None,
            simulated=True,
        )

    def orphans(self, at: float) -> tuple[Orphan, ...]:
        """Return what a server that is long gone has left behind, until it is reaped."""
        if self._is_reaped or len(self._kinds) <= ORPHAN_AT:
            return ()
        held = ORPHAN
        return (
            Orphan(
                pid=held.pid,
                start_ticks=held.start_ticks or 0,
                server=LEFT_BY,
                command=held.command,
                user=held.user,
                gpus=(ORPHAN_AT,),
                gpu_bytes=_fitting(held, int(self._kinds[ORPHAN_AT][1] * GIB)).memory_bytes,
                host_bytes=ORPHAN_HOST_BYTES,
                started_at=at - 5_400,
            ),
        )

    def reap(self, pid: int, start_ticks: int) -> bool:
        """End the orphan, if it is the one meant; returns whether it was."""
        found = any((one.pid, one.start_ticks) == (pid, start_ticks) for one in self.orphans(0.0))
        self._is_reaped = self._is_reaped or found
        return found

    def _gpu(self, index: int, at: float, tenants: Sequence[Tenant]) -> Gpu:
        name, memory_gib, limit_w = self._kinds[index]
        total = int(memory_gib * GIB)
        processes: list[GpuProcess] = []
        load = min(1.0, sum(tenant.load for tenant in tenants))
        for tenant in tenants:
            if not tenant.memory:
                continue
            life = tenant.life
            command = f"VLLM::Worker_TP{life.gpu_indices.index(index)}" if len(life.gpus) > 1 else "VLLM::EngineCore"
            processes.append(
                GpuProcess(
                    life.pid + 167, command, "you", int(tenant.memory * total), server=life.name, owner=Owner.SERVER
                )
            )
        if index == STRANGER_AT:
            load = max(load, 0.55 + 0.4 * wave("alice", at))
            processes.append(_fitting(STRANGER, total))
        if index == ORPHAN_AT and not self._is_reaped:
            processes.append(_fitting(ORPHAN, total))
        own = CONTEXT_BYTES if processes else EMPTY_BYTES
        used = own + sum(p.memory_bytes for p in processes if isinstance(p.memory_bytes, int))
        utilization = min(1.0, load * 1.05 + 0.03 * wave(f"util {index}", at)) if load else 0.0
        is_hot = index == HOT_AT and utilization > 0.3
        utilization *= 0.82 if is_hot else 1.0
        is_faulty = index == FAULTY_AT and self.fault is not None and at >= self.fault.at
        knows_ecc = not name.startswith("NVIDIA GeForce")
        gpu = Gpu(
            index=index,
            uuid=self.uuids[index],
            name=name,
            memory_total_bytes=total,
            memory_used_bytes=used,
            memory_free_bytes=total - used,
            utilization=utilization,
            temperature_c=round(29 + index % 3 + 38 * utilization + (24 if is_hot else 0)),
            power_w=limit_w * (0.11 + 0.82 * utilization),
            power_limit_w=limit_w,
            processes=tuple(processes),
            grants=tuple(
                Grant(one.life.name, "you", None if one.granted is None else int(one.granted * total))
                for one in tenants
            ),
            ecc=(FAULTS if is_faulty else EccErrors(0, 0)) if knows_ecc else Missing("not supported by this GPU"),
            throttling=("thermal",) if is_hot else (),
            xids=(self.fault,) if is_faulty and self.fault else (),
        )
        return replace(gpu, shares=shares_of(gpu))


def _fitting(process: GpuProcess, total_bytes: int) -> GpuProcess:
    """Let a process hold no more than a GPU has."""
    held = process.memory_bytes
    return process if isinstance(held, Missing) else replace(process, memory_bytes=min(held, total_bytes * 3 // 4))
