"""Which requests a front passes on: the engine's public routes, and none that only looks like one of them."""

from __future__ import annotations

from enum import Enum, auto
from urllib.parse import unquote

from backends.front.refusals import RefusedError

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

WORK = frozenset({"/tokenize", "/detokenize", "/score", "/rerank", "/v2/rerank", "/v2/embed", "/pooling", "/classify"})
"""What needs the engine, beside all that is below /v1/."""

HEALTH = frozenset({"/health", "/ping"})
READING = frozenset({"/metrics", "/version"})
MODELS = "/v1/models"


class Need(Enum):
    """What a request needs: an engine that is awake, its health, or only that its server answers."""

    ENGINE = auto()
    HEALTH = auto()
    NOTHING = auto()


def need_of(method: str, target: str) -> Need:
    """Return what a request needs, from its method and its target as it was sent; raises RefusedError.

    The engine decodes a target once and matches it as it stands. So what would still be encoded then, has steps such as
    `..` or empty ones, or is no plain path, is no route that anybody has to reach.
    """
    if method not in METHODS:
        raise RefusedError(405, "method_not_allowed", f"{method[:20]} is not among the methods of this server")
    raw = target.partition("?")[0]
    path = unquote(raw, errors="replace")
    steps = path.split("/")
    is_plain = (
        target.isascii()
        and target.isprintable()
        and not set(target) & set(" #")
        and raw.startswith("/")
        and path.isprintable()
        and not set(path) & set("%\\;\ufffd")
        and not any(step in ("", ".", "..") for step in steps[1:])
    )
    if is_plain:
        if method == "OPTIONS" and (path.startswith("/v1/") or path in WORK or path in HEALTH or path in READING):
            return Need.NOTHING  # a browser asks what it may do; no model is needed for that
        if path in READING or (path == MODELS and method in ("GET", "HEAD")):
            return Need.NOTHING
        if path in HEALTH:
            return Need.HEALTH
        if path in WORK or path.startswith("/v1/"):
            return Need.ENGINE
    raise RefusedError(404, "not_found", "there is nothing of this name here")
