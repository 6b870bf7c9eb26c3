"""What the machine must offer besides its GPUs, as checks: each with what was found and what to do about it."""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backends import paths
from backends.processes.launch import scope_prefix

GIB = 2**30
HUB = "https://huggingface.co"
HUB_LIMIT_S = 3.0
PORTS = range(8000, 8011)
MODEL_ROOM_BYTES = 20 * GIB
"""About what the weights of one 7B model in bf16 take, and some to spare."""
STATE_ROOM_BYTES = GIB
SHM_ROOM_BYTES = GIB
OPEN_FILES = 8_192
PROCESSES = 4_096


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: `ok` is None where it is a warning only; `remedy` is empty where all is well."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


def disk_checks(environ: Mapping[str, str]) -> list[Check]:
    """Look at the room for models and for our own state."""
    return [
        _room(
            "models on disk", hub_cache(environ), MODEL_ROOM_BYTES, "free some, or move the cache: HF_HOME=/big/disk"
        ),
        _room("state on disk", paths.state_dir(), STATE_ROOM_BYTES, "free some, or move it: GPUBOX_HOME=/big/disk"),
    ]


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Return where the hub's client keeps models, as its own rules say."""
    if named := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environ.get("HF_HOME") or f"{cache}/huggingface").expanduser() / "hub"


def _room(name: str, folder: Path, enough_bytes: int, remedy: str) -> Check:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.0f} GiB free at {folder}"
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(name, False, f"{there} cannot be written to", remedy)
    return Check(name, True, found) if free >= enough_bytes else Check(name, None, found, remedy)


def limit_checks() -> list[Check]:
    """Look at the limits that engines run into: open files, processes, and locked memory where there is InfiniBand."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # vLLM raises the soft limit itself
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    needs_locked = Path("/dev/infiniband").exists()
    return [
        _limit(
            "open files", files, OPEN_FILES, f"ulimit -Hn {OPEN_FILES} (LimitNOFILE= in systemd, --ulimit in docker)"
        ),
        _limit(
            "processes", processes, PROCESSES, "ulimit -u unlimited (/etc/security/limits.conf; --pids-limit in docker)"
        ),
        _limit(
            "locked memory",
            locked,
            resource.RLIM_INFINITY if needs_locked else 0,
            "ulimit -l unlimited: NCCL over InfiniBand needs it (--ulimit memlock=-1 in docker)",
        ),
    ]


def _limit(name: str, value: int, enough: int, remedy: str) -> Check:
    unlimited = value == resource.RLIM_INFINITY
    found = "unlimited" if unlimited else f"at most {value:,}" + (" bytes" if name == "locked memory" else "")
    good = unlimited or (enough != resource.RLIM_INFINITY and value >= enough)
    return Check(name, True, found) if good else Check(name, None, found, remedy)


def port_check() -> Check:
    """See which of the ports that servers take first are free on 127.0.0.1."""
    taken = [port for port in PORTS if not _can_bind(port)]
    span = f"{PORTS[0]}–{PORTS[-1]}"
    if not taken:
        return Check("ports", True, f"{span} are free")
    found = f"of {span}, in use: {', '.join(map(str, taken))}"
    return Check("ports", None if len(taken) < len(PORTS) else False, found, "say --port auto, or another port")


def _can_bind(port: int) -> bool:
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def shm_check(folder: Path = Path("/dev/shm")) -> Check:
    """See whether there is shared memory enough for engines of several processes."""
    remedy = "docker run --shm-size=16g (or --ipc=host); mount -o remount,size=16G /dev/shm"
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Check("shared memory", False, f"{folder}: {error.strerror}", remedy)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {folder}"
    if usage.free >= SHM_ROOM_BYTES:
        return Check("shared memory", True, found)
    return Check("shared memory", None, f"{found}: too little for tensor parallelism", remedy)


def hub_check(environ: Mapping[str, str]) -> Check:
    """Ask the model hub for a sign of life, unless we are told to stay offline."""
    hub = environ.get("HF_ENDPOINT") or HUB
    if environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Check("model hub", True, "not asked: HF_HUB_OFFLINE is set")
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    remedy = (
        "serve from a local path, or set HF_ENDPOINT to a mirror, or HTTPS_PROXY; HF_HUB_OFFLINE=1 spares the waiting"
    )
    try:
        with urlopen(Request(hub, method="HEAD"), timeout=HUB_LIMIT_S):
            pass
    except HTTPError as error:
        if error.code >= 500:
            return Check("model hub", None, f"{hub} answers {error.code}", remedy)
    except (URLError, OSError, ValueError) as error:
        return Check("model hub", None, f"{hub} cannot be reached: {getattr(error, 'reason', error)}", remedy)
    return Check("model hub", True, f"{hub} answers")


def logout_check(systemd: Path = Path("/run/systemd/system")) -> Check:
    """See whether servers outlive a logout."""
    if not systemd.exists():
        return Check("after logout", True, "no systemd here: servers run on")
    if scope_prefix():
        return Check("after logout", True, "servers run on, in scopes of the user's systemd")
    user = pwd.getpwuid(os.getuid()).pw_name
    found = "servers run on, unless logind's KillUserProcesses is set"
    return Check("after logout", None, found, f"sudo loginctl enable-linger {user}")
