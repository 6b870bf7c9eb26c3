"""Choosing the port that a server will listen on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection

import psutil

from backends.errors import ConflictError

FIRST_AUTO_PORT = 8000


def can_bind(host: str, port: int) -> bool:
    """Whether an engine could listen there now (SO_REUSEADDR set, as engines do)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
        except OSError:
            return False
    return True


def choose_port(host: str, wanted: int | None, taken: Collection[int]) -> int:
    """Return the wanted port, or the first free one from 8000 on where None is wanted.

    `taken` are ports that other servers of ours have or will have. Raises ConflictError, naming who holds a port.
    """
    if wanted is not None:
        if wanted in taken or not can_bind(host, wanted):
            raise ConflictError(f"port {wanted} on {host} is in use{_holder(wanted)}", "choose another, or --port auto")
        return wanted
    for port in range(FIRST_AUTO_PORT, 65536):
        if port not in taken and can_bind(host, port):
            return port
    raise ConflictError(f"no port from {FIRST_AUTO_PORT} on is free on {host}", "name one with --port")


def is_listened_on_by(pid: int, port: int) -> bool:
    """Whether a process, or a descendant of it, listens on a port: an answer from there is then its own.

    Two engines that were given one port at the same moment cannot both have it; the other's answers are not ours.
    """
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                if any(
                    c.laddr and c.laddr.port == port and c.status == "LISTEN" for c in process.net_connections("tcp")
                ):
                    return True
    except psutil.Error:
        return False
    return False


def _holder(port: int) -> str:
    try:
        listening = [
            c for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == "LISTEN"
        ]
        pid = listening[0].pid if listening else None
        return f" by pid {pid} ({psutil.Process(pid).name()})" if pid else ""
    except (psutil.Error, OSError):
        return ""
