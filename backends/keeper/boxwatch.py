"""The keeper's eye on the box: one reading a second for all screens, and whose each GPU's memory is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backends import paths
from backends.gpus.ownership import Origins, attributed
from backends.gpus.processes import line_of
from backends.gpus.sampler import BoxSampler, MemoryNow
from backends.gpus.xids import meaning
from backends.keeper.events import Hub
from backends.metrics.series import SeriesStore, gpu_figures
from backends.orphans import Orphan
from backends.snapshots import Box, BoxUpdate, Event, EventUpdate, Gpu, Grant, Missing

log = logging.getLogger(__name__)

Grants = Mapping[str, tuple[Grant, ...]]
"""What is granted of each GPU, by UUID."""

EVERY_S = 1.0
FRESH_S = 0.5
ORPHANS_EVERY_S = 5.0
"""A look for orphans goes through all of this user's processes."""

MEMORY_BACK_S = 15.0
MEMORY_LOOK_S = 0.25
SLACK_BYTES = 512 << 20
"""Memory that may stay on a GPU after a server of ours ended (the driver's own, a neighbour's growth)."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What of GPUs is used and free at one moment, and what one server has `held` of them, in bytes by UUID.

    A GPU of which the server is not seen to hold anything, or whose processes cannot be told, is left out of `held`.
    """

    memory: Mapping[str, MemoryNow | Missing]
    held: Mapping[str, int]


class BoxWatch:
    """Samples in a thread, since NVML blocks; `grants` and `roots` tell who holds a GPU, and the servers' shims.

    `sampler` is asked for what is wanted at once.
    """

    def __init__(
        self,
        sample: Callable[[], Box],
        hub: Hub,
        series: SeriesStore,
        grants: Callable[[], Grants],
        roots: Callable[[], Mapping[int, str]],
        sampler: BoxSampler | None = None,
    ) -> None:
        self._sample = sample
        self._hub = hub
        self._series = series
        self._grants = grants
        self._roots = roots
        self._sampler = sampler
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._newest: Box | None = None
        self._read_at = 0.0
        self._told: frozenset[tuple[int, int]] = frozenset()
        self._xids_told: dict[str, float] = {}

    async def box(self) -> Box:
        """Return the newest reading, taking one where there is none from the last moment; who holds what is of now."""
        newest = self._newest
        if newest is None or asyncio.get_running_loop().time() - self._read_at > EVERY_S + FRESH_S:
            return await self.fresh()
        return _with_grants(newest, self._grants())

    async def fresh(self) -> Box:
        """Take a reading now."""
        async with self._lock:
            read = await asyncio.to_thread(_with_owners, self._sample, _servers_dir(), self._roots())
            self._newest = _with_grants(read, self._grants())
            self._read_at = asyncio.get_running_loop().time()
            return self._newest

    async def memory_now(self, uuids: Sequence[str]) -> dict[str, MemoryNow | Missing]:
        """Return what is used and free of GPUs at this moment, by UUID: a reading of nothing else, a millisecond's."""
        if self._sampler is None:
            return dict.fromkeys(uuids, Missing("nobody reads it here"))
        return await asyncio.to_thread(self._sampler.memory, uuids)

    async def free_bytes(self, uuids: Sequence[str]) -> dict[str, int | Missing]:
        """Return what is free of GPUs at this moment, by UUID, as `memory_now` does."""
        read = await self.memory_now(uuids)
        return {uuid: one if isinstance(one, Missing) else one.free_bytes for uuid, one in read.items()}

    async def holdings(self, server: str, uuids: Sequence[str]) -> Holdings:
        """Return what a server holds of GPUs at this moment, and what is free of them: some milliseconds at most."""
        if self._sampler is None:
            return Holdings(await self.memory_now(uuids), {})
        return await asyncio.to_thread(_holdings, self._sampler, server, uuids, self._roots())

    def held_by(self, server: str, since: float = 0.0) -> dict[str, int]:
        """Return what a server holds of GPUs by the newest reading, in bytes by UUID; what cannot be seen is left out.

        While a server lives that is of the last two seconds; one from before `since` tells nothing.
        """
        held: dict[str, int] = {}
        newest = self._newest
        for gpu in newest.gpus if newest is not None and newest.at >= since else ():
            for process in () if isinstance(gpu.processes, Missing) else gpu.processes:
                if process.is_ours and process.server == server and not isinstance(process.memory_bytes, Missing):
                    held[gpu.uuid] = held.get(gpu.uuid, 0) + process.memory_bytes
        return held

    async def host_available_bytes(self) -> int | Missing:
        """Return how much of the host's memory is to be had at this moment."""
        if self._sampler is None:
            return Missing("nobody reads it here")
        return await asyncio.to_thread(self._sampler.host_available_bytes)

    async def orphans(self) -> tuple[Orphan, ...]:
        """Return what servers of ours have left behind, and tell of those that were not there before."""
        found = await asyncio.to_thread(_read_orphans, _servers_dir(), self._roots(), await self.box())
        new = [orphan for orphan in found if (orphan.pid, orphan.start_ticks) not in self._told]
        self._told = frozenset((orphan.pid, orphan.start_ticks) for orphan in found)
        for server in dict.fromkeys(orphan.server for orphan in new):
            left = [orphan for orphan in new if orphan.server == server]
            self._hub.publish(EventUpdate(_told_orphans(server, left, time.time())))
        return found

    def look_now(self) -> None:
        """Have the next reading taken at once: something changed."""
        self._wake.set()

    async def run(self, needed: Callable[[], bool]) -> None:
        """Take and publish a reading each second, while somebody looks or a server runs."""
        next_look = 0.0
        while True:
            if needed():
                try:
                    box = await self.fresh()
                    if time.monotonic() >= next_look:
                        await self.orphans()
                        next_look = time.monotonic() + ORPHANS_EVERY_S
                except Exception:
                    log.exception("the box cannot be read")
                else:
                    self._hub.publish(BoxUpdate(box))
                    self._tell_xids(box)
                    for gpu in box.gpus:
                        self._series.append(f"gpu {gpu.uuid}", box.at, gpu_figures(gpu))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), EVERY_S)
            self._wake.clear()

    def _tell_xids(self, box: Box) -> None:
        """Tell of the errors that the driver reported since the last reading: to each server of the GPU, or the box."""
        for gpu in box.gpus:
            xids = () if isinstance(gpu.xids, Missing) else gpu.xids
            told_until = self._xids_told.get(gpu.uuid, 0.0)
            for xid in xids:
                if xid.at <= told_until:
                    continue
                self._xids_told[gpu.uuid] = xid.at
                text = f"GPU {gpu.index}: XID {xid.number}, {meaning(xid.number)}"
                for server in [grant.server for grant in gpu.grants if grant.ours] or [""]:
                    self._hub.publish(EventUpdate(Event(xid.at, server, "xid", text)))

    async def memory_back(self, server: str, before: Mapping[str, int]) -> str:
        """Wait, within reason, until GPUs hold no more beside other processes than they did `before` a server.

        `before` is what `beside_others` told then, in bytes by UUID. Returns what is to be told where they do, or where
        that cannot be read; empty where all is back.
        """
        if not before:
            return ""
        deadline = time.monotonic() + MEMORY_BACK_S
        while True:  # NVML tells of no event
            gpus = [gpu for gpu in (await self.fresh()).gpus if gpu.uuid in before]
            grown = {gpu.index: beside_others(gpu, server) - before[gpu.uuid] for gpu in gpus}
            held = [f"GPU {index} +{more / 2**30:.1f} GiB" for index, more in grown.items() if more > SLACK_BYTES]
            if held and time.monotonic() < deadline:
                await asyncio.sleep(MEMORY_LOOK_S)
                continue
            if held:
                return f"GPU memory has not come back after {MEMORY_BACK_S:.0f} s: {', '.join(held)}"
            lost = [f"GPU {gpu.index}: {gpu.refusal}" for gpu in gpus if isinstance(gpu.memory_used_bytes, Missing)]
            return f"whether its memory is back is not known: {', '.join(lost)}" if lost else ""


def _holdings(sampler: BoxSampler, server: str, uuids: Sequence[str], roots: Mapping[int, str]) -> Holdings:
    held: dict[str, int] = {}
    for uuid, sizes in sampler.held(uuids).items():
        for pid, size in sizes.items():
            if any(roots.get(one.pid) == server for one in line_of(pid)):
                held[uuid] = held.get(uuid, 0) + size
    return Holdings(sampler.memory(uuids), held)


def _servers_dir() -> Path:
    return paths.state_dir() / "servers"


def beside_others(gpu: Gpu, server: str) -> int:
    """Return how much memory of a GPU is in use beside that of living processes that are not the server's."""
    if isinstance(gpu.memory_used_bytes, Missing):
        return 0
    others = 0
    for process in () if isinstance(gpu.processes, Missing) else gpu.processes:
        # One that is listed still, but is gone, may be the server's.
        is_own = process.server == server or process.start_ticks is None
        if not is_own and not isinstance(process.memory_bytes, Missing):
            others += process.memory_bytes
    return max(0, gpu.memory_used_bytes - others)


def _read_orphans(servers: Path, roots: Mapping[int, str], box: Box) -> tuple[Orphan, ...]:
    return Origins(servers, roots).orphans(box)


def _told_orphans(server: str, orphans: Sequence[Orphan], now: float) -> Event:
    pids = ", ".join(str(orphan.pid) for orphan in orphans)
    text = f"shim and guard were killed and left pid {pids} behind; `gpubox reap` ends what was left"
    return Event(now, server, "orphan", text)


def _with_owners(sample: Callable[[], Box], servers: Path, roots: Mapping[int, str]) -> Box:
    return attributed(sample(), Origins(servers, roots))


def _with_grants(box: Box, grants: Grants) -> Box:
    return replace(box, gpus=tuple(replace(gpu, grants=grants.get(gpu.uuid, ())) for gpu in box.gpus))
