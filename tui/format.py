"""Figures as people read them: fixed widths where they stand in columns, '–' where there is nothing to show."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from backends.snapshots import Gpu, Missing

T = TypeVar("T")

NOTHING = "–"
ELLIPSIS = "…"
GIB = 1 << 30
MIB = 1 << 20


def shown(value: T | Missing | None, how: Callable[[T], str]) -> str:
    """Show a reading with `how`, or '–' where there is none; its reason belongs into the details."""
    return NOTHING if value is None or isinstance(value, Missing) else how(value)


def percent(ratio: float) -> str:
    """Show a ratio of 0–1 as '42%'."""
    return f"{ratio * 100:.0f}%"


def gib(amount_bytes: float) -> str:
    """Show bytes in GiB with one decimal, without the unit: '102.4'."""
    return f"{amount_bytes / GIB:.1f}"


def memory(amount_bytes: float) -> str:
    """Show bytes with the unit that suits them: '512 MiB', '102.4 GiB', '1.97 TiB'."""
    if amount_bytes < GIB:
        return f"{amount_bytes / MIB:.0f} MiB"
    return f"{gib(amount_bytes)} GiB" if amount_bytes < 1000 * GIB else f"{amount_bytes / GIB / 1024:.2f} TiB"


def count(number: float) -> str:
    """Show a number in at most five characters: '7', '412', '2.6k', '12k', '1.3M'."""
    for limit, divisor, unit in ((999.5, 1, ""), (9_950, 1e3, "k"), (999_500, 1e3, "k"), (9.95e6, 1e6, "M")):
        if number < limit:
            digits = 1 if (unit and number / divisor < 9.95) or (not unit and number < 10 and number % 1) else 0
            return f"{number / divisor:.{digits}f}{unit}"
    return f"{number / 1e6:.0f}M" if number < 999.5e6 else f"{number / 1e9:.1f}G"


def duration(seconds: float) -> str:
    """Show a length of time: '0:31', '12:03', '3h 14m', '2d 4h'."""
    whole = max(0, int(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours < 1:
        return f"{minutes}:{rest:02}"
    return f"{hours}h {minutes_left:02}m" if hours < 24 else f"{hours // 24}d {hours % 24}h"


def coarse(seconds: float) -> str:
    """Show a length of time so that it changes once a minute: '<1 min', '12 min', '3h 14m'."""
    if seconds < 60:
        return "<1 min"
    return f"{int(seconds) // 60} min" if seconds < 3600 else duration(seconds)


def clock_time(at: float) -> str:
    """Show a moment as local time of day: '12:34:56'."""
    return f"{datetime.fromtimestamp(at):%H:%M:%S}"


def moment(at: float) -> str:
    """Show a moment with its day: '2026-11-21 12:34:56'."""
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"


def plural(number: int, thing: str) -> str:
    """Count things: '1 server', '3 servers'."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def counted(number: float, thing: str) -> str:
    """Count many things in few letters: '1 request', '412 requests', '2.6k requests'."""
    shown_number = count(number)
    return f"{shown_number} {thing}" + ("" if shown_number == "1" else "s")


def fit(text: str, width: int) -> str:
    """Cut to `width`, with an ellipsis where something was lost."""
    return text if len(text) <= width else text[: max(0, width - 1)] + ELLIPSIS[:width]


def fit_path(path: str, width: int) -> str:
    """Shorten a path from its left, so that the file's name stays whole where it can: '…/logs/NAME.log'."""
    home = str(Path.home())
    if path.startswith(home + "/") and home != "/":
        path = "~" + path[len(home) :]
    name = path
    while len(path) > width and "/" in name:
        name = name.partition("/")[2]
        path = f"{ELLIPSIS}/{name}"
    return path if len(path) <= width else fit(name, width)


def indices(numbers: Iterable[int]) -> str:
    """Show GPU indices as ranges: '0-3,6'."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ",".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in ranges)


def short_gpu_name(name: str) -> str:
    """Leave out what every GPU's name says anyway: 'NVIDIA GeForce RTX 4090' → 'RTX 4090'."""
    short = re.sub(r"^(NVIDIA|Tesla|Quadro|GeForce)\s+", "", name)
    short = re.sub(r"^GeForce\s+", "", short)
    return re.sub(r"[ -]\d+ ?GB\b.*$", "", short) or name


def gpu_kinds(gpus: Iterable[Gpu]) -> str:
    """Say what there is: '8 × H200', '2 × RTX 4090, 1 × L40S'."""
    names: dict[str, int] = {}
    for gpu in gpus:
        name = short_gpu_name(gpu.name)
        names[name] = names.get(name, 0) + 1
    return ", ".join(f"{number} × {name}" for name, number in names.items())
