"""What each figure on the screens means: two sentences each, what it is and what drives it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explanation:
    """A figure's name as screens show it, what it is, and what drives it: one sentence each."""

    title: str
    what: str
    drives: str


EXPLANATIONS: dict[str, Explanation] = {
    "kv_cache_usage": Explanation(
        "KV cache usage",
        "The part of the KV cache's blocks that hold keys and values of requests in flight.",
        "It grows with the number and the length of running requests; near 100 % requests wait or are preempted.",
    ),
}
"""By the figure's key: the field of `Metrics`, `Gpu` or `Host` where there is one."""
