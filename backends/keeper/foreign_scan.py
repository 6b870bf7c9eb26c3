"""Finding vLLM servers that were started by hand: by their command lines, and by the port that they listen on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from backends.gpus.ownership import Origins
from backends.gpus.processes import argv_of, describe, line_of, uid_of
from backends.processes import procfs
from backends.snapshots import Owner

MODULE = "vllm.entrypoints.openai.api_server"
TITLE = "VLLM::APIServer"
DEFAULT_PORT = 8000
SHIM_NAMES = ("gpubox-shim", "gpubox-guard")


@dataclass(frozen=True, slots=True)
class Found:
    """A model server that nobody of gpubox started; `tree` are its pids, `listens` whether its port is open yet."""

    pid: int
    start_ticks: int
    user: str
    command: str
    host: str
    port: int
    model: str
    served_name: str
    wants_key: bool
    listens: bool
    tree: frozenset[int]


def find_servers(servers: Path, roots: Mapping[int, str]) -> tuple[Found, ...]:
    """Return all vLLM servers of this machine but gpubox's own, by port; blocks for a walk through /proc.

    `servers` is the folder of our servers' launches, `roots` the shims' pids. Left out are those of any gpubox of this
    user, those that were started for another GPUBOX_HOME, and those that listen on a Unix socket.
    """
    candidates = {pid: argv for pid in procfs.pids() if serves_vllm(argv := argv_of(pid))}
    if not candidates:
        return ()
    origins, found = Origins(servers, roots), []
    for pid, argv in candidates.items():
        line = list(line_of(pid))
        above = line[1:]
        if not line or not line[0].is_alive or any(seen.pid in candidates for seen in above):
            continue
        ours = any(seen.comm in SHIM_NAMES and uid_of(seen.pid) == os.geteuid() for seen in above)
        if ours or origins.of(pid).owner is not Owner.FOREIGN or _is_of_another_home(pid) or "--uds" in argv:
            continue
        found.append(_found(pid, line[0].start_ticks, argv))
    return tuple(sorted(found, key=lambda one: (one.port, one.pid)))


def serves_vllm(argv: Sequence[str]) -> bool:
    """Tell whether a command line is a vLLM server's own: not a shell's, a wrapper's or an engine process's."""
    if not argv:
        return False
    if argv[0].startswith(TITLE):
        return True
    program = Path(argv[0]).name
    if program.startswith("python"):
        if ("-m", MODULE) in pairwise(argv):
            return True
        scripts = [place for place, word in enumerate(argv[1:3], start=1) if Path(word).name == "vllm"]
        return bool(scripts) and argv[scripts[0] + 1 : scripts[0] + 2] == ["serve"]
    return program == "vllm" and argv[1:2] == ["serve"]


def option(argv: Sequence[str], name: str) -> str | None:
    """Return the value of a command line's option, given as `--name value`, `--name=value` or with underscores."""
    for place, word in enumerate(argv):
        key, equals, value = word.partition("=")
        if key.startswith("--") and key.replace("_", "-") == name:
            return value if equals else next(iter(argv[place + 1 : place + 2]), None)
    return None


def _found(pid: int, start_ticks: int, argv: Sequence[str]) -> Found:
    tree = frozenset({pid, *(child for child, _ in procfs.descendants(pid))})
    said = option(argv, "--port")
    wanted = int(said) if said is not None and said.isdecimal() else None
    host, port, listens = _door(pid, tree, wanted)
    model = option(argv, "--model") or _positional(argv)
    command, user = describe(pid)
    return Found(
        pid=pid,
        start_ticks=start_ticks,
        user=user,
        command=command,
        host=option(argv, "--host") or host,
        port=port,
        model=model,
        served_name=option(argv, "--served-model-name") or model,
        wants_key=option(argv, "--api-key") is not None,
        listens=listens,
        tree=tree,
    )


def _positional(argv: Sequence[str]) -> str:
    """Return the model of `vllm serve MODEL …`, or empty."""
    if "serve" not in argv:
        return ""
    after = argv[argv.index("serve") + 1 :]
    return after[0] if after and not after[0].startswith("-") else ""


def _door(pid: int, tree: frozenset[int], wanted: int | None) -> tuple[str, int, bool]:
    """Return host and port of a server, and whether it listens there; `wanted` is what its command line says.

    Of another user's process the sockets are not told: the user's are, and the port must be among them.
    """
    try:
        doors = _doors(pid)
        if wanted is not None and wanted not in {port for _, port in doors}:
            doors += [door for child in tree - {pid} for door in _doors(child)]
    except psutil.Error:
        uid = uid_of(pid)
        port = wanted or DEFAULT_PORT
        return "127.0.0.1", port, uid is not None and port in listening_ports(uid)
    by_port = {port: host for host, port in doors}
    port = wanted or min(by_port, default=DEFAULT_PORT)
    return by_port.get(port, "127.0.0.1"), port, port in by_port


def _doors(pid: int) -> list[tuple[str, int]]:
    """Return where a process listens; raises psutil.AccessDenied where that is not told."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return []
    return [(one.laddr.ip, one.laddr.port) for one in connections if one.status == psutil.CONN_LISTEN and one.laddr]


def listening_ports(uid: int) -> set[int]:
    """Return the TCP ports that processes of a user listen on."""
    ports: set[int] = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == "0A" and fields[7] == str(uid):
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def _is_of_another_home(pid: int) -> bool:
    """Tell whether a process was started for another GPUBOX_HOME: that is another gpubox's world."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    home = next((one.partition(b"=")[2] for one in environ if one.startswith(b"GPUBOX_HOME=")), None)
    return home is not None and home != os.fsencode(os.environ.get("GPUBOX_HOME", ""))
