"""Starting an engine: from its record to its shim, on GPUs that are there and granted to it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backends import paths
from backends.diagnosis.ended import oom_kills
from backends.engines.base import Placement
from backends.keeper.allocation import grant_again, indices_of
from backends.keeper.launching import engine_environ, lock_path, shim_spec, tidy
from backends.keeper.record import keep_copy
from backends.keeper.rooms import claim, granted_first, memory_in
from backends.keeper.turns import gate_path
from backends.processes.facts import ask_again
from backends.processes.launch import launch

if TYPE_CHECKING:
    from backends.keeper.subject import Subject

LOOK_S = 0.25
SHIM_SPEAKS_S = 5.0


async def await_shim(subject: Subject) -> None:
    """Give a shim that the keeper before us was just starting, when it died, the time to say so.

    Facts that cannot be read although the shim lives are asked for again.
    """
    if subject.facts() is None:
        await asyncio.to_thread(ask_again, lock_path(subject.name))
    deadline = time.monotonic() + SHIM_SPEAKS_S
    while subject.facts() is None and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)


async def start_engine(subject: Subject) -> None:
    """Start the shim of a launch that is on record; raises GpuboxError, OSError and ValueError."""
    from profiles.secrets import resolve_secrets

    profile = subject.profile
    grants = await _placed(subject)
    record = subject.record
    placement = Placement(record.gpu_indices, record.port, record.environ, record.uds)
    plan = subject.engine.plan(profile, placement)
    secrets = resolve_secrets(profile, record.environ)
    environ = engine_environ(record.environ, plan, profile, secrets, record.gpu_indices)
    subject.keep(oom_kills=await asyncio.to_thread(oom_kills, os.getpid()))
    await asyncio.to_thread(keep_copy, subject.record)
    if record.gated:
        os.mkfifo(gate_path(record.folder), 0o600)
    if record.uds is not None:
        paths.private(Path(record.uds).parent)
    spec, held = shim_spec(record, profile, plan, environ, grants), subject.around.ledger
    await asyncio.to_thread(launch, spec, record.folder, inherited=held.descriptors(record.name))
    await asyncio.to_thread(tidy, record, profile.logs.keep)


async def _placed(subject: Subject) -> tuple[str, ...]:
    """See that the GPUs are there and still granted, and return the ledger's files; raises GpuboxError."""
    record, ledger = subject.record, subject.around.ledger
    if not record.gpus:
        return ()
    box = await subject.around.box.fresh()
    indices = indices_of(record.gpus, box)
    if indices != record.gpu_indices:
        subject.keep(gpu_indices=indices)
        subject.show(gpu_indices=indices)
    files = ledger.files(record.name)
    if len(files) < len(record.gpus):
        return await asyncio.to_thread(grant_again, ledger, record.name, granted_first(record))
    if record.uds is not None and not record.spare:
        # It may have slept when it was told to start again, and others have been granted what it had.
        promised = subject.around.switching.promised(record.name)
        await asyncio.to_thread(claim, ledger, record, memory_in(box), promised, must_be_free=False)
    return files
