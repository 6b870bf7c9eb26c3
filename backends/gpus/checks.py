"""The driver, the GPUs and what compiling for them needs, as checks."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from backends.checks import GIB, Check
from backends.gpus.nvml import Nvml
from backends.gpus.sampler import GpuReading
from backends.gpus.selection import people
from backends.gpus.visibility import visible_uuids
from backends.snapshots import Gpu, Missing

LINK_LIMIT_S = 4.0
PCI = Path("/sys/bus/pci/devices")
NVIDIA = "0x10de"
DISPLAY_CLASS = "0x03"


def gpu_checks(nvml: Nvml, reading: GpuReading, environ: Mapping[str, str]) -> list[Check]:
    """Look at the driver, at each GPU, at who else is on them, and at what CUDA_VISIBLE_DEVICES leaves of them."""
    if reading.no_gpus:
        return [_no_gpus(reading)]
    modes = nvml.persistence()
    checks = [_driver(reading), *(_gpu(gpu, modes.get(gpu.uuid)) for gpu in reading.gpus)]
    strangers = [
        f"GPU {gpu.index}: {people(gpu.processes)}"
        for gpu in reading.gpus
        if not isinstance(gpu.processes, Missing) and gpu.processes
    ]
    if strangers:
        found = "; ".join(strangers)
        checks.append(Check("in use", None, found, "`auto` passes these over, if they are not gpubox's own servers"))
    else:
        checks.append(Check("in use", True, "no process is on any GPU"))
    return [*checks, visibility_check(reading, environ.get("CUDA_VISIBLE_DEVICES"))]


def _no_gpus(reading: GpuReading) -> Check:
    found = reading.no_gpus or ""
    if reading.driver_version or not has_nvidia_hardware():
        return Check("GPUs", None, found, "servers run on the CPU; for GPUs: install the driver, docker run --gpus all")
    return Check(
        "GPUs", False, f"there is an NVIDIA card, but {found}", "install or load the NVIDIA driver, then reboot"
    )


def has_nvidia_hardware(devices: Path = PCI) -> bool:
    """Tell whether an NVIDIA display or 3D controller is on the PCI bus, with or without a driver."""
    for device in devices.glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == NVIDIA and kind.startswith(DISPLAY_CLASS):
            return True
    return False


def _driver(reading: GpuReading) -> Check:
    if not reading.driver_version:
        return Check("driver", False, "NVML does not tell its version", "see `nvidia-smi` and dmesg")
    return Check("driver", True, f"{reading.driver_version}, for CUDA up to {reading.cuda_version or '?'}")


def _gpu(gpu: Gpu, persistence: bool | Missing | None) -> Check:
    name = f"GPU {gpu.index}"
    if gpu.refusal:
        remedy = f"sudo nvidia-smi -i {gpu.index} -mig 0" if gpu.mig else "see dmesg for its Xid; reboot"
        return Check(name, None if gpu.mig else False, f"{gpu.name}: {gpu.refusal}", remedy)
    total, free = gpu.memory_total_bytes, gpu.memory_free_bytes
    room = "memory not told" if isinstance(total, Missing) else f"{total / GIB:.1f} GiB"
    if not isinstance(free, Missing):
        room += f", {free / GIB:.1f} free"
    found = f"{gpu.name}, {room}"
    if persistence is False:
        return Check(name, None, f"{found}; persistence mode is off: first use is slow", "sudo nvidia-smi -pm 1")
    return Check(name, True, found)


def visibility_check(reading: GpuReading, value: str | None) -> Check:
    """Tell what an inherited CUDA_VISIBLE_DEVICES leaves."""
    name = "visible GPUs"
    if value is None:
        return Check(name, True, "all: CUDA_VISIBLE_DEVICES is not set")
    visible = visible_uuids(reading.gpus, value)
    indices = [str(gpu.index) for gpu in reading.gpus if gpu.uuid in visible]
    found = f"CUDA_VISIBLE_DEVICES={value} leaves {', '.join(indices) or 'none'} of {len(reading.gpus)}"
    remedy = "unset it, unless a scheduler (Slurm, Kubernetes) set it for this job"
    return Check(name, None, found, remedy)


def linkage_check(environ: Mapping[str, str], has_driver: bool) -> Check:
    """Try to link with -lcuda, as Triton and torch.compile do when they build a kernel's launcher."""
    name = "-lcuda"
    compiler = environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if not has_driver:
        return Check(name, True, "not needed: there is no NVIDIA driver")
    if compiler is None:
        return Check(name, False, "there is no C compiler to build kernels' launchers with", "apt install gcc")
    folders = _libcuda_folders(environ)
    if not folders:
        remedy = "sudo ldconfig, or TRITON_LIBCUDA_PATH=FOLDER of libcuda.so.1"
        return Check(name, False, "libcuda.so.1 is not among the linker's libraries", remedy)
    problem = _link_problem(compiler, folders)
    if not problem:
        return Check(name, True, f"links, in {folders[0]}")
    if (Path(folders[0]) / "libcuda.so").exists():
        return Check(name, None, f"does not link: {problem}", "try it by hand: gcc -lcuda")
    remedy = f"sudo ln -s libcuda.so.1 {folders[0]}/libcuda.so (or install cuda-driver-dev)"
    return Check(name, None, f"does not link: {folders[0]} has libcuda.so.1 but no libcuda.so", remedy)


def _libcuda_folders(environ: Mapping[str, str]) -> list[str]:
    """Return the folders where Triton looks: its own variable, the linker's cache, LD_LIBRARY_PATH, in this order."""
    if named := environ.get("TRITON_LIBCUDA_PATH"):
        return [named]
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin:" + environ.get("PATH", ""))
    listed: list[str] = []
    if ldconfig:
        done = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, timeout=LINK_LIMIT_S, check=False)
        listed = done.stdout.splitlines()
    found = [
        line.split()[-1] for line in listed if "libcuda.so.1 " in line and "(libc6)" not in line
    ]  # not 32-bit ones
    folders = [str(Path(library).parent) for library in found]
    if folders:
        return list(dict.fromkeys(folders))
    return [
        folder
        for folder in environ.get("LD_LIBRARY_PATH", "").split(":")
        if folder and (Path(folder) / "libcuda.so.1").exists()
    ]


def _link_problem(compiler: str, folders: list[str]) -> str:
    """Link an empty program with -lcuda; returns the linker's first words, empty where it links."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "main.c"
        source.write_text("int main(void) { return 0; }\n")
        command = [compiler, str(source), "-o", f"{scratch}/main", *(f"-L{folder}" for folder in folders), "-lcuda"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LINK_LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    words = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (words[0] if words else f"{compiler} ends with {done.returncode}")
