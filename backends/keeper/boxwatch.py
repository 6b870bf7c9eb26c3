"""The keeper's eye on the box: one reading a second for all screens, with what our servers hold written into it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import psutil

from backends.keeper.events import Hub
from backends.metrics.series import SeriesStore, gpu_figures
from backends.snapshots import Box, BoxUpdate, Gpu, GpuProcess, Grant, Missing

log = logging.getLogger(__name__)

Grants = Mapping[str, tuple[Grant, ...]]
"""What is granted of each GPU, by UUID."""

EVERY_S = 1.0
FRESH_S = 0.5
MEMORY_BACK_S = 15.0
MEMORY_LOOK_S = 0.25
SLACK_BYTES = 512 << 20
"""Memory that may stay on a GPU after a server of ours ended (the driver's own, a neighbour's growth)."""


class BoxWatch:
    """Samples in a thread, since NVML blocks; `grants` and `roots` tell who holds a GPU, and the servers' shims."""

    def __init__(
        self,
        sample: Callable[[], Box],
        hub: Hub,
        series: SeriesStore,
        grants: Callable[[], Grants],
        roots: Callable[[], Mapping[int, str]],
    ) -> None:
        self._sample = sample
        self._hub = hub
        self._series = series
        self._grants = grants
        self._roots = roots
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._newest: Box | None = None
        self._read_at = 0.0

    async def box(self) -> Box:
        """Return the newest reading, taking one where there is none from the last moment."""
        newest = self._newest
        if newest is None or asyncio.get_running_loop().time() - self._read_at > EVERY_S + FRESH_S:
            return await self.fresh()
        return newest

    async def fresh(self) -> Box:
        """Take a reading now."""
        async with self._lock:
            read = await asyncio.to_thread(self._sample)
            grants, roots = self._grants(), self._roots()
            self._newest = await asyncio.to_thread(_with_all_servers, read, grants, roots)
            self._read_at = asyncio.get_running_loop().time()
            return self._newest

    def look_now(self) -> None:
        """Have the next reading taken at once: something changed."""
        self._wake.set()

    async def run(self, needed: Callable[[], bool]) -> None:
        """Take and publish a reading each second, while somebody looks or a server runs."""
        while True:
            if needed():
                try:
                    box = await self.fresh()
                except Exception:
                    log.exception("the box cannot be read")
                else:
                    self._hub.publish(BoxUpdate(box))
                    for gpu in box.gpus:
                        self._series.append(f"gpu {gpu.uuid}", box.at, gpu_figures(gpu))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), EVERY_S)
            self._wake.clear()

    async def memory_back(self, before: Mapping[str, int]) -> str:
        """Wait, within reason, until GPUs hold no more than they did `before` (bytes by UUID).

        Returns what is to be told where they do, or where that cannot be read; empty where all is back.
        """
        if not before:
            return ""
        deadline = time.monotonic() + MEMORY_BACK_S
        while True:  # NVML tells of no event
            gpus = [gpu for gpu in (await self.fresh()).gpus if gpu.uuid in before]
            grown = {gpu.index: _used_bytes(gpu) - before[gpu.uuid] for gpu in gpus}
            held = [f"GPU {index} +{more / 2**30:.1f} GiB" for index, more in grown.items() if more > SLACK_BYTES]
            if held and time.monotonic() < deadline:
                await asyncio.sleep(MEMORY_LOOK_S)
                continue
            if held:
                return f"GPU memory has not come back after {MEMORY_BACK_S:.0f} s: {', '.join(held)}"
            lost = [f"GPU {gpu.index}: {gpu.refusal}" for gpu in gpus if isinstance(gpu.memory_used_bytes, Missing)]
            return f"whether its memory is back is not known: {', '.join(lost)}" if lost else ""


def _used_bytes(gpu: Gpu) -> int:
    return 0 if isinstance(gpu.memory_used_bytes, Missing) else gpu.memory_used_bytes


def _with_all_servers(box: Box, grants: Grants, roots: Mapping[int, str]) -> Box:
    return replace(box, gpus=tuple(_with_servers(gpu, grants, roots) for gpu in box.gpus))


def _with_servers(gpu: Gpu, grants: Grants, roots: Mapping[int, str]) -> Gpu:
    processes = gpu.processes
    if not isinstance(processes, Missing):
        processes = tuple(replace(process, server=_server_of(process, roots)) for process in processes)
    return replace(gpu, grants=grants.get(gpu.uuid, ()), processes=processes)


def _server_of(process: GpuProcess, roots: Mapping[int, str]) -> str | None:
    """Name the server whose shim a process descends from: shims are subreapers, so descent never breaks."""
    if not roots:
        return None
    try:
        return next((roots[pid] for pid in _ancestry(process.pid) if pid in roots), None)
    except psutil.Error:
        return None


def _ancestry(pid: int) -> list[int]:
    return [pid, *(parent.pid for parent in psutil.Process(pid).parents())]
