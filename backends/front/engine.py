"""The front's connections to its engine: kept while they are fresh, and closed at once when a client is gone."""

from __future__ import annotations

import asyncio
import socket
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from pathlib import Path

from backends.http1 import BROKEN_OFF, BrokenAnswerError, Head, read_body, read_head

KEPT_S = 2.0
"""Below uvicorn's 5 s, so that a connection is not used again in the moment in which the engine closes it."""

READ_BYTES = 256 << 10
ANSWER_S = 5.0
BUSY_S = 0.01
"""The pause before another try where the engine's queue of connections is full."""


class Line:
    """One connection to the engine."""

    __slots__ = ("_socket", "reader", "since", "writer")

    def __init__(self, reader: StreamReader, writer: StreamWriter, door: socket.socket) -> None:
        self.reader = reader
        self.writer = writer
        self._socket = door
        self.since = time.monotonic()

    def is_fresh(self) -> bool:
        """Whether it is young enough, and the engine has neither closed it nor said anything that nobody asked for."""
        if time.monotonic() - self.since > KEPT_S or self.reader.at_eof() or self.writer.is_closing():
            return False
        try:
            # What the loop has not read yet, the kernel knows already.
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def abort(self) -> None:
        """Close it at once: an engine that works on its request gives that up."""
        self.writer.transport.abort()


class Engine:
    """The engine that listens at a Unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._kept: list[Line] = []
        self._sweeping: asyncio.TimerHandle | None = None

    async def line(self) -> Line:
        """Return a connection on which no request is under way; raises OSError where none is to be had."""
        while self._kept:
            line = self._kept.pop()
            if line.is_fresh():
                return line
            line.abort()
        return await self._connected()

    def keep(self, line: Line) -> None:
        """Take back a connection whose answer is over."""
        line.since = time.monotonic()
        self._kept.append(line)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(KEPT_S, self._sweep)

    async def is_asleep(self, api_key: str | None) -> bool:
        """Return what the engine says of itself; raises OSError where it gives no answer."""
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        async with asyncio.timeout(ANSWER_S):
            line = await self._connected()
            try:
                line.writer.write(f"GET /is_sleeping HTTP/1.1\r\nHost: front\r\n{key}\r\n".encode())
                head = await read_head(line.reader)
                body, _ = await read_body(line.reader, head, READ_BYTES)
            finally:
                line.abort()
        if head.status >= 500:
            raise OSError(f"the engine answers with status {head.status}")
        return head.status == 200 and b"true" in body.lower()

    async def _connected(self) -> Line:
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # A Unix socket is connected at once, or its queue is full; asyncio takes the latter for the former.
            while True:
                try:
                    door.connect(self._path)
                    break
                except BlockingIOError:
                    await asyncio.sleep(BUSY_S)
            reader, writer = await asyncio.open_unix_connection(sock=door, limit=READ_BYTES)
        except BaseException:
            door.close()
            raise
        return Line(reader, writer, door)

    def _sweep(self) -> None:
        self._sweeping = None
        fresh = [line for line in self._kept if line.is_fresh()]
        for line in set(self._kept).difference(fresh):
            line.abort()
        self._kept = fresh
        if fresh:
            self._sweeping = asyncio.get_running_loop().call_later(KEPT_S, self._sweep)


class Body:
    """An answer's body, in the parts in which it comes; afterwards `is_reusable` tells whether its connection is."""

    __slots__ = ("_chunks", "_head", "_left", "_reader", "is_reusable")

    def __init__(self, reader: StreamReader, head: Head, method: str) -> None:
        self._reader = reader
        self._head = head
        coding, length = head.headers.get("transfer-encoding"), head.headers.get("content-length")
        self._chunks: _Chunks | None = None
        self._left: int | None = None
        if method == "HEAD" or head.status in (204, 304):
            self._left = 0
        elif coding is not None:
            if coding.strip().lower() != "chunked":
                raise BrokenAnswerError(f"its transfer encoding is {coding}")
            self._chunks = _Chunks()
        elif length is not None:
            if not (length.isascii() and length.isdecimal()):
                raise BrokenAnswerError("it tells no length that can be read")
            self._left = int(length)
        self.is_reusable = head.is_open and (coding is None or length is None)

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield what comes, as soon as it does; raises OSError where the answer breaks off."""
        while self._left != 0:
            data = await self._reader.read(READ_BYTES)
            if self._chunks is not None:
                if not data:
                    raise BrokenAnswerError(BROKEN_OFF)
                data = self._chunks.feed(data)
                if self._chunks.is_over:
                    self._left = 0
                    self.is_reusable = self.is_reusable and not self._chunks.has_more
            elif self._left is not None:
                if not data:
                    raise BrokenAnswerError(BROKEN_OFF)
                if len(data) > self._left:
                    data, self.is_reusable = data[: self._left], False
                self._left -= len(data)
            elif not data:
                self._left, self.is_reusable = 0, False
            if data:
                yield data


class _Chunks:
    """Takes chunks apart: bytes in, the content of the chunks out, so far as it is there."""

    __slots__ = ("_left", "_rest", "_state", "has_more", "is_over")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self._state = "size"
        self.is_over = False
        self.has_more = False

    def feed(self, data: bytes) -> bytes:
        """Return the content in `data`; raises BrokenAnswerError where it makes no sense."""
        data = self._rest + data if self._rest else data
        content: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            if self._state == "content":
                part = data[at : at + self._left]
                content.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left == 0:
                    self._state = "after"
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                break
            line, at = data[at:line_end], line_end + 2
            if self._state == "size":
                self._left = _size(line)
                self._state = "content" if self._left else "trailer"
            elif self._state == "after":
                if line:
                    raise BrokenAnswerError("a chunk of it is longer than it says")
                self._state = "size"
            elif not line:
                self.is_over, self.has_more = True, at < end
                return b"".join(content)
        self._rest = data[at:]
        if len(self._rest) > READ_BYTES:
            raise BrokenAnswerError("one of its lines does not end")
        return content[0] if len(content) == 1 else b"".join(content)


def _size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > 16 or digits.strip(b"0123456789abcdefABCDEF"):
        raise BrokenAnswerError("it tells no length that can be read")
    return int(digits, 16)
