"""Only the engine's public routes can be reached through a front, whatever a target looks like."""

from __future__ import annotations

import pytest

from backends.front.refusals import RefusedError
from backends.front.routes import Need, need_of
from tests.front.conftest import Shared

TARGETS = [
    "/sleep",
    "/sleep?level=2",
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/reset_prefix_cache",
    "/server_info",
    "/start_profile",
    "/pause",
    "/abort_requests",
    "/invocations",
    "/docs",
    "/",
    "//sleep",
    "/v1//../sleep",
    "/./sleep",
    "/v1/../sleep",
    "/v1/%2e%2e/sleep",
    "/v1/.%2E/sleep",
    "/v1/%252e%252e/sleep",
    "/v1%2f..%2fsleep",
    "/v1/..%2fsleep",
    "/v1/..;/sleep",
    "/v1;/../sleep",
    "/v1/..\\sleep",
    "/v1/%5c..%5csleep",
    "/v1/x%00/../sleep",
    "/v1/..%00/sleep",
    "/%73leep",
    "/SLEEP",
    "/sleep/",
    "/sleep#/v1/models",
    "/v1/models#/../../sleep",
    "/health/../sleep",
    "/metrics/%2e%2e/sleep",
    "/metrics/",
    "/v1",
    "/v1/models/",
    "v1/models",
    "*",
    "http://127.0.0.1/sleep",
    "http://127.0.0.1/v1/models",
    "http:///v1/../sleep",
    "http://sleep/v1/models@/sleep",
    "sleep",
    "",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_target_that_is_no_public_route_is_refused(method: str, target: str) -> None:
    with pytest.raises(RefusedError) as refused:
        need_of(method, target)
    assert refused.value.status == 404


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "PROPFIND", "get"])
def test_a_method_that_no_route_has_is_refused(method: str) -> None:
    with pytest.raises(RefusedError) as refused:
        need_of(method, "/v1/models")
    assert refused.value.status == 405


@pytest.mark.parametrize(
    ("method", "target", "need"),
    [
        ("POST", "/v1/chat/completions", Need.ENGINE),
        ("POST", "/v1/chat/completions?a=/../sleep", Need.ENGINE),
        ("GET", "/v1/responses/resp_1", Need.ENGINE),
        ("POST", "/v1/models", Need.ENGINE),
        ("GET", "/v1/models", Need.NOTHING),
        ("OPTIONS", "/v1/chat/completions", Need.NOTHING),
        ("GET", "/metrics?by=x", Need.NOTHING),
        ("GET", "/version", Need.NOTHING),
        ("GET", "/health", Need.HEALTH),
        ("POST", "/ping", Need.HEALTH),
        *[("POST", f"/{name}", Need.ENGINE) for name in ("tokenize", "detokenize", "score", "rerank", "pooling")],
        ("POST", "/classify", Need.ENGINE),
    ],
)
def test_public_routes_pass(method: str, target: str, need: Need) -> None:
    assert need_of(method, target) is need


async def test_nothing_but_public_routes_reaches_the_engine(shared: Shared) -> None:
    engine, front = await shared.pair()
    line = "{} {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}\r\n"
    attempts = [line.format(method, target, "") for target in TARGETS for method in ("GET", "POST")]
    attempts += [
        line.format("CONNECT", "127.0.0.1:80", ""),
        line.format("CONNECT", "/sleep", ""),
        line.format("TRACE", "/v1/models", ""),
        "GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\nPOST /sleep HTTP/1.1\r\n\r\n",
        # Two lengths, and a length beside chunks: what follows must never be taken for a request of its own.
        "POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\nPOST /sleep HTTP/1.1\r\n\r\n",
        "POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        "POST /sleep HTTP/1.1\r\n\r\n",
        "POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nPOST /sleep HTTP/1.1\r\n\r\n",
        "POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nPOST /sleep HTTP/1.1\r\n\r\n",
        "GET /v1/x HTTP/1.1\r\nHost: a\nX: POST /sleep HTTP/1.1\r\n\r\n",
        "GET /v1/x\r\n\r\n",
    ]
    for attempt in attempts:
        answer = await front.exchange(attempt.encode())
        assert not answer.startswith(b"HTTP/1.1 2"), (attempt, answer)
    reached = [row["target"] for row in engine.seen("request")]
    assert not [target for target in reached if not target.startswith("/v1/x")], reached
    # Another protocol is not offered: the request is answered in this one, and what follows it is not read.
    upgrade = "GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    answer = await front.exchange(f"{upgrade}POST /sleep HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\nConnection: close\r\n" in answer
    # A request that comes in one packet behind another is judged like any other.
    both = "GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\nPOST /sleep HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = await front.exchange(both.encode())
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert answer.count(b"HTTP/1.1 404 Not Found") == 1
    assert engine.seen("request")[-1]["target"] == "/v1/models"


async def test_the_content_of_a_body_is_never_taken_for_a_request(shared: Shared) -> None:
    engine, front = await shared.pair()
    smuggled = b"POST /sleep HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    chunked = b"%x;a=b\r\n%b\r\n0\r\nX-Trailer: POST /sleep HTTP/1.1\r\n\r\n" % (len(smuggled), smuggled)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    for body, framing in (
        (smuggled, b"Content-Length: %d\r\n\r\n" % len(smuggled)),
        (chunked, b"Transfer-Encoding: chunked\r\n\r\n"),
    ):
        answer = await front.exchange(head + framing + body)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert b'"size": %d' % len(smuggled) in answer
    assert {row["target"] for row in engine.seen("request")} == {"/v1/completions"}
