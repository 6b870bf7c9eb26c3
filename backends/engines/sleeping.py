"""Sleep as vLLM does it: how deep it sleeps, putting it to sleep, the calls that wake it, and its first token.

The routes are vLLM's development routes, reached over the engine's own socket. Requests sent to a sleeping vLLM hang
until it wakes, so somebody must hold them before (the front); /health says 200 all the while.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from backends.engines.base import HttpGet
from backends.metrics.scrape import parse
from backends.snapshots import Missing, ModelKind
from backends.switches import Level

FALL_ASLEEP_S = 900.0
"""Pinning host memory, the first time at level 1, took 8.7 s for 12 GB of weights on an H200."""

WAKE_S = 300.0
RELOAD_S = 3600.0
"""Weights may come from a cold network disk."""

FIRST_TOKEN_S = 120.0
LONGEST_TEXT = 300
_LEVELS: dict[str, Literal[0] | Level] = {"awake": 0, "weights_offloaded": 1, "discard_all": 2}


class EngineRefusedError(OSError):
    """The engine answered with an error: its own text, in one line; `status` is HTTP's."""

    def __init__(self, path: str, status: int, text: str) -> None:
        super().__init__(f"the engine answers {status} to {path.partition('?')[0]}{f': {text}' if text else ''}")
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class WakeStep:
    """One call of a wake-up; `name` is that of the switch's step."""

    name: str
    method: Literal["POST"]
    path: str
    body: object
    timeout_s: float


def level_in(sleep_state: str | None) -> Level | Literal[0] | None:
    """Read a metrics page's `sleep_state`: 0 is awake; None where it is not told, or the ranks do not agree.

    Older vLLM says awake as soon as part of it is: that it is half awake is told by /is_sleeping only.
    """
    return _LEVELS.get(sleep_state or "")


async def sleep_level(http: HttpGet, asked: Level = 1) -> Level | Literal[0]:
    """Return how deep the engine sleeps by its own word, 0 where it is wide awake; raises OSError.

    One that sleeps and tells no level has the one that was `asked` of it.
    """
    status, body = await http.get("/is_sleeping")
    said = _said(body).get("is_sleeping")
    if status == 200 and said is False:
        return 0
    status, page = await http.get("/metrics")
    figures = parse(page) if status == 200 else Missing(f"/metrics answers {status}")
    level = None if isinstance(figures, Missing) else level_in(figures.sleep_state)
    if said is True:
        return level or asked
    if level is None:
        raise EngineRefusedError("/is_sleeping", status, "it does not say whether it sleeps")
    return level


async def fall_asleep(http: HttpGet, level: Level) -> None:
    """Put the engine to sleep; what still runs in it is aborted. Raises OSError; then ask `sleep_level` what is true.

    Returns once the GPU's memory has been given back as far as the engine knows: ask NVML.
    """
    await _post(http, f"/sleep?level={level}&mode=abort", None, FALL_ASLEEP_S)


def wake_steps(level: Level) -> tuple[WakeStep, ...]:
    """Return the calls that wake an engine from a level, in their order.

    At level 2 memory for the weights comes first, then they are read from disk again, then the KV cache gets its room;
    what the prefix cache knew is gone.
    """
    if level == 1:
        return (WakeStep("wake", "POST", "/wake_up", None, WAKE_S),)
    return (
        WakeStep("wake", "POST", "/wake_up?tags=weights", None, WAKE_S),
        WakeStep("weights", "POST", "/collective_rpc", {"method": "reload_weights"}, RELOAD_S),
        WakeStep("kv-cache", "POST", "/wake_up?tags=kv_cache", None, WAKE_S),
        WakeStep("prefix-cache", "POST", "/reset_prefix_cache", None, WAKE_S),
    )


async def take_step(http: HttpGet, step: WakeStep) -> None:
    """Make one call of a wake-up; raises OSError: EngineRefusedError means that the engine may be half awake now."""
    body = await _post(http, step.path, step.body, step.timeout_s)
    if _said(body).get("success") is False:
        raise EngineRefusedError(step.path, 200, "it did not succeed")


async def first_token(http: HttpGet, served_name: str, kind: ModelKind) -> None:
    """Have the model make one token (or one embedding), so that it is known to serve; raises OSError.

    One that makes neither (a classifier, a reranker) refuses, which is an answer, too.
    """
    if kind is ModelKind.EMBEDDING:
        await _post(http, "/v1/embeddings", {"model": served_name, "input": "hi"}, FIRST_TOKEN_S)
        return
    body = {"model": served_name, "prompt": "hi", "max_tokens": 1, "temperature": 0}
    try:
        await _post(http, "/v1/completions", body, FIRST_TOKEN_S)
    except EngineRefusedError as no:
        if no.status not in (400, 404, 405):
            raise


async def _post(http: HttpGet, path: str, body: object, timeout_s: float) -> bytes:
    status, answer = await http.post(path, body, timeout_s=timeout_s)
    if status != 200:
        raise EngineRefusedError(path, status, _text_of(answer))
    return answer


def _said(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text_of(body: bytes) -> str:
    """Return what an error says, in one line: OpenAI's form, FastAPI's, or bare text."""
    said = _said(body)
    error = said.get("error")
    found = error.get("message") if isinstance(error, dict) else error or said.get("detail") or said.get("message")
    text = found if isinstance(found, str) else body.decode("utf-8", "replace")
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 1]}…"
