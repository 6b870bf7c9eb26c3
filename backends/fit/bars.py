"""A GPU's memory cut into parts for a bar: what a server takes, what others hold, what stays free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from backends.fit.estimate import Fit

SMALLEST_BYTES = 64 << 20
"""What a driver keeps to itself is no tenant: so little is not shown as others'."""

PartName = Literal["weights", "KV cache", "overhead", "others", "free"]


SIGNS: dict[PartName, str] = {"weights": "█", "KV cache": "▓", "overhead": "▒", "others": "╱", "free": "·"}
"""What a bar is drawn with, so that its parts differ without colours too."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar: bytes on each GPU, and how many of the bar's cells they get."""

    name: PartName
    amount_bytes: int
    cells: int


def parts_of(fit: Fit, cells: int) -> tuple[Part, ...]:
    """Cut a bar of `cells` into a GPU's parts, from left to right; none where too little is known.

    Where the server takes more than is free, the parts are more than the GPU's memory, and the bar stands for them.
    """
    usable, free = fit.usable_bytes, fit.free_bytes
    weights, kv = fit.weights_bytes, fit.kv_bytes
    if not isinstance(weights, int):
        return ()
    cache = max(0, kv) if isinstance(kv, int) else 0
    amounts: list[tuple[PartName, int]] = [
        ("weights", weights),
        ("KV cache", cache),
        ("overhead", fit.overhead_bytes),
    ]
    if isinstance(usable, int) and isinstance(free, int):
        taken = sum(amount for _, amount in amounts)
        amounts.append(("others", max(0, usable - free)))
        amounts.append(("free", max(0, free - taken)))
    shown = [(name, n) for name, n in amounts if n > 0 and (name != "others" or n >= SMALLEST_BYTES)]
    shares = _shares([amount for _, amount in shown], cells)
    return tuple(Part(name, amount, share) for (name, amount), share in zip(shown, shares, strict=True))


def _shares(amounts: Sequence[int], cells: int) -> list[int]:
    """Divide cells in proportion, none of the parts vanishing, their sum exact."""
    total = sum(amounts)
    if not amounts or total <= 0:
        return []
    shares = [max(1, round(amount / total * cells)) for amount in amounts]
    while sum(shares) != cells:
        step = 1 if sum(shares) < cells else -1
        change = max(range(len(shares)), key=lambda n: (shares[n], amounts[n]))
        shares[change] += step
    return shares
