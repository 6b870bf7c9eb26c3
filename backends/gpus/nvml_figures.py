"""One figure of NVML at a time: what a GPU does not support is Missing; beside `nvml` the only importer of pynvml."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import pynvml

from backends.gpus.processes import describe
from backends.gpus.throttling import throttling_words
from backends.snapshots import EccErrors, GpuProcess, Missing

T = TypeVar("T")

LOST = "it fell off the bus (NVML: GPU is lost); dmesg names the Xid, and the box may need a reboot"
NOT_SUPPORTED = "not supported by this GPU"
NO_MEMORY_FIGURE = "the driver does not tell (memory shared with the host?)"

_REASONS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "NVML is not on this machine (libnvidia-ml.so.1): no NVIDIA driver, or a container started without its GPUs"
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded: `sudo modprobe nvidia`, or reboot",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "NVML and the loaded NVIDIA driver are of different versions (an upgrade?): reboot, or reload the driver"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not talk to the NVIDIA driver: look at the modes of /dev/nvidia*",
    pynvml.NVML_ERROR_NOT_SUPPORTED: NOT_SUPPORTED,
    pynvml.NVML_ERROR_GPU_IS_LOST: LOST,
    pynvml.NVML_ERROR_UNINITIALIZED: "the NVIDIA driver was restarted",
}
DRIVER_IS_GONE = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)


def memory(handle: Any) -> tuple[int | Missing, int | Missing, int | Missing]:
    """Return total, used and free as nvidia-smi shows them: what the driver reserves for itself is not used.

    Drivers before 510 have only the first form of the call, in which the reserve counts as used.
    """
    info = figure(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if isinstance(info, Missing):
        info = figure(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if isinstance(info, Missing):
        missing = Missing(NO_MEMORY_FIGURE) if info.reason == NOT_SUPPORTED else info
        return missing, missing, missing
    return info.total, info.used, info.free


def processes(handle: Any) -> tuple[GpuProcess, ...] | Missing:
    """Return the processes on a GPU, the largest first; one that computes and draws counts as computing."""
    compute = _listed(handle, "nvmlDeviceGetComputeRunningProcesses")
    if isinstance(compute, Missing):
        return compute
    found: dict[int, GpuProcess] = {}
    _add(found, compute, "compute")
    _add(found, _listed(handle, "nvmlDeviceGetMPSComputeRunningProcesses"), "compute")
    _add(found, _listed(handle, "nvmlDeviceGetGraphicsRunningProcesses"), "graphics")

    def size(process: GpuProcess) -> int:
        return 0 if isinstance(process.memory_bytes, Missing) else process.memory_bytes

    return tuple(sorted(found.values(), key=lambda process: (-size(process), process.pid)))


def _listed(handle: Any, function: str) -> list[Any] | Missing:
    """Call the newest form of a process list that this driver has."""
    procs: list[Any] | Missing = Missing(NOT_SUPPORTED)
    for form in ("_v3", "_v2"):
        procs = figure(getattr(pynvml, function + form), handle)
        if not isinstance(procs, Missing):
            break
    return procs


def _add(found: dict[int, GpuProcess], listed: Iterable[Any] | Missing, kind: Literal["compute", "graphics"]) -> None:
    if isinstance(listed, Missing):
        return
    sizes: dict[int, int | None] = {}
    for entry in listed:  # under MIG a process is listed once for each instance
        if entry.pid not in found:
            held = sizes.get(entry.pid)
            sizes[entry.pid] = entry.usedGpuMemory if held is None else held + (entry.usedGpuMemory or 0)
    for pid, held in sizes.items():
        command, user = describe(pid)
        told = Missing("the driver does not tell it for this process") if held is None else held
        found[pid] = GpuProcess(pid, command, user, told, kind)


def figure(call: Callable[..., T], *args: object) -> T | Missing:
    """Read one figure; raises only what concerns more than this figure: the GPU, or NVML as a whole."""
    try:
        return call(*args)
    except pynvml.NVMLError as error:
        if error.value in DRIVER_IS_GONE or error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
            raise
        return Missing(reason_of(error))


def reason_of(error: pynvml.NVMLError) -> str:
    """Say what an error means to a person."""
    return _REASONS.get(error.value, f"NVML: {str(error).rstrip('.')}")


def quietly(call: Callable[[], object]) -> None:
    """Call what may fail without harm."""
    try:
        call()
    except pynvml.NVMLError:
        return


def throttling(handle: Any) -> tuple[str, ...] | Missing:
    """Return in words why a GPU's clocks are held down now; that it has nothing to do is none of it."""
    reasons = figure(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if isinstance(reasons, Missing):  # drivers before 535 know the call by its old name only
        reasons = figure(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return reasons if isinstance(reasons, Missing) else throttling_words(reasons)


def ecc_errors(handle: Any) -> EccErrors | Missing:
    """Count the errors of the memory since the driver was loaded."""
    kinds = (pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
    counts: list[Any] = [
        figure(pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, pynvml.NVML_VOLATILE_ECC) for kind in kinds
    ]
    return next((count for count in counts if isinstance(count, Missing)), None) or EccErrors(*counts)
