"""What lasts of the past, in SQLite: the launches with their stage times and figures; the keeper writes, anyone reads.

Nothing here may disturb a server: what cannot be read is empty, what cannot be written is left out, and `problem`
says why. A file that is no database any more is set aside as `.broken`, and a new one begun.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from backends import paths
from backends.starts import StageTime, StartFigures

if TYPE_CHECKING:
    from profiles.schema import Profile

log = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_S = 5.0
"""How long a reading or writing waits for another process's lock before it gives up."""

CPU = "CPU"
"""What stands for the kind of GPU where a server is on the CPU."""

MIGRATIONS = (
    """
    CREATE TABLE launches (
        id TEXT PRIMARY KEY,
        server TEXT NOT NULL,
        profile TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        engine TEXT NOT NULL,
        engine_version TEXT,
        gpu_kind TEXT NOT NULL,
        gpu_count INTEGER NOT NULL,
        launched_at REAL NOT NULL,
        ready_at REAL,
        ended_at REAL,
        outcome TEXT NOT NULL,
        cause TEXT,
        card TEXT,
        compile_cached INTEGER,
        stages TEXT NOT NULL,
        figures TEXT,
        log_path TEXT NOT NULL
    );
    CREATE INDEX launches_by_server ON launches (server, launched_at);
    CREATE INDEX launches_alike ON launches (fingerprint, gpu_kind, launched_at);
    """,
    """
    CREATE TABLE switches (
        id TEXT PRIMARY KEY,
        server TEXT NOT NULL,
        gave_way TEXT NOT NULL,
        way TEXT NOT NULL,
        at REAL NOT NULL,
        outcome TEXT NOT NULL,
        error TEXT,
        took_s REAL,
        steps TEXT NOT NULL
    );
    CREATE INDEX switches_by_server ON switches (server, at);
    """,
)
"""Each brings the schema from its index to the next version; a new table is a new entry at the end."""

MEMORY_NEUTRAL_ARGS = frozenset(
    {
        "allow_credentials",
        "allowed_headers",
        "allowed_methods",
        "allowed_origins",
        "chat_template",
        "chat_template_content_format",
        "default_chat_template_kwargs",
        "disable_access_log_for_endpoints",
        "disable_fastapi_docs",
        "disable_log_requests",
        "disable_log_stats",
        "disable_uvicorn_access_log",
        "enable_auto_tool_choice",
        "enable_force_include_usage",
        "enable_log_outputs",
        "enable_log_requests",
        "enable_prompt_tokens_details",
        "enable_request_id_headers",
        "enable_server_load_tracking",
        "exclude_tools_when_tool_choice_none",
        "generation_config",
        "log_config_file",
        "log_error_stack",
        "log_level",
        "max_log_len",
        "middleware",
        "override_generation_config",
        "reasoning_parser",
        "response_role",
        "return_tokens_as_token_ids",
        "root_path",
        "seed",
        "shutdown_timeout",
        "tool_call_parser",
        "tool_parser_plugin",
        "uvicorn_log_level",
    }
)
"""Arguments that change neither an engine's memory nor how long it takes to start; all others are taken to."""

_NEUTRAL_ENVIRON = ("VLLM_LOGGING_", "VLLM_LOG_", "VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "NCCL_DEBUG")


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a server, from its start to its end; times are Unix seconds, None: not yet, or never.

    `outcome` is `starting`, `ready`, `stopped`, `failed` or `lost`; `card` the code of the failure's cause, `cause` its
    words. `gpu_kind` is the GPUs' name, or "CPU"; `stages` are those that are over, in their order.
    """

    id: str
    server: str
    profile: str
    fingerprint: str
    engine: str
    engine_version: str | None
    gpu_kind: str
    gpu_count: int
    launched_at: float
    ready_at: float | None = None
    ended_at: float | None = None
    outcome: str = "starting"
    cause: str | None = None
    card: str | None = None
    compile_cached: bool | None = None
    stages: tuple[StageTime, ...] = ()
    figures: StartFigures | None = None
    log_path: str = ""

    @property
    def start_s(self) -> float | None:
        """How long it took to get ready, in seconds; None where it never was."""
        return None if self.ready_at is None else self.ready_at - self.launched_at


def fingerprint(profile: Profile) -> str:
    """Return 16 hex digits that are equal for profiles whose engines take the same memory on the same GPUs.

    Name, address, logs, restarts, secrets and the like do not count.
    """
    args = {key: value for key, value in profile.args.items() if key not in MEMORY_NEUTRAL_ARGS}
    environ = {key: value for key, value in profile.env.items() if not key.startswith(_NEUTRAL_ENVIRON)}
    what = [profile.engine, profile.model, args, environ]
    return hashlib.sha256(json.dumps(what, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


class Records:
    """The records in the file at `path`; every call opens it anew, so any thread may make it, and none must close it.

    `problem` says why the newest call could not read or write; None where it could.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.problem: str | None = None

    def add(self, launch: Launch) -> bool:
        """Write a launch down, over what is there of it by its id; returns whether that could be done."""
        names = [field.name for field in fields(Launch)]
        row = {name: getattr(launch, name) for name in names}
        row["stages"] = json.dumps([[stage.name, stage.took_s] for stage in launch.stages])
        row["figures"] = json.dumps(asdict(launch.figures)) if launch.figures else None
        into = f"INSERT OR REPLACE INTO launches ({', '.join(names)}) VALUES ({', '.join(f':{n}' for n in names)})"
        return self.change(lambda db: db.execute(into, row))

    def launches(self, name: str | None = None, limit: int = 50) -> tuple[Launch, ...]:
        """Return the newest launches of the server `name`, or of all, newest first."""
        which = "server = ?" if name is not None else "1"
        return self._launches(which, (name,) if name is not None else (), limit)

    def launch(self, launch_id: str) -> Launch | None:
        """Return the launch of this id; None where it is not on record."""
        found = self._launches("id = ?", (launch_id,), 1)
        return found[0] if found else None

    def learned(self, profile: Profile, gpu_kind: str, engine_version: str | None = None) -> StartFigures | None:
        """Return what the newest start alike that got ready told of its memory; None where none has.

        Alike is the `fingerprint` of the profile, the kind of GPU, and the engine's version (None: any version).
        """
        which = "fingerprint = ? AND gpu_kind = ? AND ready_at IS NOT NULL AND figures IS NOT NULL"
        values: tuple[object, ...] = (fingerprint(profile), gpu_kind)
        if engine_version is not None:
            which, values = f"{which} AND engine_version = ?", (*values, engine_version)
        found = self._launches(which, values, 1)
        return found[0].figures if found else None

    def earlier(self, profile: Profile, gpu_kind: str, gpu_count: int, limit: int = 10) -> tuple[Launch, ...]:
        """Return the newest starts alike that got ready, newest first: same fingerprint, kind and number of GPUs."""
        which = "fingerprint = ? AND gpu_kind = ? AND gpu_count = ? AND ready_at IS NOT NULL AND stages != '[]'"
        return self._launches(which, (fingerprint(profile), gpu_kind, gpu_count), limit)

    def change(self, work: Callable[[sqlite3.Connection], object]) -> bool:
        """Do `work` in one transaction, in the newest schema; returns whether it could be done."""
        try:
            try:
                self._change(work)
            except sqlite3.DatabaseError as problem:
                if not _is_broken(problem):
                    raise
                self._set_aside(problem)
                self._change(work)
        except (sqlite3.Error, OSError) as problem:
            self._note(f"{self._path} cannot be written: {problem}")
            return False
        self.problem = None
        return True

    def read(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Return what `work` reads, or `otherwise` where there is nothing yet, or it cannot be read."""
        self.problem = None
        if not self._path.exists():
            return otherwise
        try:
            # Not mode=ro: what a killed keeper left in the write-ahead log must be taken up first.
            with self._open("rw") as db:
                db.execute("PRAGMA query_only = 1")
                return work(db) if _version(db) else otherwise
        except (sqlite3.Error, OSError, ValueError, TypeError) as problem:
            self._note(f"{self._path} cannot be read: {problem}")
            return otherwise

    def _launches(self, which: str, values: tuple[object, ...], limit: int) -> tuple[Launch, ...]:
        columns = ", ".join(field.name for field in fields(Launch))
        query = f"SELECT {columns} FROM launches WHERE {which} ORDER BY launched_at DESC, id DESC LIMIT ?"
        return self.read(lambda db: tuple(_launch(row) for row in db.execute(query, (*values, limit))), ())

    def _change(self, work: Callable[[sqlite3.Connection], object]) -> None:
        paths.private(self._path.parent)
        if self._path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link", str(self._path))
        # SQLite would make it with the umask's mode; its companions get the mode of the file. One that is there is not
        # opened: closing it would drop the locks that SQLite holds for another thread of this process.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        with self._open("rw") as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("BEGIN IMMEDIATE")
            _migrate(db)
            work(db)
            db.execute("COMMIT")

    @contextmanager
    def _open(self, mode: str) -> Iterator[sqlite3.Connection]:
        uri = f"{self._path.absolute().as_uri()}?mode={mode}"
        # Closing a connection rolls back what it has not committed.
        with closing(sqlite3.connect(uri, uri=True, timeout=WAIT_S, isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            yield db

    def _set_aside(self, problem: sqlite3.DatabaseError) -> None:
        broken = Path(f"{self._path}.broken")
        log.warning("%s is broken (%s); it is now %s, and a new one is begun", self._path, problem, broken.name)
        self._path.replace(broken)
        for companion in ("-wal", "-shm"):
            Path(f"{self._path}{companion}").unlink(missing_ok=True)

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem


def _version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _migrate(db: sqlite3.Connection) -> None:
    """Bring the schema up to date, within the transaction that is open; raises sqlite3.Error."""
    version = _version(db)
    if version > len(MIGRATIONS):
        raise sqlite3.NotSupportedError(f"a newer gpubox has written it (schema {version})")
    for script in MIGRATIONS[version:]:
        for statement in script.split(";"):  # `executescript` would commit the transaction first
            if statement.strip():
                db.execute(statement)
    if version < len(MIGRATIONS):
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _is_broken(problem: sqlite3.DatabaseError) -> bool:
    code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _launch(row: sqlite3.Row) -> Launch:
    values = {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row iterates over its values
    cached = values["compile_cached"]
    figures = json.loads(values["figures"]) if values["figures"] else None
    values["compile_cached"] = None if cached is None else bool(cached)
    values["stages"] = tuple(StageTime(name, took_s) for name, took_s in json.loads(values["stages"]))
    known = {field.name for field in fields(StartFigures)}
    values["figures"] = None if figures is None else StartFigures(**{k: v for k, v in figures.items() if k in known})
    return Launch(**values)
