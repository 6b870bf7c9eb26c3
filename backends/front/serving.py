"""A front from its first moment to its last: its doors, the engine it watches, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import stat
from pathlib import Path
from typing import Any

from aiohttp.web_server import Server

from backends.front.config import FrontConfig
from backends.front.control import Control
from backends.front.engine import Engine
from backends.front.gate import Gate
from backends.front.link import FrontMode
from backends.front.passing import Passing
from backends.paths import private
from backends.processes.facts import open_pidfd

log = logging.getLogger("backends.front")

LOOK_S = 0.2
"""How often a front that nobody tells anything looks whether an engine that starts listens by now."""

ALONE_S = 3.0
"""After so long without a word of the keeper's, which looks each second, a front that starts judges for itself."""

BACKLOG = 2048
HEAD_BYTES = 64 << 10
GOODBYE_S = 1.0
"""So long the answers that were begun may take at the end."""

FILES = 65536


async def serve(config: FrontConfig, door: socket.socket) -> None:
    """Serve on `door`, which listens, until a signal comes or the engine's shim has ended; raises OSError."""
    shim = open_pidfd(config.engine_shim)
    if shim is None:
        log.info("the front of %s ends: its engine has ended", config.name)
        return
    try:
        await _Front(config).serve(door, shim)
    finally:
        os.close(shim)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens there, and nowhere else; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, port))
        # Two sockets may be bound to a port, but only one can listen there.
        door.listen(BACKLOG)
    except OSError:
        door.close()
        raise
    return door


class _Front:
    """The parts of one front."""

    def __init__(self, config: FrontConfig) -> None:
        self._config = config
        self._engine = Engine(config.engine_socket)
        self._gate = Gate(config.name, config.hold_s, config.wakes, self._ask_soon)
        self._api_key = os.environ.get(config.api_key_env) or None if config.api_key_env else None
        self._asking: asyncio.Task[bool] | None = None

    async def serve(self, door: socket.socket, shim: int) -> None:
        """Serve until the end, and clean up."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[str] = loop.create_future()

        def end(why: str) -> None:
            if not over.done():
                over.set_result(why)

        loop.add_reader(shim, end, "its engine has ended")
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end, "it is stopped")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _raise_file_limit()
        private_door = _listen_privately(self._config.control_socket)
        inode = self._config.control_socket.stat().st_ino
        passing = Passing(self._gate, self._engine, self._api_key, self._config.hold_s)
        public, control = _http(passing.answer), _http(Control(self._gate).answer)
        servers = [
            await loop.create_unix_server(control, sock=private_door),
            await loop.create_server(public, sock=door, backlog=BACKLOG),
        ]
        log.info("the front of %s listens on %s:%d; pid %d", self._config.name, *door.getsockname()[:2], os.getpid())
        starting = asyncio.create_task(self._watch_start())
        why = "it failed"
        try:
            why = await over
            log.info("the front of %s ends: %s", self._config.name, why)
        finally:
            loop.remove_reader(shim)
            _remove(self._config.control_socket, inode)
            starting.cancel()
            for server in servers:
                server.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._gate.end(why)
                    public.pre_shutdown()
                    await public.shutdown(GOODBYE_S)

    async def _watch_start(self) -> None:
        """Take the engine's own word for it that it has started, where no keeper is there to say so.

        Where one is, it knows better: an engine that is about to sleep would hold what it is given.
        """
        while True:
            await self._gate.is_starting.wait()
            await asyncio.sleep(LOOK_S)
            if self._gate.is_alone(ALONE_S):
                await self._ask()

    async def _ask(self) -> bool:
        """Take the mode from the engine's own word; False where it has none."""
        before = self._gate.mode
        try:
            is_asleep = await self._engine.is_asleep(self._api_key)
        except OSError:
            return False
        # Whoever has said something meanwhile knows better.
        mode = FrontMode.ASLEEP if is_asleep else FrontMode.PASS
        if self._gate.mode is before is not mode:
            self._gate.set_mode(mode)
        return True

    def _ask_soon(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())


def _http(answer: Any) -> Server:
    return Server(
        answer,
        handler_cancellation=True,
        access_log=None,
        # What it logs may hold a part of a request, and so a key.
        logger=logging.getLogger("backends.front.silent"),
        keepalive_timeout=75.0,
        max_line_size=HEAD_BYTES,
        max_field_size=HEAD_BYTES,
        auto_decompress=False,
    )


def _listen_privately(path: Path) -> socket.socket:
    """Return the listening socket at `path`, in a folder that only this user can enter; raises OSError."""
    folder = private(path.parent)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder of this user's alone (mode 0700)")
    path.unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    door.bind(os.fspath(path))
    path.chmod(0o600)
    door.listen(16)
    return door


def _remove(path: Path, inode: int) -> None:
    """Remove a socket's file, unless it is by now that of another front."""
    with contextlib.suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()


def _raise_file_limit() -> None:
    """Let as many connections be open as this process may ask for: two for each request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
