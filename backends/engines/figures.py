"""What an engine's log tells of its memory, in vLLM's words from 0.10 to 0.32; other engines tell nothing of it.

Every worker tells its own figures. Of those the largest count, since every GPU must have room for its part, but of what
is available for the KV cache the smallest, since vLLM makes all of them as small. With data parallelism each engine
core has a KV cache of its own: tokens and concurrency are added up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from backends.starts import StartFigures

GIB = 1 << 30

_PROCESS = re.compile(r"\(([\w-]+(?: pid=\d+)?)\) ")
_GIB = (
    ("weights_bytes", re.compile(r"Model loading took ([\d.]+) (?:GiB|GB)(?: memory)? and [\d.]+ seconds")),
    ("weights_bytes", re.compile(r"Actual usage is ([\d.]+) GiB for weight")),
    ("_consumed", re.compile(r"Actual usage is ([\d.]+) GiB for consumed memory \(weights \+ non-torch\)")),
    ("activation_bytes", re.compile(r"([\d.]+) GiB for peak activation")),
    ("non_torch_bytes", re.compile(r"([\d.]+) GiB for non-torch memory")),
    ("graphs_bytes", re.compile(r"Graph capturing finished in \d+ secs, took (-?[\d.]+) GiB")),
    ("graphs_bytes", re.compile(r"([\d.]+) GiB for CUDAGraph memory")),
    ("kv_available_bytes", re.compile(r"Available KV cache memory: (-?[\d.]+) GiB")),
    ("kv_available_bytes", re.compile(r"(?:Explicitly|Auto) set \(([\d.]+)/[\d.]+\) GiB for KV cache")),
)
_NUMBERS = (
    ("kv_tokens", re.compile(r"KV cache size: ([\d,]+) tokens")),
    ("max_concurrency", re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x")),
    ("max_model_len", re.compile(r"Maximum concurrency for ([\d,]+) tokens per request")),
    ("max_model_len", re.compile(r"Using max model len (\d+)")),
)
_SMALLEST = ("kv_available_bytes", "kv_tokens", "max_concurrency")


class FigureReader:
    """Gathers the figures of one start, line by line."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, float]] = {}

    def see(self, line: str) -> bool:
        """Take a line of the log; returns whether it told a figure."""
        found = [(key, float(match[1]) * GIB) for key, pattern in _GIB if (match := pattern.search(line))]
        found += [
            (key, float(match[1].replace(",", ""))) for key, pattern in _NUMBERS if (match := pattern.search(line))
        ]
        if not found:
            return False
        process = named[1] if (named := _PROCESS.search(line)) else ""
        told = self._told.setdefault(process, {})
        for key, value in found:
            better = min if key in _SMALLEST else max
            told[key] = better(told.get(key, value), value)
        return True

    @property
    def figures(self) -> StartFigures | None:
        """What was told so far; None where nothing was."""
        if not self._told:
            return None
        for told in self._told.values():
            # Newer versions tell weights and what is not torch's in one sum.
            if "_consumed" in told and "weights_bytes" in told:
                told["non_torch_bytes"] = max(0.0, told["_consumed"] - told["weights_bytes"])
        concurrency = self._over_all("max_concurrency", sum)
        return StartFigures(
            weights_bytes=_whole(self._over_all("weights_bytes", max)),
            activation_bytes=_whole(self._over_all("activation_bytes", max)),
            non_torch_bytes=_whole(self._over_all("non_torch_bytes", max)),
            graphs_bytes=_whole(self._over_all("graphs_bytes", max)),
            kv_available_bytes=_whole(self._over_all("kv_available_bytes", min)),
            kv_tokens=_whole(self._over_all("kv_tokens", sum)),
            max_concurrency=None if concurrency is None else round(concurrency, 2),
            max_model_len=_whole(self._over_all("max_model_len", max)),
        )

    def _over_all(self, key: str, how: Callable[[Iterable[float]], float]) -> float | None:
        values = [told[key] for told in self._told.values() if key in told]
        return how(values) if values else None


def read_figures(lines: Iterable[str]) -> StartFigures | None:
    """Return the figures that a log's lines tell; None where they tell none."""
    reader = FigureReader()
    for line in lines:
        reader.see(line)
    return reader.figures


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
