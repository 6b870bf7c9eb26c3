"""Why a GPU's clocks are held down: the bits of NVML's 'clocks event reasons', in words."""

from __future__ import annotations

HARDWARE = 0x8
"""Set together with the two causes that the hardware tells; alone it is some other slowdown of the hardware's."""

HARDWARE_CAUSES = 0x40 | 0x80

WORDS = (
    (0x4, "power cap"),
    (0x20, "thermal"),
    (0x40, "thermal (hardware)"),
    (0x80, "power brake"),
    (0x10, "sync boost"),
    (0x2, "clocks set by hand"),
    (0x100, "display"),
    (0x200, "board limit"),
    (0x400, "voltage limit"),
)
"""0x1 is missing: a GPU that has nothing to do runs slower, and is not held down."""


def throttling_words(reasons: int) -> tuple[str, ...]:
    """Return the reasons that are set, the usual ones first; empty where the clocks run free, or the GPU is idle."""
    words = [word for bit, word in WORDS if reasons & bit]
    if reasons & HARDWARE and not reasons & HARDWARE_CAUSES:
        words.append("hardware slowdown")
    return tuple(words)
