"""What the keeper writes down of a server: enough to find it again after the keeper's own death, and to start it again.

`server.json` is written before the shim is started, so that no shim can run that no record names. It holds the
environment the engine was started in, keys included: mode 0600 in a folder of mode 0700.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from backends import paths
from backends.processes.facts import is_alive, read_facts
from backends.snapshots import Missing, ModelKind, Server, ServerState, dump, load
from backends.starts import Card, Exit
from backends.switches import Level, Sleep

if TYPE_CHECKING:
    from backends.engines.base import Engine
    from profiles.schema import Profile

log = logging.getLogger(__name__)

COPY = "record.json"


@dataclass(frozen=True, slots=True)
class Record:
    """A server as it was asked for, and the newest launch of it; `launch` is the name of the launch's folder.

    `asked_port` is what was asked for over the profile's port, as in StartRequest; `again` says that a launch that is
    not `wanted` any more is to be followed by another, `retry_at` when one that failed is. `reserved` is what the
    ledger grants, bytes by the GPU's UUID (None: all of it); `gated` says that the start waits for its turn,
    `oom_kills` how often the kernel had killed for want of memory before it. `profile_digest` is as in StartRequest.

    Of a server that sleeps: `uds` is its engine's socket, `port` then that of its front; `spare` says that it is to
    sleep as soon as it is ready. `asked_level` is how deep it was told to sleep (None: to be awake), `changing` what of
    that has begun and not ended. `awake_bytes` and `asleep_bytes` are what it was seen to take of its GPUs, by UUID;
    `host_bytes` is what it has pinned of the host's memory.
    """

    name: str
    profile: dict[str, Any]
    environ: dict[str, str]
    gpus: tuple[str, ...]
    gpu_indices: tuple[int, ...]
    port: int
    any_port: bool
    launch: str
    log_path: str
    launched_at: float
    asked_port: int | None = None
    wanted: bool = True
    again: bool = False
    attempt: int = 0
    why: str = ""
    warnings: tuple[str, ...] = ()
    gpu_used_before: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, int | None] = field(default_factory=dict)
    gated: bool = False
    retry_at: float | None = None
    card: Card | None = None
    oom_kills: int | None = None
    ready_at: float | None = None
    kind: ModelKind = ModelKind.UNKNOWN
    engine_version: str | None = None
    max_model_len: int | None = None
    exit: Exit | None = None
    cause: str | None = None
    ended: bool = False
    profile_digest: str | None = None
    uds: str | None = None
    spare: bool = False
    asked_level: Level | None = None
    changing: Literal["sleep", "wake"] | None = None
    awake_bytes: dict[str, int] = field(default_factory=dict)
    asleep_bytes: dict[str, int] = field(default_factory=dict)
    host_bytes: int = 0
    last_used_at: float | None = None
    schema: int = 1

    @property
    def folder(self) -> Path:
        """The folder of the newest launch."""
        return paths.server_dir(self.name) / self.launch

    @property
    def facts_path(self) -> Path:
        """Where the shim says what became of it."""
        return self.folder / "process.json"

    @property
    def progress_path(self) -> Path:
        """Where the shim puts the newest progress line."""
        return self.folder / "progress.json"


def engine_socket_of(name: str, launch: str) -> str:
    """Return where the engine of a launch listens that has a front before it."""
    return str(paths.engine_socket(paths.server_dir(name) / launch))


def first_state(record: Record) -> ServerState:
    """Return the state that a launch begins in."""
    return ServerState.QUEUED if record.gated else ServerState.STARTING


def save(record: Record, *, durable: bool = True) -> None:
    """Write a record, whole or not at all; raises OSError.

    One that is not `durable` outlasts the keeper, not a power cut: that is enough of what ends with its engine.
    """
    _write(record, paths.private(paths.server_dir(record.name)) / "server.json", durable=durable)


def keep_copy(record: Record) -> None:
    """Put a copy beside the launch, for the case that the record is damaged while its engine runs; raises OSError."""
    _write(record, paths.private(record.folder) / COPY)


def _write(record: Record, path: Path, *, durable: bool = True) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(dump(record))
        file.flush()
        if durable:
            os.fsync(file.fileno())
    partial.replace(path)


def read_all() -> list[Record]:
    """Return every record that can be read; one that cannot is set aside as `server.json.broken`, and told.

    Where the server runs, the copy that was made at its launch takes the record's place.
    """
    records = []
    for folder in sorted(path for path in paths.server_dir("x").parent.glob("*") if path.is_dir()):
        path = folder / "server.json"
        try:
            if path.exists():
                records.append(_read(path, folder.name))
                continue
        except (OSError, ValueError, ValidationError) as problem:
            log.warning("%s cannot be used: %s", path, problem)
            path.rename(path.with_suffix(".json.broken"))
        if (copy := _copy_of_what_runs(folder)) is not None:
            log.warning("%s runs: it is taken up as it was launched", copy.name)
            records.append(copy)
    return records


def _read(path: Path, name: str) -> Record:
    record = load(Record, path.read_bytes())
    if record.name != name:
        raise ValueError(f"it names the server {record.name!r}")
    return record


def _copy_of_what_runs(folder: Path) -> Record | None:
    """Return the record that the newest launch was made from, where its shim lives."""
    for path in sorted(folder.glob(f"*/{COPY}"), reverse=True)[:1]:
        facts = read_facts(path.with_name("process.json"))
        if not isinstance(facts, Missing) and is_alive(facts.shim):
            try:
                return _read(path, folder.name)
            except (OSError, ValueError, ValidationError) as problem:
                log.warning("%s cannot be used: %s", path, problem)
    return None


def ended_servers(records: list[Record]) -> tuple[Server, ...]:
    """Return the snapshots of servers that have ended; a record whose profile is no longer understood is left out."""
    from backends.engines.registry import engine_named
    from profiles.errors import InvalidProfileError
    from profiles.schema import parse_profile

    servers = []
    for record in records:
        try:
            profile = parse_profile(record.profile, f"server {record.name}")
        except InvalidProfileError as problem:
            log.warning("%s", problem)
            continue
        state = ServerState.FAILED if record.cause else ServerState.STOPPED
        servers.append(server_of(record, profile, engine_named(profile.engine), state))
    return tuple(servers)


def erase(name: str) -> None:
    """Remove what is kept of a server; its logs stay."""
    shutil.rmtree(paths.server_dir(name), ignore_errors=True)


def server_of(record: Record, profile: Profile, engine: Engine, state: ServerState) -> Server:
    """Return the snapshot of a server as its record tells it."""
    return Server(
        name=record.name,
        profile=profile.name,
        engine=profile.engine,
        engine_version=record.engine_version,
        model=profile.model,
        served_name=engine.model_name(profile),
        kind=record.kind,
        state=state,
        state_since=record.exit.at if record.exit else record.ready_at or record.launched_at,
        gpus=record.gpus,
        gpu_indices=record.gpu_indices,
        host=profile.host,
        port=record.port,
        launched_at=record.launched_at,
        ready_at=record.ready_at,
        log_path=record.log_path,
        max_model_len=record.max_model_len,
        exit=record.exit,
        cause=record.cause,
        attempt=record.attempt,
        retry_at=record.retry_at,
        card=record.card,
        has_api_key="api_key" in profile.secrets,
        why=record.why,
        warnings=record.warnings,
        profile_digest=record.profile_digest,
        can_sleep=record.uds is not None,
        sleep=Sleep(record.asked_level, time.time()) if record.asked_level and not record.ended else None,
        host_bytes=0 if record.ended else record.host_bytes,
    )
