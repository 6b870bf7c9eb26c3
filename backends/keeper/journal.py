"""What is written down of a switch before anything is changed, so that another keeper can go on with it.

`switch-ID.json` in the state folder holds what was decided, not how far it came: every step asks what is true. It is
written once more where the switch is to be taken back. It may hold the environment that a server is to be started in,
keys included: mode 0600 in a folder of mode 0700.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from backends import paths
from backends.processes.facts import current_boot_id
from backends.snapshots import StartRequest, dump, load
from backends.switches import GivingWay, SwitchStep, Way

log = logging.getLogger(__name__)

Phase = Literal["switching", "restoring"]


@dataclass(frozen=True, slots=True)
class Journal:
    """A switch as it was decided: who gives way, who of them `served` before, and where the server goes.

    `places` are GPUs' UUIDs, or "cpu": all that it concerns. `start` says how to start the server, where it does not
    live; None: as it was. `error` says why the switch is taken back. `steps` are only told. `boot_id` is that of the
    kernel: a switch ends with all servers where the box is booted again.
    """

    id: str
    to: str
    began_at: float
    way: Way
    giving: tuple[GivingWay, ...]
    served: tuple[str, ...]
    places: tuple[str, ...]
    start: StartRequest | None = None
    drain_s: float | None = None
    phase: Phase = "switching"
    error: str | None = None
    steps: tuple[SwitchStep, ...] = ()
    boot_id: str = field(default_factory=current_boot_id)
    schema: int = 1


def write(journal: Journal) -> None:
    """Write a journal, whole or not at all, and see that it lasts; blocks, raises OSError."""
    path = _path(journal.id)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(dump(journal))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def erase(switch_id: str) -> None:
    """Remove the journal of a switch that is over; blocks, raises OSError."""
    _path(switch_id).unlink(missing_ok=True)


def read_all() -> list[Journal]:
    """Return the journals that an earlier keeper has left, oldest first; one that cannot be read is set aside."""
    journals = []
    for path in sorted(paths.state_dir().glob("switch-*.json")):
        try:
            journals.append(load(Journal, path.read_bytes()))
        except (OSError, ValueError, ValidationError) as problem:
            log.warning("%s cannot be used: %s", path, problem)
            path.rename(path.with_suffix(".json.broken"))
    return sorted(journals, key=lambda journal: journal.began_at)


def _path(switch_id: str) -> Path:
    return paths.private(paths.state_dir()) / f"switch-{switch_id}.json"
