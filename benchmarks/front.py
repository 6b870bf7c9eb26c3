"""What a front costs: time to the first token and time of each chunk, beside the engine itself and beside nginx.

`python -m benchmarks.front [--requests N] [--streams N] [--nginx PATH]`. A program in the engine's place listens on a
Unix socket and on a port. The same requests go to that socket and port directly, through a front of ours, and through
nginx (where it is on PATH or named; one worker, unbuffered, connections kept, the same socket behind it), in turns.
Each event carries the time at which it was made. First one stream at a time, then many at once; CPU is that of the
process that passes on. Ratios are added latency, ours over nginx's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from backends.front.config import FrontConfig
from backends.front.link import FrontLink, FrontMode
from backends.processes.facts import identity_of
from benchmarks.shim_cost import memory_kib

ENGINE = Path(__file__).parents[1] / "tests" / "front" / "engine.py"
LIMIT_S = 30.0
EVENTS = 20
PAUSE_S = 0.002
MANY_EVENTS = 60
MANY_PAUSE_S = 0.05
WARM_UP = 20

NGINX = """
{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 1000000; tcp_nodelay on;
  upstream engine {{ server unix:{engine}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off;
    }}
  }}
}}
"""

Address = Path | int


@dataclass
class Way:
    """A way to the engine, and what was measured on it: seconds to the first token, and of each chunk after it."""

    name: str
    address: Address
    pid: int | None = None
    first_s: list[float] = field(default_factory=list)
    chunk_s: list[float] = field(default_factory=list)

    def clear(self) -> None:
        self.first_s.clear()
        self.chunk_s.clear()


class Asker:
    """One connection that asks for streams, one after another."""

    def __init__(self, way: Way) -> None:
        self._way = way

    async def open(self) -> Asker:
        address = self._way.address
        if isinstance(address, int):
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", address)
        else:
            self._reader, self._writer = await asyncio.open_unix_connection(address)
        return self

    async def ask(self, events: int, pause_s: float) -> None:
        body = json.dumps({"model": "m", "messages": "x" * 400, "events": events, "pause_s": pause_s}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        began = time.monotonic()
        self._writer.write(head.encode() + body)
        if not (status := await self._reader.readline()).startswith(b"HTTP/1.1 200"):
            raise OSError(f"{self._way.name} answers {status!r}")
        is_first = True
        while (line := await self._reader.readline()) != b"0\r\n":
            if not line:
                raise EOFError(f"{self._way.name} closed the connection")
            if line.startswith(b"data: {"):
                now = time.monotonic()
                if is_first:
                    # The pause before an event is the engine's.
                    self._way.first_s.append(now - began - pause_s)
                    is_first = False
                self._way.chunk_s.append(now - json.loads(line[6:])["at"])
        await self._reader.readline()

    def close(self) -> None:
        self._writer.close()


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


async def listens(address: Address) -> None:
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            (await Asker(Way("", address)).open()).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            return


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def started(stack: ExitStack, command: list[str], **more: object) -> int:
    process = subprocess.Popen(command, **more)  # type: ignore[call-overload]
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return int(process.pid)


async def ways(stack: ExitStack, folder: Path, nginx: str | None) -> list[Way]:
    """Start everything and return the ways to the engine, the direct ones first."""
    engine, port = folder / "engine.sock", free_port()
    pid = started(stack, [sys.executable, str(ENGINE), "--uds", str(engine), "--port", str(port), "--keep-alive", "60"])
    await listens(engine)
    found = [Way("engine's socket", engine), Way("engine's port", port)]
    shim = identity_of(pid)
    assert shim is not None
    config = FrontConfig("bench", "127.0.0.1", free_port(), engine, folder / "control.sock", shim)
    config.write(folder / "config.json")
    command = [sys.executable, "-P", "-m", "backends.front", str(folder / "config.json")]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    front = started(stack, command, env=environ, stderr=subprocess.DEVNULL)
    await listens(config.port)
    await FrontLink(config.control_socket).set_mode(FrontMode.PASS)
    found.append(Way("front", config.port, front))
    if nginx:
        # A worker of root's would be nobody, who may not use the socket.
        user = "user root;" if os.geteuid() == 0 else ""
        settings, peer = folder / "nginx.conf", free_port()
        settings.write_text(NGINX.format(user=user, folder=folder, engine=engine, port=peer))
        master = started(stack, [nginx, "-c", str(settings), "-e", "stderr"])
        await listens(peer)
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        found.append(Way("nginx", peer, int(children[0])))
    return found


async def one_at_a_time(all_ways: list[Way], requests: int) -> None:
    """Ask in turns over a kept connection, so that what else the machine does meets each way alike."""
    askers = [await Asker(way).open() for way in all_ways]
    for number in range(WARM_UP + requests):
        if number == WARM_UP:
            for way in all_ways:
                way.clear()
        for asker in askers:
            await asker.ask(EVENTS, PAUSE_S)
    for asker in askers:
        asker.close()
    print(f"\none stream at a time: {requests} requests each of {EVENTS} events, {PAUSE_S * 1000:g} ms apart")
    table(all_ways)


async def many(all_ways: list[Way], streams: int) -> None:
    """Ask for many streams at once, each way by itself; the CPU of one core is shared by all that take part."""
    print(f"\n{streams} streams at once: {MANY_EVENTS} events each, {MANY_PAUSE_S * 1000:g} ms apart")
    cpu: dict[str, float] = {}
    for way in all_ways:
        way.clear()
        askers = [await Asker(way).open() for _ in range(streams)]
        await asyncio.gather(*(asker.ask(2, 0.01) for asker in askers))
        way.clear()
        before = cpu_s(way.pid) if way.pid else 0.0
        await asyncio.gather(*(asker.ask(MANY_EVENTS, MANY_PAUSE_S) for asker in askers))
        if way.pid:
            cpu[way.name] = (cpu_s(way.pid) - before) / (streams * MANY_EVENTS)
        for asker in askers:
            asker.close()
    table(all_ways)
    for name, seconds in cpu.items():
        print(f"{name:<16} {seconds * 1e6:.1f} µs of CPU a chunk")


def table(all_ways: list[Way]) -> None:
    """Print medians and 99th percentiles, what was added to the engine's socket, and the ratio of that to nginx's."""
    print(f"{'':<16} {'first token ms':>22} {'a chunk ms':>22}")
    print(f"{'':<16} {'median':>8} {'p99':>6} {'added':>6} {'median':>8} {'p99':>6} {'added':>6}")
    base = all_ways[0]
    added: dict[str, tuple[float, float]] = {}
    for way in all_ways:
        pairs = ((way.first_s, base.first_s), (way.chunk_s, base.chunk_s))
        added[way.name] = tuple(statistics.median(mine) - statistics.median(other) for mine, other in pairs)  # type: ignore[assignment]
        cells = ""
        for (mine, _), more in zip(pairs, added[way.name], strict=True):
            cells += f" {statistics.median(mine) * 1000:>8.3f} {percentile(mine, 99) * 1000:>6.2f} {more * 1000:>6.3f}"
        print(f"{way.name:<16}{cells}")
    if "nginx" in added:
        first, chunk = (ours / theirs for ours, theirs in zip(added["front"], added["nginx"], strict=True))
        print(f"front / nginx, added: first token {first:.2f}, a chunk {chunk:.2f}")


def percentile(values: list[float], which: int) -> float:
    return statistics.quantiles(values, n=100)[which - 1]


async def run(requests: int, streams: int, nginx: str | None) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="front-")))
        all_ways = await ways(stack, folder, nginx)
        if not nginx:
            print("nginx is not installed: no peer to compare with")
        await one_at_a_time(all_ways, requests)
        await many(all_ways, streams)
        for way in all_ways:
            if way.pid:
                sizes = memory_kib(way.pid)
                own = sizes["Private_Clean"] + sizes["Private_Dirty"]
                print(f"{way.name:<16} memory: RSS {sizes['Rss'] / 1024:.1f} MiB, its own {own / 1024:.1f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--nginx", default=shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin"))
    asked = parser.parse_args()
    asyncio.run(run(asked.requests, asked.streams, asked.nginx))
    return 0


if __name__ == "__main__":
    sys.exit(main())
