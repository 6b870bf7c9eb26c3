"""How evenly the GPUs of one server work: tensor parallelism goes at the pace of the slowest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.text import Text

from backends.snapshots import Box, Gpu, Missing, Owner, Server, ServerState
from tui.format import gib, percent
from tui.themes import Palette

WINDOW_S = 10.0
IDLE = 0.05
"""Below that utilization nothing can be said of how even the work is."""

EVEN = 0.95
"""From here on nobody is behind: two equal GPUs draw a few percent more or less for the same work."""

UNEVEN = 0.90
SERVING = frozenset({ServerState.READY, ServerState.UNRESPONSIVE, ServerState.DRAINING})


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure of the GPU that is behind, and the highest of all."""

    lowest: float
    highest: float

    @property
    def ratio(self) -> float:
        """The one as a part of the other, 0–1."""
        return self.lowest / self.highest if self.highest > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Balance:
    """The worse of both ratios, and the index of the GPU that is behind in it.

    `power` (watts, means over the window) is None while the GPUs are idle, `memory` (bytes of the server's own, as it
    is now) where it cannot be read. Utilization is no part of it: a rank that waits for the others counts as busy.
    """

    behind: int
    power: Spread | None
    memory: Spread | None

    @property
    def ratio(self) -> float:
        """The least of lowest/highest: 1 is even."""
        return min(spread.ratio for spread in (self.power, self.memory) if spread is not None)


class GpuWindow:
    """The readings of the last seconds, by GPU, as far as somebody looked."""

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
        """Return how even a server's GPUs are; None where it has but one, does not serve, or nothing could be read."""
        if len(server.gpus) < 2 or server.state not in SERVING:
            return None
        seen = {
            index: [gpu for _, gpu in self._readings.get(uuid, ())]
            for index, uuid in zip(server.gpu_indices, server.gpus, strict=True)
        }
        busy = _means({index: [_known(gpu.utilization) for gpu in gpus] for index, gpus in seen.items()})
        drawn = _means({index: [_known(gpu.power_w) for gpu in gpus] for index, gpus in seen.items()})
        if busy is None or max(busy.values()) < IDLE:
            drawn = None
        held = _means({index: [_own_bytes(gpu, server.name) for gpu in gpus[-1:]] for index, gpus in seen.items()})
        spreads = [
            (_spread(figures).ratio, min(figures, key=figures.__getitem__)) for figures in (drawn, held) if figures
        ]
        if not spreads:
            return None
        behind = min(spreads)[1]
        return Balance(behind, _spread(drawn, behind) if drawn else None, _spread(held, behind) if held else None)


def balance_text(balance: Balance, colours: Palette) -> Text:
    """Say a balance in one line."""
    ratio = balance.ratio
    colour = colours.good if ratio >= UNEVEN else colours.warn
    text = Text("balance ", style=colours.dim).append(percent(ratio), colour)
    parts = []
    if (drawn := balance.power) is not None:
        parts.append(f"power {drawn.lowest:.0f} vs {drawn.highest:.0f} W")
    if (held := balance.memory) is not None:
        parts.append(f"memory {gib(held.lowest)} vs {gib(held.highest)} GiB")
    who = "even" if ratio >= EVEN else f"GPU {balance.behind} behind"
    return text.append(f" · {who}: {', '.join(parts)}", colours.text)


def _spread(figures: Mapping[int, float], of: int | None = None) -> Spread:
    """Return the spread of figures by GPU; of one GPU's with `of`."""
    highest = max(figures.values())
    return Spread(min(figures.values()) if of is None else figures[of], highest)


def _means(figures: Mapping[int, Iterable[float | None]]) -> dict[int, float] | None:
    means = {}
    for index, values in figures.items():
        known = [value for value in values if value is not None]
        if not known:
            return None
        means[index] = sum(known) / len(known)
    return means


def _known(reading: float | Missing) -> float | None:
    return None if isinstance(reading, Missing) else reading


def _own_bytes(gpu: Gpu, server: str) -> float | None:
    """Return what a server's processes hold of a GPU; what is used of it where that is not told."""
    own = [one.memory_bytes for one in gpu.shares if one.owner is Owner.SERVER and one.who == server]
    told = [size for size in own if not isinstance(size, Missing)]
    if told:
        return float(sum(told))
    return None if isinstance(gpu.memory_used_bytes, Missing) else float(gpu.memory_used_bytes)
