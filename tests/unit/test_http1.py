"""Reading HTTP answers from a stream."""

from __future__ import annotations

from asyncio import StreamReader

import pytest

from backends.http1 import BodyTooLongError, BrokenAnswerError, Head, NoAnswerError, read_body, read_head

LIMIT = 1000


async def answer(raw: bytes) -> tuple[Head, bytes, bool]:
    """Read an answer that came whole, after which the connection was closed."""
    reader = StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    head = await read_head(reader)
    return head, *await read_body(reader, head, LIMIT)


def said(*headers: str, body: str = "") -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, "", body]).encode()


@pytest.mark.parametrize(
    ("raw", "body", "stays"),
    [
        (said("Content-Length: 5", body="hello"), b"hello", True),
        (said("content-length:5", "Connection: Close", body="hello"), b"hello", False),
        (said("Transfer-Encoding: Chunked", body="5\r\nhello\r\n0\r\n\r\n"), b"hello", True),
        (said("Transfer-Encoding: chunked", body="a;n=v\r\n0123456789\r\n00\r\nT: x\r\n\r\n"), b"0123456789", True),
        (said("Transfer-Encoding: chunked", "Content-Length: 1", body="1\r\nx\r\n0\r\n\r\n"), b"x", False),
        (said(body="all until the end"), b"all until the end", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + said("Content-Length: 2", body="hi"), b"hi", True),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"", True),
    ],
)
async def test_what_is_whole_is_read(raw: bytes, body: bytes, stays: bool) -> None:
    head, *rest = await answer(raw)
    assert (head.status, *rest) == (200, body, stays)


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2xx OK\r\n\r\n",
        b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        said("Content-Length: 50", body="half"),
        said("Content-Length: -1"),
        said("Content-Length: 0x10", body="x" * 16),
        said("Content-Length: 1", "Content-Length: 2", body="hi"),
        said("a header without end"),
        said(" folded: x"),
        said("Transfer-Encoding: gzip, chunked", body="0\r\n\r\n"),
        said("Transfer-Encoding: chunked", body="-1\r\n\r\n"),
        said("Transfer-Encoding: chunked", body="2\r\nlonger\r\n0\r\n\r\n"),
        said("Transfer-Encoding: chunked", body="5\r\nhello\r\n"),
        said(*[f"X-{number}: x" for number in range(1000)]),
        said("X: " + "x" * 100_000, body=""),
    ],
)
async def test_what_is_not_whole_says_why(raw: bytes) -> None:
    with pytest.raises(BrokenAnswerError, match=r"\w+ \w+"):
        await answer(raw)


async def test_nothing_at_all_is_told_apart() -> None:
    with pytest.raises(NoAnswerError):
        await answer(b"")


@pytest.mark.parametrize(
    "raw",
    [
        said("Content-Length: 1001", body="x" * 1001),
        said(body="x" * 1001),
        said("Transfer-Encoding: chunked", body=f"3e8\r\n{'x' * 1000}\r\n1\r\nx\r\n0\r\n\r\n"),
        said("Transfer-Encoding: chunked", body="ffffffffffff\r\n"),
    ],
)
async def test_what_is_too_long_is_not_read(raw: bytes) -> None:
    with pytest.raises(BodyTooLongError):
        await answer(raw)
