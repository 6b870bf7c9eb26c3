"""The keeper's word to a front, over the front's control socket."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from backends.http1 import read_body, read_head

ANSWER_S = 5.0
"""So long a front may take for an answer that waits for nothing."""

_MAX_ANSWER_BYTES = 64 << 10


class FrontMode(StrEnum):
    """What a front does with requests that need the engine.

    STARTING refuses them, PASS lets them through, HOLD keeps them for a while, ASLEEP refuses them, or holds them and
    wants the engine woken, as `wakes` says.
    """

    STARTING = "starting"
    PASS = "pass"
    HOLD = "hold"
    ASLEEP = "asleep"


@dataclass(frozen=True, slots=True)
class FrontState:
    """What a front says of itself.

    `in_flight` counts requests that are at the engine, `held` those that wait for it; neither counts readings of
    /health, /metrics and the list of models. `requests_total` were let through since the front started, the last one at
    `last_request_at` (Unix seconds; None: none yet).
    """

    mode: FrontMode
    wakes: bool
    reason: str
    in_flight: int
    held: int
    requests_total: int
    last_request_at: float | None
    pid: int


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain went: so many requests came to their own end, so many were cut off."""

    drained: int
    aborted: int
    took_s: float


class FrontLink:
    """Asks one front; every method raises OSError, in one line, where the front is gone or refuses."""

    def __init__(self, control_socket: Path) -> None:
        self._socket = control_socket
        self._wants_seen = 0

    async def state(self) -> FrontState:
        """Return what the front does now."""
        return _state(await self._ask("GET", "/state"))

    async def set_mode(self, mode: FrontMode, *, reason: str = "", wakes: bool | None = None) -> FrontState:
        """Set what the front does with requests from now on; `wakes` None leaves that as it is.

        PASS lets go what is held. `reason` is told to clients that are refused; empty: the front's own words.
        """
        return _state(await self._ask("PUT", "/mode", {"mode": mode, "reason": reason, "wakes": wakes}))

    async def drain(self, timeout_s: float, then: Literal["hold", "asleep"], *, reason: str = "") -> Drained:
        """Take in no more, wait up to `timeout_s` for what is in flight, cut off what is left, and stay in mode `then`.

        Where the asker goes away while it waits, nothing is cut off, and the mode stays `then`.
        """
        order = {"timeout_s": timeout_s, "then": then, "reason": reason}
        answer = await self._ask("POST", "/drain", order, answer_s=timeout_s + ANSWER_S)
        return Drained(int(answer["drained"]), int(answer["aborted"]), float(answer["took_s"]))

    async def wanted(self) -> int:
        """Wait until a request is held that wants the engine woken, and return how many are.

        Each request is told once by one FrontLink: who could not wake the engine is not asked again at once.
        """
        answer = await self._ask("GET", f"/wanted?after={self._wants_seen}", answer_s=None)
        self._wants_seen = int(answer["wants"])
        return int(answer["held"])

    async def _ask(
        self, method: str, target: str, body: object = None, *, answer_s: float | None = ANSWER_S
    ) -> dict[str, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        lines = (f"{method} {target} HTTP/1.1", "Host: front", "Connection: close", f"Content-Length: {len(content)}")
        try:
            async with asyncio.timeout(answer_s):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write("\r\n".join((*lines, "\r\n")).encode() + content)
                    answer = await read_head(reader)
                    raw, _ = await read_body(reader, answer, _MAX_ANSWER_BYTES)
                finally:
                    writer.transport.abort()
            told: dict[str, Any] = json.loads(raw)
        except TimeoutError as error:
            raise TimeoutError(f"the front at {self._socket} did not answer {target} within {answer_s:g} s") from error
        except (OSError, ValueError) as error:
            raise OSError(f"the front at {self._socket} gave no answer: {error or type(error).__name__}") from error
        if answer.status != 200:
            raise OSError(f"the front refused {target}: {told.get('error', answer.status)}")
        return told


def _state(told: dict[str, Any]) -> FrontState:
    try:
        return FrontState(**{**told, "mode": FrontMode(told["mode"])})
    except (TypeError, ValueError, KeyError) as error:
        raise OSError(f"the front told no state that can be read: {error!r}") from error
