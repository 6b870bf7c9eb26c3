"""What may go: logs and states beyond what is kept, and what dead processes left behind; by rule, and nothing else.

Nothing of a server that lives, or whose end no keeper has written down yet, is ever listed. That holds beside a keeper
that starts servers meanwhile, too: what a record protects is listed before the records are read, and the keeper writes
a record before anything else of a launch comes into being.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from backends import paths
from backends.errors import KeeperError
from backends.keeper.launching import KEPT_LAUNCHES
from backends.keeper.record import Record
from backends.ledger import Ledger
from backends.processes import procfs, shm
from backends.processes.facts import current_boot_id, read_facts
from backends.snapshots import Missing, load

SETTLED_S = 60.0
"""What is younger may just be in the making."""

_LOG = re.compile(r"(?P<start>(?P<name>.+)-\d{8}-\d{6})\.log(?:\.\d+)?")
_PARTIAL = re.compile(r"\..+\.(\d+)|.+\.json\.(\d+)\.tmp")


class Kind(StrEnum):
    """What a leftover is."""

    LOG = "log"
    LAUNCH = "launch folder"
    STATE = "state"
    SOCKET = "socket"
    SHARED_MEMORY = "shared-memory file"
    PARTIAL = "partial file"
    GRANT = "ended grant"


SAFE = frozenset({Kind.SOCKET, Kind.SHARED_MEMORY, Kind.PARTIAL, Kind.GRANT})
"""Kinds that nobody can want back: the keeper removes them at its start."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder that may go: its size with all that is in it, when it last changed (Unix seconds), and why."""

    kind: Kind
    path: Path
    size_bytes: int
    changed_at: float
    why: str


@dataclass(frozen=True, slots=True)
class _Kept:
    """What there is of servers: by name the readable records, who lives, and whose record cannot be read."""

    records: Mapping[str, Record]
    living: frozenset[str]
    unreadable: frozenset[str]

    def untouchable(self, name: str) -> bool:
        if name in self.living or name in self.unreadable:
            return True
        record = self.records.get(name)
        return record is not None and (not record.ended or record.again or record.retry_at is not None)


def leftovers(now: float, older_than_s: float = 0.0) -> tuple[Leftover, ...]:
    """Return what may go at the moment `now` (Unix seconds), sparing what changed within `older_than_s`."""
    logs = _log_files()
    folders = _folders()
    kept = _kept()
    found = (
        *_old_logs(logs, kept),
        *_old_folders(folders, kept, now),
        *_partial_files(kept, now),
        *_dead_sockets(now),
        *_shared_memory(kept, now),
        *_ended_grants(now),
    )
    return tuple(one for one in found if now - one.changed_at >= older_than_s)


def remove(found: Iterable[Leftover]) -> dict[Path, str]:
    """Remove leftovers; returns what could not be removed, with the reason of each."""
    problems = {}
    for one in found:
        try:
            if one.kind is Kind.GRANT:
                _remove_grant(one.path)
            elif one.path.is_dir() and not one.path.is_symlink():
                shutil.rmtree(one.path)
            else:
                one.path.unlink(missing_ok=True)
        except OSError as problem:
            problems[one.path] = problem.strerror or str(problem)
        except KeeperError as problem:
            problems[one.path] = problem.message
    return problems


def clean_safely(now: float) -> tuple[Leftover, ...]:
    """Remove what nobody can want back, and return it. Blocks for a while.

    The keeper does this once it has taken up its servers.
    """
    found = tuple(one for one in leftovers(now) if one.kind in SAFE)
    problems = remove(found)
    return tuple(one for one in found if one.path not in problems)


def living_launches() -> frozenset[Path]:
    """Return the launch folders in use: a shim or guard runs for it, or a process of the engine's is at home in it.

    It asks the processes, not the files: a damaged `process.json` hides nothing from it.
    """
    root = paths.server_dir("x").parent
    found = set()
    for pid in procfs.pids():
        process = Path(f"/proc/{pid}")
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            spec = Path(os.fsdecode(words[-2])) if len(words) > 2 else Path()
            found |= {spec.parent} if spec.name == "spec.json" else set()
            found.add((process / "cwd").readlink())
        except (OSError, ValueError):
            continue
    return frozenset(folder for folder in found if folder.parent.parent == root)


def _kept() -> _Kept:
    records, unreadable = {}, set()
    for path in paths.server_dir("x").parent.glob("*/server.json"):
        try:
            records[path.parent.name] = load(Record, path.read_bytes())
        except (OSError, ValueError):
            unreadable.add(path.parent.name)
    living = frozenset(folder.parent.name for folder in living_launches())
    return _Kept(records, living, frozenset(unreadable))


def _log_files() -> dict[str, dict[str, list[Path]]]:
    """Return by server's name and start the parts of all logs."""
    folder = paths.log_dir()
    starts: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := _LOG.fullmatch(path.name):
            starts.setdefault(match["name"], {}).setdefault(match["start"], []).append(path)
    return starts


def _old_logs(logs: Mapping[str, Mapping[str, list[Path]]], kept: _Kept) -> Iterator[Leftover]:
    for name, starts in logs.items():
        if kept.untouchable(name):
            continue
        record = kept.records.get(name)
        newest_first = [starts[start] for start in sorted(starts, reverse=True)]
        keep = 0 if record is None else _keeps(record)
        why = f"{name} was forgotten" if record is None else f"beyond the newest {keep} of {name}"
        yield from _each(Kind.LOG, (path for parts in newest_first[keep:] for path in parts), why)


def _keeps(record: Record) -> int:
    """Return how many logs a server keeps; more than there can be where its profile is no longer understood."""
    from profiles.errors import InvalidProfileError
    from profiles.schema import parse_profile

    try:
        return parse_profile(record.profile, f"server {record.name}").logs.keep
    except InvalidProfileError:
        return 1 << 30


def _folders() -> dict[Path, list[Path]]:
    """Return the servers' folders with what is in each, by name."""
    root = paths.server_dir("x").parent
    servers = [path for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
    return {folder: sorted(folder.iterdir()) for folder in servers}


def _old_folders(folders: Mapping[Path, list[Path]], kept: _Kept, now: float) -> Iterator[Leftover]:
    for folder, inside in folders.items():
        name = folder.name
        if kept.untouchable(name):
            continue
        record = kept.records.get(name)
        broken = [path for path in inside if path.name.endswith(".broken")]
        if record is None:
            one = _leftover(Kind.STATE, folder, f"{name} has no usable record")
            # A folder is there a moment before the record in it.
            if one is not None and now - one.changed_at >= SETTLED_S:
                yield one
            continue
        yield from _each(Kind.STATE, broken, f"a damaged record of {name}, replaced since")
        launches = [path for path in inside if path.is_dir()]
        old = [path for path in launches[:-KEPT_LAUNCHES] if path.name != record.launch]
        yield from _each(Kind.LAUNCH, old, f"beyond the newest {KEPT_LAUNCHES} of {name}")


def _partial_files(kept: _Kept, now: float) -> Iterator[Leftover]:
    """Find files that somebody was writing and never moved into place: whoever did is gone."""
    root = paths.server_dir("x").parent
    candidates = [
        *((path.relative_to(root).parts[0], path) for path in (*root.glob("*/.*"), *root.glob("*/*/*.tmp"))),
        *(("", path) for folder in (paths.config_dir(), paths.profile_dir()) for path in folder.glob(".*")),
    ]
    for name, path in candidates:
        match = _PARTIAL.fullmatch(path.name)
        if match is None or (name and kept.untouchable(name)) or procfs.stat(int(match[1] or match[2])) is not None:
            continue
        one = _leftover(Kind.PARTIAL, path, "whoever was writing it is gone")
        if one is not None and now - one.changed_at >= SETTLED_S:
            yield one


def _dead_sockets(now: float) -> Iterator[Leftover]:
    """Find sockets on which no keeper listens: our own, and those of homes with long paths."""
    short = Path(tempfile.gettempdir()) / f"gpubox-{os.getuid()}"
    for path in {paths.keeper_socket(), *(short.glob("*.sock") if short.is_dir() else ())}:
        one = _leftover(Kind.SOCKET, path, "no keeper listens on it")
        if one is not None and now - one.changed_at >= SETTLED_S and _refuses(path):
            yield one


def _refuses(path: Path) -> bool:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(1.0)
        try:
            return door.connect_ex(os.fspath(path)) == errno.ECONNREFUSED
        except OSError:
            return False


def _shared_memory(kept: _Kept, now: float) -> Iterator[Leftover]:
    """Find shared memory of launches whose shim and guard died at once, so that nobody was left to remove it.

    Such a file was made while that launch ran, is this user's, and is used by no process.
    """
    spans = [span for name, record in kept.records.items() if name not in kept.living and (span := _cut_short(record))]
    if not spans:
        return
    files = {
        (status.st_dev, status.st_ino): Path(entry.path)
        for entry in os.scandir(shm.FOLDER)
        if entry.name.startswith(shm.PREFIXES)
        and (status := entry.stat(follow_symlinks=False)).st_uid == os.geteuid()
        and any(begun <= status.st_ctime <= ended for begun, ended in spans)
        and now - status.st_ctime >= SETTLED_S
    }
    if files:
        used = {file for pid in procfs.pids() for file in shm.used_by(pid)}
        unused = (path for file, path in files.items() if file not in used)
        yield from _each(Kind.SHARED_MEMORY, unused, "left by a launch that was cut short")


def _cut_short(record: Record) -> tuple[float, float] | None:
    """Return from when to when (Unix seconds) a launch of this boot ran that ended without its shim saying so."""
    facts = read_facts(record.facts_path)
    if not record.ended or isinstance(facts, Missing) or facts.phase == "exited":
        return None
    if facts.shim.boot_id != current_boot_id():
        return None
    try:
        return record.launched_at - 0.1, (paths.server_dir(record.name) / "server.json").stat().st_mtime
    except OSError:
        return None


def _ended_grants(now: float) -> Iterator[Leftover]:
    """Find this user's grants in the machine's ledger that neither a keeper nor a shim holds."""
    for path in paths.ledger_dir().glob("*.grant"):
        one = _leftover(Kind.GRANT, path, "no process holds it")
        if one is not None and now - one.changed_at >= SETTLED_S and _is_free(path):
            yield one


def _remove_grant(path: Path) -> None:
    """Remove a grant that has ended; raises KeeperError where the ledger cannot be changed, OSError."""
    with Ledger().changing():
        if _is_free(path):
            path.unlink(missing_ok=True)


def _is_free(path: Path) -> bool:
    """Whether a file is this user's, and nobody holds its lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_uid == os.getuid()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _each(kind: Kind, found: Iterable[Path], why: str) -> Iterator[Leftover]:
    return (one for path in found if (one := _leftover(kind, path, why)) is not None)


def _leftover(kind: Kind, path: Path, why: str) -> Leftover | None:
    """Measure a file or folder; None where it is gone already."""
    try:
        status = path.lstat()
        size, changed_at = status.st_size, status.st_mtime
        if stat.S_ISDIR(status.st_mode):
            inside = [file.lstat() for file in path.rglob("*")]
            size = sum(file.st_size for file in inside if stat.S_ISREG(file.st_mode))
            changed_at = max([changed_at, *(file.st_mtime for file in inside)])
    except OSError:
        return None
    return Leftover(kind, path, size, changed_at, why)
