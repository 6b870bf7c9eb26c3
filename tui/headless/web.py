"""`gpubox web`: the control center in a browser, for who was given a link that works once."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from backends.errors import GpuboxError, UsageError
from tui.headless.output import say

LOOPBACK = "127.0.0.1"
BACKGROUND_CHECK_S = 1.0


def serve(host: str, port: int, *, readonly: bool, profile_dir: Path | None, simulate: str | None) -> int:
    """Serve until a signal ends it; port 0 takes any free one. Returns the exit code; raises GpuboxError."""
    if simulate:
        from backends.simulated_box import SimulatedGpus

        SimulatedGpus(simulate)
    _check_output()
    arguments = [
        *(["--readonly"] if readonly else []),
        *(["--profile-dir", str(profile_dir.absolute())] if profile_dir else []),
        *(["--simulate", simulate] if simulate else []),
    ]
    with _listen(host, port) as door:
        asyncio.run(_serve(door, host, arguments))
    return 0


def _check_output() -> None:
    """Refuse to print links into a file that others can read; raises UsageError."""
    mode = os.fstat(sys.stdout.fileno()).st_mode
    if stat.S_ISREG(mode) and mode & 0o077:
        raise UsageError("the link would go into a file that others can read", "chmod 600 that file")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=64)
    except socket.gaierror as problem:
        raise UsageError(f"--host {host}: {problem.strerror}", f"{LOOPBACK} is this machine alone") from problem
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        raise GpuboxError(f"cannot listen on {host}:{port}: {reason}", "gpubox web --port auto") from problem


async def _serve(door: socket.socket, host: str, arguments: Sequence[str]) -> None:
    from aiohttp import web

    from tui.web.gate import Gate
    from tui.web.server import WebServer

    address, port = door.getsockname()[:2]
    is_private = ipaddress.ip_address(address).is_loopback
    machine = socket.gethostname()
    gate = Gate([] if is_private else [host, machine])
    server = WebServer(gate, arguments, title=f"gpubox on {machine}", cookie_name=f"gpubox_{port}")
    # No access log: it would hold the links.
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, door).start()

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)
    shown = machine if ipaddress.ip_address(address).is_unspecified else host
    place = f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"

    def print_link() -> None:
        print(f"http://{place}/enter?token={gate.new_token()}", flush=True)

    if not is_private:
        say(f"WARNING: nothing is encrypted: who listens on the way to {place} reads all, and gets in")
        say(f"  → safer: gpubox web, and ssh -L {port}:{LOOPBACK}:{port} {machine} from your computer")
    say("open this link, it works once (Enter: a new one; Ctrl+C: end; servers keep running):")
    print_link()
    if is_private:
        say(f"from your own computer first: ssh -L {port}:{LOOPBACK}:{port} {machine}")
    _on_enter(loop, print_link)
    await ended.wait()
    await server.close()
    await runner.cleanup()


def _on_enter(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    """Call `act` for each line of standard input, as far as there is one to read."""
    # In the background of a terminal a read is refused, instead of stopping this process.
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    descriptor = sys.stdin.fileno() if sys.stdin else -1

    def read() -> None:
        try:
            data = os.read(descriptor, 4096)
        except OSError:
            loop.remove_reader(descriptor)
            loop.call_later(BACKGROUND_CHECK_S, listen)
            return
        if not data:
            loop.remove_reader(descriptor)
        elif b"\n" in data:
            act()

    def listen() -> None:
        # epoll takes neither files nor /dev/null
        with contextlib.suppress(PermissionError, ValueError):
            loop.add_reader(descriptor, read)

    if descriptor >= 0:
        listen()
