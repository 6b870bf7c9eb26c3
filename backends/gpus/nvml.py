"""The NVIDIA driver's own figures, through NVML; beside `nvml_figures` the only importer of pynvml.

Each figure is read on its own: one that a GPU does not support is Missing and leaves the others whole. A GPU that falls
off the bus stays listed under its last known index, UUID and name. A driver that is reloaded is opened again.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pynvml

from backends.gpus.nvml_figures import (
    DRIVER_IS_GONE,
    NO_MEMORY_FIGURE,
    NOT_SUPPORTED,
    ecc_errors,
    figure,
    memory,
    processes,
    quietly,
    reason_of,
    throttling,
)
from backends.gpus.sampler import GpuReading, MemoryNow
from backends.gpus.xids import WatchEndedError, XidWatch
from backends.snapshots import EccErrors, Gpu, Missing

LONGEST_PAUSE_S = 30.0
ECC_EVERY_S = 10.0
"""Counting errors of the memory takes longer than the other figures, and seldom changes."""

RARE_EVERY_S = 5.0
"""How old may be what seldom changes and decides nothing: each call costs as much as one for what does."""

XID_WAIT_MS = 500
NO_DEVICES = "the NVIDIA driver works but has no GPU to show: none is fitted, or none was given to this container"
VANISHED = "the driver does not list it any more; dmesg may say why"


@dataclass(frozen=True, slots=True)
class _Rare:
    """What seldom changes of a GPU, as it was `read_at`."""

    read_at: float
    name: str | Missing
    power_limit_mw: int | Missing
    throttling: tuple[str, ...] | Missing


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """The UUIDs that a GPU is near to; what hangs on its NUMA node is no further than the node's own bridges."""

    nvlink: tuple[str, ...]
    same_node: tuple[str, ...]


class Nvml:
    """Reads every GPU of the box; opens NVML at the first reading. Not to be used by two threads at once.

    With `watches_xids` a thread of its own hears of the driver's errors, from the first reading until `close`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, watches_xids: bool = False) -> None:
        self._clock = clock
        self._watches_xids = watches_xids
        self._xids: XidWatch | None = None
        self._ecc: dict[str, tuple[float, EccErrors | Missing]] = {}
        self._rare: dict[str, _Rare] = {}
        self._versions: tuple[str | Missing, int | Missing] | None = None
        self._is_open = False
        self._failures = 0
        self._retry_at = 0.0
        self._closed_because = ""
        self._known: dict[str, Gpu] = {}
        self._neighbours: dict[str, _Neighbours] = {}

    def read(self) -> GpuReading:
        """Return what NVML tells now.

        Where it cannot be asked, that is the GPUs known so far with all figures Missing, or why there are none.
        """
        for _ in range(2):  # a driver that was reloaded since the last reading answers to the second try
            if not self._open():
                break
            try:
                reading = self._read()
            except pynvml.NVMLError as error:
                self._close(error)
            else:
                self._failures = 0
                return reading
        reason = self._closed_because
        known = sorted(self._known.values(), key=lambda gpu: gpu.index)
        return GpuReading(tuple(_unreadable(gpu, reason) for gpu in known), None if known else reason)

    def memory(self, uuids: Sequence[str]) -> dict[str, MemoryNow | Missing]:
        """Return what is used and free of GPUs now, by UUID, as `read` does: some tens of microseconds each.

        Other than the rest, any thread may call it at any time; before the first reading all is Missing.
        """
        found: dict[str, MemoryNow | Missing] = {}
        for uuid in uuids:
            try:
                _, used, free = memory(pynvml.nvmlDeviceGetHandleByUUID(uuid))
            except pynvml.NVMLError as error:
                found[uuid] = Missing(reason_of(error))
                continue
            if isinstance(used, Missing) or isinstance(free, Missing):
                found[uuid] = used if isinstance(used, Missing) else Missing(NO_MEMORY_FIGURE)
            else:
                found[uuid] = MemoryNow(used, free)
        return found

    def held(self, uuids: Sequence[str]) -> dict[str, dict[int, int]]:
        """Return what each process holds of GPUs now, in bytes by UUID and pid, as `memory` does.

        What the driver does not tell is left out.
        """
        found: dict[str, dict[int, int]] = {}
        for uuid in uuids:
            with contextlib.suppress(pynvml.NVMLError):
                listed = processes(pynvml.nvmlDeviceGetHandleByUUID(uuid))
                told = () if isinstance(listed, Missing) else listed
                found[uuid] = {one.pid: one.memory_bytes for one in told if not isinstance(one.memory_bytes, Missing)}
        return found

    def persistence(self) -> dict[str, bool | Missing]:
        """Tell by UUID whether persistence mode is on, for the GPUs that were read so far."""
        modes: dict[str, bool | Missing] = {}
        for uuid in self._known:
            try:
                modes[uuid] = bool(pynvml.nvmlDeviceGetPersistenceMode(pynvml.nvmlDeviceGetHandleByUUID(uuid)))
            except pynvml.NVMLError as error:
                modes[uuid] = Missing(reason_of(error))
        return modes

    def close(self) -> None:
        """Let go of NVML; the next reading opens it again."""
        if self._xids is not None:
            self._xids.close()
            self._xids = None
        self._rare.clear()
        self._versions = None
        if self._is_open:
            self._is_open = False
            quietly(pynvml.nvmlShutdown)

    def _open(self) -> bool:
        if not self._is_open and self._clock() >= self._retry_at:
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                self._back_off(error)
            else:
                self._is_open = True
        return self._is_open

    def _close(self, error: pynvml.NVMLError) -> None:
        self.close()
        self._back_off(error)

    def _back_off(self, error: pynvml.NVMLError) -> None:
        """Try again at once after the first failure, then after 1, 2, 4 … seconds."""
        self._failures += 1
        pause = 0.0 if self._failures == 1 else min(LONGEST_PAUSE_S, 2.0 ** min(self._failures - 2, 8))
        self._retry_at = self._clock() + pause
        self._closed_because = reason_of(error)

    def _read(self) -> GpuReading:
        gpus = [self._gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
        present = {gpu.uuid for gpu in gpus}
        if present != self._neighbours.keys():
            self._neighbours = _find_neighbours([gpu.uuid for gpu in gpus])
        gpus = [_among(gpu, self._neighbours[gpu.uuid]) for gpu in gpus]
        gpus += [_unreadable(gpu, VANISHED) for uuid, gpu in self._known.items() if uuid not in present]
        if self._watches_xids:
            self._xids = self._xids or XidWatch(_Events())
            gpus = [replace(gpu, xids=self._xids.of(gpu.uuid)) for gpu in gpus]
        self._known |= {gpu.uuid: gpu for gpu in gpus if not gpu.uuid.startswith(_NAMELESS)}
        # Stable: where the driver numbers anew, its own GPU comes before the vanished one of the same index.
        gpus.sort(key=lambda gpu: gpu.index)
        if self._versions is None:
            versions = pynvml.nvmlSystemGetDriverVersion, pynvml.nvmlSystemGetCudaDriverVersion_v2
            self._versions = figure(versions[0]), figure(versions[1])
        driver, cuda = self._versions
        return GpuReading(
            gpus=tuple(gpus),
            no_gpus=None if gpus else NO_DEVICES,
            driver_version=None if isinstance(driver, Missing) else driver,
            cuda_version=None if isinstance(cuda, Missing) else f"{cuda // 1000}.{cuda % 1000 // 10}",
        )

    def _gpu(self, index: int) -> Gpu:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(pynvml.nvmlDeviceGetUUID(handle))
            return _read_gpu(index, uuid, handle, self._rare_of(uuid, handle), self._ecc_errors(uuid, handle))
        except pynvml.NVMLError as error:
            if error.value in DRIVER_IS_GONE:
                raise
            known = next((gpu for gpu in self._known.values() if gpu.index == index), None)
            return _unreadable(known or _nameless(index), reason_of(error))

    def _rare_of(self, uuid: str, handle: Any) -> _Rare:
        known = self._rare.get(uuid)
        if known is None or self._clock() - known.read_at >= RARE_EVERY_S:
            known = self._rare[uuid] = _Rare(
                self._clock(),
                figure(pynvml.nvmlDeviceGetName, handle),
                figure(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle),
                throttling(handle),
            )
        return known

    def _ecc_errors(self, uuid: str, handle: Any) -> EccErrors | Missing:
        read_at, errors = self._ecc.get(uuid, (0.0, None))
        if errors is None or self._clock() - read_at >= ECC_EVERY_S:
            errors = ecc_errors(handle)
            self._ecc[uuid] = self._clock(), errors
        return errors


class _Events:
    """The set of events that NVML tells XIDs by; `wait` is called in another thread than the rest."""

    def __init__(self) -> None:
        self._set: Any = None
        self._uuids: dict[int, str] = {}

    def register(self, uuid: str) -> bool | Missing:
        """See XidEvents."""
        kind = pynvml.nvmlEventTypeXidCriticalError
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            if not pynvml.nvmlDeviceGetSupportedEventTypes(handle) & kind:
                return Missing(NOT_SUPPORTED)
            self._set = self._set or pynvml.nvmlEventSetCreate()
            self._uuids[_address(handle)] = uuid
            pynvml.nvmlDeviceRegisterEvents(handle, kind, self._set)
        except pynvml.NVMLError as error:
            may_change = error.value in DRIVER_IS_GONE or error.value == pynvml.NVML_ERROR_GPU_IS_LOST
            return False if may_change else Missing(reason_of(error))
        return True

    def wait(self) -> tuple[str, int] | None:
        """See XidEvents."""
        try:
            event = pynvml.nvmlEventSetWait_v2(self._set, XID_WAIT_MS)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_TIMEOUT:
                return None
            if error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
                time.sleep(XID_WAIT_MS / 1000)  # it answers so at once, for as long as the GPU is lost
                return None
            raise WatchEndedError(reason_of(error)) from error
        uuid = self._uuids.get(_address(event.device))
        return None if uuid is None else (uuid, int(event.eventData))

    def close(self) -> None:
        """See XidEvents."""
        if self._set:
            quietly(lambda: pynvml.nvmlEventSetFree(self._set))


_NAMELESS = "unreadable-"


def _nameless(index: int) -> Gpu:
    """A GPU that could not be asked for its UUID even once."""
    none = Missing("not read yet")
    return Gpu(index, f"{_NAMELESS}{index}", "unknown GPU", none, none, none, none, none, none, none, none)


def _unreadable(gpu: Gpu, reason: str) -> Gpu:
    missing = Missing(reason)
    return replace(
        gpu,
        memory_used_bytes=missing,
        memory_free_bytes=missing,
        utilization=missing,
        temperature_c=missing,
        power_w=missing,
        power_limit_w=missing,
        processes=missing,
        refusal=reason,
        ecc=missing,
        throttling=missing,
    )


def _read_gpu(index: int, uuid: str, handle: Any, rare: _Rare, ecc: EccErrors | Missing) -> Gpu:
    total, used, free = memory(handle)
    rates = figure(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power_mw = figure(pynvml.nvmlDeviceGetPowerUsage, handle)
    limit_mw = rare.power_limit_mw
    mig_modes = figure(pynvml.nvmlDeviceGetMigMode, handle)
    mig = not isinstance(mig_modes, Missing) and mig_modes[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    return Gpu(
        index=index,
        uuid=uuid,
        name="unknown GPU" if isinstance(rare.name, Missing) else str(rare.name),
        memory_total_bytes=total,
        memory_used_bytes=used,
        memory_free_bytes=free,
        utilization=rates if isinstance(rates, Missing) else rates.gpu / 100,
        temperature_c=figure(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=power_mw if isinstance(power_mw, Missing) else power_mw / 1000,
        power_limit_w=limit_mw if isinstance(limit_mw, Missing) else limit_mw / 1000,
        processes=processes(handle),
        mig=mig,
        refusal=f"MIG is enabled: gpubox assigns whole GPUs (`sudo nvidia-smi -i {index} -mig 0`)" if mig else None,
        ecc=ecc,
        throttling=rare.throttling,
    )


def _among(gpu: Gpu, near: _Neighbours) -> Gpu:
    return replace(gpu, nvlink=near.nvlink, same_node=near.same_node) if near.nvlink or near.same_node else gpu


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _find_neighbours(uuids: list[str]) -> dict[str, _Neighbours]:
    """Ask which GPUs are near to which; it changes only when the GPUs do."""

    def ask(call: Callable[..., Any], *args: object) -> Any:
        try:
            return call(*args)
        except pynvml.NVMLError as error:
            if error.value in DRIVER_IS_GONE:
                raise
            return None

    handles = {uuid: ask(pynvml.nvmlDeviceGetHandleByUUID, uuid) for uuid in uuids}

    def nvlinked(one: Any, other: Any) -> bool:
        status = ask(pynvml.nvmlDeviceGetP2PStatus, one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
        return bool(status == pynvml.NVML_P2P_STATUS_OK)

    def on_one_node(one: Any, other: Any) -> bool:
        level = ask(pynvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
        return level is not None and level <= pynvml.NVML_TOPOLOGY_NODE

    def near(uuid: str, are_near: Callable[[Any, Any], bool]) -> tuple[str, ...]:
        handle = handles[uuid]
        others = {other: one for other, one in handles.items() if other != uuid and one is not None}
        return () if handle is None else tuple(other for other, one in others.items() if are_near(handle, one))

    return {uuid: _Neighbours(near(uuid, nvlinked), near(uuid, on_one_node)) for uuid in uuids}
