"""Who holds which GPU of this machine, agreed between all users' keepers through files that everybody can read.

Folder (`paths.ledger_dir`, mode 1777): `lock` is flocked while anything is changed; each grant is a small JSON file of
the user who made it, named after GPU, user, home and server. A grant counts while somebody holds its file with a shared
flock: the keeper from the moment it grants, the shim for as long as anything of its tree lives. So a grant ends with
its processes, whatever became of its file. `UUID.turn` is flocked by the keeper whose server is starting on a GPU that
servers share.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from backends import paths
from backends.errors import GpuBusyError, KeeperError
from backends.processes.locks import hold_shared
from backends.snapshots import Grant

LOCK_LIMIT_S = 10.0
LOCK_LOOK_S = 0.02
LARGEST_ENTRY = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One grant on file; `memory_bytes` None is the whole GPU."""

    path: Path
    uuid: str
    server: str
    uid: int
    home: str
    memory_bytes: int | None


class Ledger:
    """This keeper's hand on the ledger; grants are held for as long as this object, or their shim, holds them."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or paths.ledger_dir()
        self._home = hashlib.sha256(os.fsencode(paths.state_dir())).hexdigest()[:8]
        self._held: dict[Path, int] = {}

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Keep everybody else from changing grants; blocks for a moment. Raises KeeperError as `lock` does."""
        descriptor = self.lock()
        try:
            yield
        finally:
            os.close(descriptor)

    def lock(self) -> int:
        """Keep everybody else from changing grants until the descriptor returned is closed; blocks for a moment.

        Raises KeeperError where somebody holds it for long, or the folder is not what it must be.
        """
        try:
            descriptor = self._open_shared_file(self._ready_folder() / "lock")
        except OSError as problem:
            raise KeeperError(
                f"the ledger of this machine's GPUs cannot be used: {problem}", f"see that {self._folder} has mode 1777"
            ) from problem
        deadline = time.monotonic() + LOCK_LIMIT_S
        while not _try_flock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise KeeperError(
                    f"the ledger of this machine's GPUs has been locked for {LOCK_LIMIT_S:.0f} s by someone",
                    f"see who: fuser -v {self._folder / 'lock'}",
                )
            time.sleep(LOCK_LOOK_S)
        return descriptor

    def grants(self) -> dict[str, tuple[Grant, ...]]:
        """Return what is granted and alive, by UUID of the GPU."""
        found: dict[str, list[Grant]] = {}
        for entry in self._entries():
            if entry.path in self._held or _is_held(entry.path):
                ours = entry.uid == os.getuid() and entry.home == self._home
                grant = Grant(entry.server, _user_name(entry.uid), entry.memory_bytes, ours)
                found.setdefault(entry.uuid, []).append(grant)
        return {uuid: tuple(sorted(grants, key=lambda one: one.server)) for uuid, grants in found.items()}

    def grant(self, server: str, memory: Mapping[str, int | None]) -> tuple[str, ...]:
        """Grant GPUs (bytes by UUID, None for all of one) to a server, instead of what it had; within `changing`.

        Returns the files whose shared flock means that the grant is alive, for the shim. Raises OSError, and
        GpuBusyError where an earlier launch of the server has not let go yet.
        """
        self.release(server)
        files = []
        try:
            for uuid, memory_bytes in memory.items():
                path = self._path(uuid, server)
                if _is_held(path):
                    raise GpuBusyError(
                        f"an earlier launch of server {server} still holds GPU {uuid}",
                        "wait for its end: gpubox status",
                    )
                path.unlink(missing_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(path, flags, 0o644)
                self._held[path] = descriptor
                os.fchmod(descriptor, 0o644)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                os.write(descriptor, self._content(uuid, server, memory_bytes))
                files.append(str(path))
        except (OSError, GpuBusyError):
            self.release(server)
            raise
        return tuple(files)

    def resize(self, server: str, memory: Mapping[str, int | None]) -> None:
        """Change how much of GPUs that it has is granted to a server (bytes by UUID); within `changing`.

        The files stay, and so do the flocks on them. Raises OSError, and KeyError where a GPU is not granted to it.
        """
        for uuid, memory_bytes in memory.items():
            path = self._path(uuid, server)
            if path not in self._held:
                raise KeyError(uuid)
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # One write of no less than what stands there: who reads meanwhile sees either.
                content = self._content(uuid, server, memory_bytes)
                os.pwrite(descriptor, content.ljust(os.fstat(descriptor).st_size), 0)
            finally:
                os.close(descriptor)

    def _content(self, uuid: str, server: str, memory_bytes: int | None) -> bytes:
        content = {"schema": 1, "uuid": uuid, "server": server, "home": self._home, "bytes": memory_bytes}
        return json.dumps(content).encode()

    def take_up(self, server: str, uuids: tuple[str, ...]) -> None:
        """Hold, beside its shim, the grants of a server that a keeper before this one has made.

        One that nobody holds any more has ended with that keeper: somebody else may have been granted the GPU since.
        """
        for uuid in uuids:
            path = self._path(uuid, server)
            if path not in self._held and _is_held(path):
                with contextlib.suppress(OSError):
                    self._held[path] = hold_shared(str(path))

    def descriptors(self, server: str) -> tuple[int, ...]:
        """Return what holds a server's grants, for its shim to inherit: then they are held without a gap."""
        return tuple(self._held[Path(path)] for path in self.files(server))

    def files(self, server: str) -> tuple[str, ...]:
        """Return the files of the grants that are held for a server."""
        return tuple(str(path) for path in sorted(self._held) if path.name.endswith(self._suffix(server)))

    def release(self, server: str) -> None:
        """End a server's grants, but for what its shim still holds."""
        for path in [path for path in self._held if path.name.endswith(self._suffix(server))]:
            descriptor = self._held.pop(path)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                if not _is_held(path):
                    path.unlink(missing_ok=True)
            os.close(descriptor)

    def clean(self) -> int:
        """Remove the files of our own grants that have ended, and return how many; within `changing`."""
        ended = [
            entry.path
            for entry in self._entries()
            if entry.uid == os.getuid() and entry.path not in self._held and not _is_held(entry.path)
        ]
        for path in ended:
            path.unlink(missing_ok=True)
        return len(ended)

    def try_turn(self, uuids: tuple[str, ...]) -> list[int] | None:
        """Take the turn to start on all these GPUs: the descriptors that hold it; None where it is another's."""
        held: list[int] = []
        for uuid in sorted(uuids):
            descriptor = self._open_shared_file(self._ready_folder() / f"{uuid}.turn")
            held.append(descriptor)
            if not _try_flock(descriptor, fcntl.LOCK_EX):
                for one in held:
                    os.close(one)
                return None
        return held

    def _path(self, uuid: str, server: str) -> Path:
        return self._folder / f"{uuid}{self._suffix(server)}"

    def _suffix(self, server: str) -> str:
        return f"+{os.getuid()}+{self._home}+{server}.grant"

    def _ready_folder(self) -> Path:
        """Make the folder where it is not there; raises OSError where somebody made something else of it."""
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700, parents=False)
            self._folder.chmod(0o1777)
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{self._folder} is no folder")
        return self._folder

    @staticmethod
    def _open_shared_file(path: Path) -> int:
        """Open a file that every user may lock. A sticky folder may forbid O_CREAT on other users' files."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, flags)
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
                os.fchmod(descriptor, 0o666)
                return descriptor

    def _entries(self) -> list[Entry]:
        """Return all that can be read; a file half written tells by its name and owner that the whole GPU is taken."""
        entries = []
        for path in sorted(self._folder.glob("*.grant")):
            parts = path.name.removesuffix(".grant").split("+", 3)
            if len(parts) != 4:
                continue
            uuid, _, home, server = parts
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue
            with os.fdopen(descriptor, "rb") as file:
                uid = os.fstat(file.fileno()).st_uid
                memory = _memory_in(file.read(LARGEST_ENTRY))
            entries.append(Entry(path, uuid, server, uid, home, memory))
        return entries


def _memory_in(content: bytes) -> int | None:
    try:
        memory = json.loads(content)["bytes"]
    except (ValueError, KeyError, TypeError):
        return None
    return memory if isinstance(memory, int) and memory >= 0 else None


def _is_held(path: Path) -> bool:
    """Whether anybody holds the file's flock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_flock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _try_flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
