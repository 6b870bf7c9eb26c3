"""The keeper's door to an engine, against real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from backends.engines.base import HttpGet
from backends.engines.http import MAX_BODY_BYTES, EngineHttp

Handler = Callable[[str, dict[str, str], bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def engine(handler: Handler) -> AsyncIterator[str]:
    """Serve one request a connection with `handler(request line, headers, body, writer)`; yields the base URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        try:
            await handler(head[0], headers, body, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answer(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status.encode(), len(body), body)


async def echo(request: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(
        answer("200 OK", json.dumps([request, headers.get("authorization"), body.decode()]).encode()),
    )
    await writer.drain()


async def test_each_request_is_marked_and_carries_the_key() -> None:
    async with engine(echo) as url, EngineHttp(url + "/", api_key="s3cret") as http:
        door: HttpGet = http
        status, body = await door.get("/health")
        assert (status, json.loads(body)) == (200, ["GET /health?by=gpubox HTTP/1.1", "Bearer s3cret", ""])
        _, body = await door.post("/sleep?level=1", None)
        assert json.loads(body) == ["POST /sleep?level=1&by=gpubox HTTP/1.1", "Bearer s3cret", ""]
        _, body = await door.post("/collective_rpc", {"method": "reload_weights"})
        assert json.loads(json.loads(body)[2]) == {"method": "reload_weights"}
    async with engine(echo) as url, EngineHttp(url) as http:
        assert json.loads((await http.get("/health"))[1])[1] is None


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with engine(echo) as url, EngineHttp(url) as http:
        assert (await http.get("/health"))[0] == 200


async def test_an_error_status_is_an_answer() -> None:
    async def down(request: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer("503 Service Unavailable", b"engine is dead"))
        await writer.drain()

    async with engine(down) as url, EngineHttp(url) as http:
        assert await http.get("/health") == (503, b"engine is dead")


async def test_nothing_listening() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with EngineHttp(f"http://127.0.0.1:{port}") as http:
        with pytest.raises(OSError, match=rf"^nothing answers at http://127.0.0.1:{port}$"):
            await http.get("/health")


@pytest.mark.parametrize("trickles", [False, True], ids=["silent", "trickling"])
async def test_an_answer_that_does_not_come_in_time(trickles: bool) -> None:
    gone = asyncio.Event()

    async def slow(request: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" if trickles else b"")
        while not gone.is_set():
            writer.write(b"x" if trickles else b"")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with engine(slow) as url, EngineHttp(url, connect_s=0.1, read_s=0.2) as http:
        with pytest.raises(OSError, match=r"/metrics did not answer within 0.2 s$"):
            await http.get("/metrics")
        gone.set()


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", b"\x00garbage\r\n\r\n"])
async def test_a_connection_that_breaks_is_an_os_error_in_one_line(reply: bytes) -> None:
    async def breaks(request: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        await writer.drain()

    async with engine(breaks) as url, EngineHttp(url) as http:
        with pytest.raises(OSError, match=r"/metrics gave no whole answer: .+") as caught:
            await http.get("/metrics")
        assert "\n" not in str(caught.value)


async def test_a_huge_body_is_not_read_to_its_end() -> None:
    sent = 0

    async def huge(request: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(50):
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1 << 20

    async with engine(huge) as url, EngineHttp(url) as http:
        with pytest.raises(OSError, match="more than 8 MB"):
            await http.get("/metrics")
    assert sent < 3 * MAX_BODY_BYTES


async def test_a_bad_address_is_an_os_error() -> None:
    async with EngineHttp("http://[::1") as http:
        with pytest.raises(OSError):
            await http.get("/health")


@asynccontextmanager
async def keeping(answers: list[bytes]) -> AsyncIterator[tuple[str, list[tuple[int, str]]]]:
    """Serve many requests a connection, `answers` one after the other; an empty one closes the connection.

    Yields the base URL, and the requests that came as number of the connection and request line.
    """
    seen: list[tuple[int, str]] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        mine = connections
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                seen.append((mine, head.split("\r\n")[0]))
                if not (reply := answers.pop(0)):
                    break
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1;x=y\r\ni\r\n0\r\nAfter: all\r\n\r\n"
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"
FRAMELESS = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"


async def test_one_connection_serves_request_after_request() -> None:
    async with keeping([PLAIN, CHUNKED, NOTHING, PLAIN]) as (url, seen), EngineHttp(url) as http:
        bodies = [await http.get(path) for path in ("/a", "/b", "/c", "/d")]
    assert bodies == [(200, b"hi"), (200, b"hi"), (204, b""), (200, b"hi")]
    assert {connection for connection, _ in seen} == {1}


async def test_an_engine_that_closes_is_connected_to_anew() -> None:
    async with keeping([FRAMELESS, PLAIN]) as (url, seen), EngineHttp(url) as http:
        assert (await http.get("/a"))[1] == (await http.get("/b"))[1] == b"hi"
    assert [connection for connection, _ in seen] == [1, 2]


async def test_a_kept_connection_that_breaks_is_tried_once_more_but_not_for_what_changes_something() -> None:
    async with keeping([PLAIN, b"", PLAIN, b""]) as (url, seen), EngineHttp(url) as http:
        assert [await http.get("/a"), await http.get("/b")] == [(200, b"hi")] * 2
        with pytest.raises(OSError, match=r"/sleep gave no whole answer: .+"):
            await http.post("/sleep", None)
    assert [line.split("?")[0] for _, line in seen] == ["GET /a", "GET /b", "GET /b", "POST /sleep"]


async def test_requests_at_the_same_time_do_not_share_a_connection() -> None:
    async with keeping([PLAIN, PLAIN, PLAIN]) as (url, seen), EngineHttp(url) as http:
        await asyncio.gather(*(http.get(f"/{number}") for number in range(3)))
    assert sorted(connection for connection, _ in seen) == [1, 2, 3]


async def test_a_line_break_in_a_key_is_sent_to_nobody() -> None:
    async with keeping([PLAIN]) as (url, seen), EngineHttp(url, api_key="a\r\nHost: elsewhere") as http:
        with pytest.raises(OSError, match="line break"):
            await http.get("/health")
    assert seen == []
