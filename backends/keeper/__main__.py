"""The keeper's process: one per user and machine, found by its socket, gone when there is nothing left to keep."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import stat
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import uvicorn
from starlette.types import Receive, Scope, Send

from backends import paths
from backends.client import KeeperClient
from backends.gpus.host import HostReader
from backends.gpus.nvml import Nvml
from backends.gpus.sampler import BoxSampler
from backends.keeper.app import Routes
from backends.keeper.boxwatch import BoxWatch
from backends.keeper.events import Hub
from backends.keeper.foreign import ForeignServers
from backends.keeper.history import History
from backends.keeper.servers import Servers
from backends.keeper.surroundings import Surroundings
from backends.keeper.switching import Switching
from backends.ledger import Ledger
from backends.metrics.series import SeriesStore
from backends.records import Records
from backends.snapshots import KeeperInfo

log = logging.getLogger("backends.keeper")

IDLE_S = 30.0
"""How long a keeper with nothing to keep stays, so that a script of several commands finds one keeper."""

OTHER_KEEPER_S = 10.0


def main() -> int:
    """Run the keeper until nothing is left to keep; returns its exit code."""
    parser = argparse.ArgumentParser(prog="backends.keeper", description=__doc__)
    parser.add_argument("--ready-fd", type=int, default=None, help="written to once the socket listens")
    ready_fd = parser.parse_args().ready_fd
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    state = paths.private(paths.state_dir())
    lock = os.open(state / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if not _lock_or_other(lock):
        _say_ready(ready_fd)
        return 0
    try:
        door = _listen(paths.keeper_socket())
    except OSError as problem:
        log.error("the socket cannot be made: %s", problem)
        return 1
    asyncio.run(_serve(door, ready_fd))
    return 0


def _lock_or_other(lock: int) -> bool:
    """Take the lock and return True, or return False once the keeper that holds it listens.

    The holder may also be about to end: then the lock comes free. Raises SystemExit where neither happens.
    """
    client, deadline = KeeperClient(), time.monotonic() + OTHER_KEEPER_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if client.is_up():
                return False
            time.sleep(0.05)
        else:
            return True
    log.error("another keeper holds %s, but does not listen", paths.state_dir() / "keeper.lock")
    raise SystemExit(1)


def _say_ready(ready_fd: int | None) -> None:
    if ready_fd is not None:
        with contextlib.suppress(OSError):
            os.write(ready_fd, b"1")
            os.close(ready_fd)


def _listen(path: Path) -> socket.socket:
    """Return the listening socket at `path`, in a folder that only this user can enter; raises OSError."""
    folder = paths.private(path.parent)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder of this user's alone (mode 0700)")
    path.unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind(os.fspath(path))
    path.chmod(0o600)
    door.listen(64)
    return door


class _Server(uvicorn.Server):
    """uvicorn, with the signals left to us; it serves until `end` is called, and looks for nothing by the clock."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._end = asyncio.Event()

    def end(self) -> None:
        """Have it stop serving."""
        self.should_exit = True
        self._end.set()

    async def main_loop(self) -> None:
        """Serve: what uvicorn sees to ten times a second here, its answers' date among it, nobody needs."""
        await self.on_tick(0)
        await self._end.wait()

    def install_signal_handlers(self) -> None:
        """Leave signals alone."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Leave signals alone."""
        yield


async def _serve(door: socket.socket, ready_fd: int | None) -> None:
    hub, series = Hub(), SeriesStore()
    nvml = Nvml(watches_xids=True)
    sampler = BoxSampler(nvml, HostReader())
    box = BoxWatch(sampler.sample, hub, series, lambda: servers.grants(), lambda: servers.roots(), sampler)
    history = History(Records(paths.records_path()))
    switching = Switching(lambda: servers, box, hub, history.records)
    servers = Servers(Surroundings(hub, series, box, Ledger(), history, lambda: servers.taken_ports(), switching))
    foreign = ForeignServers(hub, series, box.box, servers.roots, lambda: [one.name for one in servers.snapshots()])
    last_use = time.monotonic()

    def needed() -> bool:
        return hub.listeners > 0 or servers.any_live() or bool(switching.running())

    def end() -> None:
        server.end()

    info = KeeperInfo(os.getpid(), _version(), time.time())
    app = Routes(servers, box, hub, series, info, end, foreign, switching).app()

    async def used(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal last_use
        last_use = time.monotonic()
        await app(scope, receive, send)
        last_use = time.monotonic()

    # By itself uvicorn takes httptools and uvloop where they happen to be installed, as they are beside vLLM; the first
    # answers HTTP/1.0, in which the event stream is asked for, in chunks.
    config = uvicorn.Config(
        used,
        http="h11",
        loop="asyncio",
        ws="none",
        log_config=None,
        access_log=False,
        date_header=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    servers.adopt_all()
    switching.adopt()
    watching = [asyncio.create_task(work) for work in (box.run(needed), foreign.run(), _tidy())]
    serving = asyncio.create_task(server.serve(sockets=[door]))
    _say_ready(ready_fd)
    log.info("the keeper listens; pid %d", os.getpid())
    while not serving.done():
        await asyncio.wait({serving}, timeout=5)
        if not needed() and time.monotonic() - last_use > IDLE_S:
            end()
    paths.keeper_socket().unlink(missing_ok=True)
    for task in watching:
        task.cancel()
    await foreign.detach()
    await switching.detach()
    await servers.detach()
    await serving
    await asyncio.to_thread(history.close)
    await asyncio.to_thread(nvml.close)
    log.info("the keeper ends")


async def _tidy() -> None:
    """Remove what dead launches have left: what `gpubox clean` removes of whatever age."""
    from backends.cleaning import clean_safely

    try:
        if removed := await asyncio.to_thread(clean_safely, time.time()):
            log.info("%d leftovers of earlier launches were removed", len(removed))
    except Exception:
        log.exception("leftovers cannot be removed")


def _version() -> str:
    try:
        return version("gpubox")
    except PackageNotFoundError:
        return "source"


if __name__ == "__main__":
    sys.exit(main())
