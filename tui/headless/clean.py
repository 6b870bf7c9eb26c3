"""`gpubox clean`: remove, by rule, what no server needs any more; nothing of a server that lives."""

from __future__ import annotations

import json as json_format
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backends.errors import GpuboxError, UsageError
from tui.format import plural
from tui.headless.output import complain, say

if TYPE_CHECKING:
    from backends.cleaning import Leftover

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def clean(*, dry_run: bool, older_than: str | None, json: bool) -> int:
    """Remove leftovers and say what and how much it was; returns 1 where one could not be removed."""
    from backends.cleaning import leftovers, remove

    found = leftovers(time.time(), _age_s(older_than) if older_than else 0.0)
    problems = {} if dry_run else remove(found)
    if json:
        print(json_format.dumps(_as_json(found, {str(path): why for path, why in problems.items()}, dry_run), indent=2))
    else:
        gone = [one for one in found if one.path not in problems]
        if dry_run:
            print("\n".join(f"{file_size(one.size_bytes):>9}  {one.path}  ({one.why})" for one in found), end="")
            print("\n" if found else "", end="")
        say(_summary(gone, dry_run))
    code = 0
    for path, why in problems.items():
        code = complain(GpuboxError(f"{path} cannot be removed: {why}"))
    return code


def _summary(gone: Sequence[Leftover], dry_run: bool) -> str:
    if not gone:
        return "there is nothing to remove"
    counts = {kind: sum(one.kind is kind for one in gone) for kind in dict.fromkeys(one.kind for one in gone)}
    parts = ", ".join(plural(number, kind) for kind, number in counts.items())
    total = file_size(sum(one.size_bytes for one in gone))
    return f"{'would remove' if dry_run else 'removed'} {parts}: {total}"


def _as_json(found: Sequence[Leftover], problems: dict[str, str], dry_run: bool) -> dict[str, object]:
    rows = [
        {
            "kind": one.kind.name.lower(),
            "path": str(one.path),
            "size_bytes": one.size_bytes,
            "changed_at": one.changed_at,
            "why": one.why,
            "problem": problems.get(str(one.path)),
        }
        for one in found
    ]
    gone_bytes = sum(one.size_bytes for one in found if str(one.path) not in problems)
    return {"removed": not dry_run, "size_bytes": gone_bytes, "leftovers": rows}


def file_size(amount_bytes: float) -> str:
    """Show the size of files: '712 B', '4.0 KiB', '1.3 GiB'."""
    for unit in ("B", "KiB", "MiB"):
        if amount_bytes < 1024:
            return f"{amount_bytes:.0f} B" if unit == "B" else f"{amount_bytes:.1f} {unit}"
        amount_bytes /= 1024
    return f"{amount_bytes:.1f} GiB"


def _age_s(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None:
        raise UsageError(f"--older-than {text!r} is no length of time", "say 30d, 12h, 10m or 90s")
    return float(match[1]) * _UNITS_S[match[2]]
