"""A program in vLLM's place, on a Unix socket: it does what a request's body says, and writes down what reaches it.

`python tests/front/engine.py --uds PATH --record FILE [--port PORT] [--keep-alive S] [--asleep]`. The body of a POST is
JSON: `events` to stream (each as a chunk), `pause_s` before each, `wait` (each event waits for a POST to /go on the
development side), `die_after` so many, `bytes` of plain answer, `break_at` so many of them, `hang`, `none` for no
content. Any other body is answered with what was seen of the request. The header `X-Refuse` has a request answered
before its body is read.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from aiohttp import web

parser = argparse.ArgumentParser()
parser.add_argument("--uds")
parser.add_argument("--port", type=int)
parser.add_argument("--record", type=Path, default=Path(os.devnull))
parser.add_argument("--keep-alive", type=float, default=5.0)
parser.add_argument("--asleep", action="store_true")
args = parser.parse_args()

is_asleep = args.asleep
go = asyncio.Semaphore(0)
connections: dict[int, Any] = {}


def note(what: str, **more: object) -> None:
    with args.record.open("a") as file:
        file.write(json.dumps({"what": what, **more}) + "\n")


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    global is_asleep
    path = request.path
    if path == "/is_sleeping":
        return web.json_response({"is_sleeping": is_asleep})
    if path == "/metrics":
        return web.Response(text="vllm:num_requests_running 0\n")
    if path == "/quiet":
        return web.Response(text="")
    connections[id(request.transport)] = request.transport  # kept alive, so that ids stay apart
    note(
        "request",
        method=request.method,
        target=request.raw_path,
        headers=[[name, value] for name, value in request.headers.items()],
        connections=len(connections),
    )
    if path == "/go":
        go.release()
        return web.Response()
    if path == "/sleep":
        is_asleep = True
        return web.Response()
    if path == "/wake_up":
        is_asleep = False
        return web.Response()
    if (status := request.headers.get("X-Refuse")) is not None:
        return web.Response(status=int(status), text="too large")
    try:
        return await work(request)
    except asyncio.CancelledError:
        note("aborted", target=request.raw_path)
        raise


async def work(request: web.BaseRequest) -> web.StreamResponse:
    digest, size = hashlib.sha256(), 0
    start = b""
    async for part in request.content.iter_any():
        if not start:
            note("body", first=len(part))
        start = (start + part)[:65536]
        digest.update(part)
        size += len(part)
    try:
        wish = json.loads(start) if start else {}
    except ValueError:
        wish = {}
    if wish.get("hang"):
        await asyncio.Event().wait()
    if "events" in wish:
        return await stream(request, wish)
    if "bytes" in wish:
        return await plain(request, wish)
    if wish.get("none"):
        return web.Response(status=204)
    note("done")
    return web.json_response(
        {"path": request.path, "size": size, "sha256": digest.hexdigest(), "model": wish.get("model")}
    )


async def stream(request: web.BaseRequest, wish: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for number in range(wish["events"]):
        if number == wish.get("die_after"):
            os._exit(1)
        if wish.get("wait"):
            await go.acquire()
        elif wish.get("pause_s"):
            await asyncio.sleep(wish["pause_s"])
        text = json.dumps(
            {"n": number, "at": time.monotonic(), "choices": [{"delta": {"content": wish.get("content", "word ")}}]}
        )
        await response.write(f"data: {text}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    note("done")
    return response


async def plain(request: web.BaseRequest, wish: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = wish["bytes"]
    await response.prepare(request)
    left = wish["bytes"]
    if "break_at" in wish:
        await response.write(b"x" * wish["break_at"])
        os._exit(1)
    while left:
        part = min(left, 65536)
        await response.write(b"x" * part)
        left -= part
        note("sent", left=left) if left % (1 << 20) == 0 else None
    await response.write_eof()
    note("done")
    return response


async def main() -> None:
    server = web.Server(answer, handler_cancellation=True, keepalive_timeout=args.keep_alive, access_log=None)
    loop = asyncio.get_running_loop()
    if args.port is not None:
        await loop.create_server(server, "127.0.0.1", args.port, backlog=2048)
    if args.uds:
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door.bind(args.uds)
        await loop.create_unix_server(server, sock=door, backlog=2048)
    await loop.create_future()


asyncio.run(main())
