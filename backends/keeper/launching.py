"""From a record to the shim's spec, and what else a launch needs: environment, folders, the wait for its end."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends import paths
from backends.engines.base import SCRAPE_MARK, Plan
from backends.keeper.turns import gate_step
from backends.processes.logs import prune

if TYPE_CHECKING:
    from backends.keeper.record import Record
    from profiles.schema import Profile

TERM_AGAIN_S = 2.0
"""vLLM swallows a SIGTERM that comes while its engine initialises (5 of 5 tries), so it is sent again."""

KILL_AFTER_S = 20.0
"""vLLM ends 4 s after a SIGTERM; with requests that never finish it does not end at all."""

KEPT_LAUNCHES = 3
NOT_HANDED_ON = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "GPUBOX_HOME")


def engine_environ(
    asked_in: Mapping[str, str], plan: Plan, profile: Profile, secrets: Mapping[str, str], gpu_indices: tuple[int, ...]
) -> dict[str, str]:
    """Return the engine's whole environment: that of whoever asked, the engine's and the profile's additions, the GPUs.

    GPUs are handed over by index in PCI order: several vLLM versions refuse UUIDs. On the CPU no GPU is visible.
    """
    environ = {name: value for name, value in asked_in.items() if name not in NOT_HANDED_ON}
    environ |= {"PYTHONUNBUFFERED": "1"} | plan.environ | profile.env | dict(secrets)
    environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in gpu_indices)
    return environ


def shim_spec(
    record: Record, profile: Profile, plan: Plan, environ: Mapping[str, str], grants: Sequence[str]
) -> dict[str, Any]:
    """Return the spec that `backends.processes.launch` hands to the shim; docs/architecture.md lists its keys."""
    steps = [*plan.steps]
    if record.gated:
        steps.insert(-1, gate_step(record.folder))
    return {
        "schema": 1,
        "name": record.name,
        "steps": [{"label": step.label, "argv": list(step.argv)} for step in steps],
        "environ": dict(environ),
        "cwd": str(record.folder),
        "log": record.log_path,
        "log_max_bytes": profile.logs.max_mb << 20,
        "log_parts": 4,
        "drop_lines_with": SCRAPE_MARK,
        "facts": str(record.facts_path),
        "progress": str(record.progress_path),
        "locks": [str(lock_path(record.name))],
        "grants": list(grants),
        "term_again_s": TERM_AGAIN_S,
        "kill_after_s": KILL_AFTER_S,
    }


def lock_path(name: str) -> Path:
    """Return the file that a server's shim holds locked for as long as it lives."""
    return paths.server_dir(name) / "shim.lock"


def launch_name(now: float) -> str:
    """Return the name of a launch's folder: unique, and sorted by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{int(now % 1 * 1000):03d}"


def tidy(record: Record, keep_logs: int) -> None:
    """Drop logs and launch folders of older starts."""
    prune(paths.log_dir(), record.name, keep_logs)
    launches = sorted(path for path in paths.server_dir(record.name).iterdir() if path.is_dir())
    for old in launches[:-KEPT_LAUNCHES]:
        if old.name != record.launch:
            for socket in (paths.engine_socket(old), paths.engine_socket(old / "front", "control")):
                socket.unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)


async def readable(descriptor: int) -> None:
    """Wait until a descriptor is readable; a pidfd is when its process has ended."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
