"""Where gpubox keeps things: the one place that knows.

`GPUBOX_HOME` moves all of it. State is keyed by machine, since homes may be shared between machines.
Folders are made with mode 0700.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from functools import cache
from pathlib import Path

import platformdirs

SOCKET_PATH_LIMIT = 100
"""A Unix socket's path may hold about 108 bytes; longer ones go to a short folder instead."""


def _root(xdg: Path, part: str) -> Path:
    home = os.environ.get("GPUBOX_HOME")
    return Path(home).absolute() / part if home else xdg


@cache
def machine_id() -> str:
    """Twelve hex digits that tell this machine from others that share the home folder."""
    for source in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(source).read_text().strip()
        except OSError:
            continue
        if text:
            return hashlib.sha256(text.encode()).hexdigest()[:12]
    return hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:12]


def private(folder: Path) -> Path:
    """Make `folder` with its missing parents, each with mode 0700, and return it; raises OSError.

    A folder that is there already keeps its mode, unless others may enter it: then they no longer may.
    """
    for part in reversed((folder, *folder.parents)):
        if not part.exists():
            part.mkdir(mode=0o700, exist_ok=True)
    mode = folder.stat().st_mode
    if mode & 0o077:
        folder.chmod(mode & 0o700)
    return folder


def config_dir() -> Path:
    """The user's settings: `config.toml` and `profiles/`."""
    return _root(platformdirs.user_config_path("gpubox"), "config")


def profile_dir() -> Path:
    """The user's own profiles."""
    return config_dir() / "profiles"


def state_dir() -> Path:
    """Servers, logs and the keeper's files of this user on this machine."""
    return _root(platformdirs.user_state_path("gpubox"), "state") / machine_id()


def server_dir(name: str) -> Path:
    """What is kept of one server: `server.json`, and a folder for each launch."""
    return state_dir() / "servers" / name


def log_dir() -> Path:
    """The servers' logs."""
    return state_dir() / "logs"


def data_dir() -> Path:
    """What should last: `records.sqlite`."""
    return _root(platformdirs.user_data_path("gpubox"), "data")


def records_path() -> Path:
    """The history in SQLite."""
    return data_dir() / "records.sqlite"


def chat_dir() -> Path:
    """The conversations that were saved."""
    return data_dir() / "chats"


def cache_dir() -> Path:
    """What can be made again: the demo model."""
    return _root(platformdirs.user_cache_path("gpubox"), "cache")


def ledger_dir() -> Path:
    """Where all users' keepers of this machine agree who holds which GPU.

    It is in the first sticky folder that all may write to. `GPUBOX_LEDGER` moves it; GPUBOX_HOME does not, since it is
    the machine's.
    """
    if named := os.environ.get("GPUBOX_LEDGER"):
        return Path(named).absolute()
    shared = [Path("/run/lock"), Path("/dev/shm"), Path("/tmp")]
    usable = (folder for folder in shared if folder.is_dir() and folder.stat().st_mode & 0o1777 == 0o1777)
    return next(usable, Path(tempfile.gettempdir())) / "gpubox"


def keeper_socket() -> Path:
    """The keeper's socket: in the state folder, or in a short folder of the user's own when that path is too long."""
    return _short_enough(state_dir() / "keeper.sock", ".sock")


def engine_socket(folder: Path, name: str = "engine") -> Path:
    """A socket of the launch in `folder`: in it, or in the short folder of the user's own when that path is too long.

    The short folder is made; raises OSError where somebody else has it. Whoever drops the launch drops the socket.
    """
    path = _short_enough(folder / f"{name}.sock", f".{name}")
    if path.parent != folder:
        found = private(path.parent).lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(f"{path.parent} must be a folder of this user's alone")
    return path


def _short_enough(direct: Path, suffix: str) -> Path:
    if len(os.fsencode(direct)) <= SOCKET_PATH_LIMIT:
        return direct
    digest = hashlib.sha256(os.fsencode(direct)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gpubox-{os.getuid()}" / f"{digest}{suffix}"
