"""How evenly the GPUs of one server work: tensor parallelism goes at the pace of the slowest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.text import Text

from backends.snapshots import Box, Gpu, Missing, Owner, Server
from tui.format import gib, percent
from tui.themes import Palette

WINDOW_S = 60.0
IDLE = 0.05
"""Below that utilization nothing can be said of how even the work is."""

EVEN = 0.99
UNEVEN = 0.90


@dataclass(frozen=True, slots=True)
class Spread:
    """Means of a figure over the last window: of the GPU that is behind, and the highest of all."""

    lowest: float
    highest: float

    @property
    def ratio(self) -> float:
        """The one as a part of the other, 0–1."""
        return self.lowest / self.highest if self.highest > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Balance:
    """The worse of both ratios, and the index of the GPU that is behind in it.

    `utilization` (0–1) is None while the GPUs are idle, `memory` (bytes of the server's own) where it cannot be read.
    """

    behind: int
    utilization: Spread | None
    memory: Spread | None

    @property
    def ratio(self) -> float:
        """The least of lowest/highest: 1 is even."""
        return min(spread.ratio for spread in (self.utilization, self.memory) if spread is not None)


class GpuWindow:
    """The readings of the last minute, by GPU, as far as somebody looked."""

    def __init__(self) -> None:
        self._readings: dict[str, deque[tuple[float, Gpu]]] = {}

    def take(self, box: Box) -> None:
        """Add a reading; the same one, seen again, is left out."""
        for gpu in box.gpus:
            readings = self._readings.setdefault(gpu.uuid, deque())
            if not readings or readings[-1][0] < box.at:
                readings.append((box.at, gpu))
            while readings[0][0] < box.at - WINDOW_S:
                readings.popleft()

    def balance(self, server: Server) -> Balance | None:
        """Return how even a server's GPUs were; None where it has but one, or nothing could be read of them."""
        if len(server.gpus) < 2:
            return None
        seen = {
            index: self._readings.get(uuid, ()) for index, uuid in zip(server.gpu_indices, server.gpus, strict=True)
        }
        busy = _means({index: [_busy(gpu) for _, gpu in readings] for index, readings in seen.items()})
        held = _means(
            {index: [_own_bytes(gpu, server.name) for _, gpu in readings] for index, readings in seen.items()}
        )
        if busy is not None and max(busy.values()) < IDLE:
            busy = None
        spreads = [(_spread(means).ratio, min(means, key=means.__getitem__)) for means in (busy, held) if means]
        if not spreads:
            return None
        behind = min(spreads)[1]
        return Balance(behind, _spread(busy, behind) if busy else None, _spread(held, behind) if held else None)


def balance_text(balance: Balance, colours: Palette) -> Text:
    """Say a balance in one line."""
    ratio = balance.ratio
    colour = colours.good if ratio >= UNEVEN else colours.warn
    text = Text("balance ", style=colours.dim).append(percent(ratio), colour)
    parts = []
    if (busy := balance.utilization) is not None:
        parts.append(f"utilization {busy.lowest * 100:.0f} vs {percent(busy.highest)}")
    if (held := balance.memory) is not None:
        parts.append(f"memory {gib(held.lowest)} vs {gib(held.highest)} GiB")
    who = "even" if ratio >= EVEN else f"GPU {balance.behind} behind"
    return text.append(f" · {who}: {', '.join(parts)}", colours.text)


def _spread(means: Mapping[int, float], of: int | None = None) -> Spread:
    """Return the spread of means by GPU; of one GPU's with `of`."""
    highest = max(means.values())
    return Spread(min(means.values()) if of is None else means[of], highest)


def _means(figures: Mapping[int, Iterable[float | None]]) -> dict[int, float] | None:
    means = {}
    for index, values in figures.items():
        known = [value for value in values if value is not None]
        if not known:
            return None
        means[index] = sum(known) / len(known)
    return means


def _busy(gpu: Gpu) -> float | None:
    return None if isinstance(gpu.utilization, Missing) else gpu.utilization


def _own_bytes(gpu: Gpu, server: str) -> float | None:
    """Return what a server's processes hold of a GPU; what is used of it where that is not told."""
    own = [one.memory_bytes for one in gpu.shares if one.owner is Owner.SERVER and one.who == server]
    told = [size for size in own if not isinstance(size, Missing)]
    if told:
        return float(sum(told))
    return None if isinstance(gpu.memory_used_bytes, Missing) else float(gpu.memory_used_bytes)
