"""`gpubox doctor`: prints what the checks found, and for each problem what to do."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import asdict

from backends.doctor import examine

MARKS = {True: "✓", None: "⚠", False: "✗"}
COLOURS = {True: "32", None: "33", False: "31"}


def doctor(json: bool, python: str | None) -> int:
    """Examine the box, engines in `python` included; returns 1 where something is broken, 0 otherwise."""
    checks = examine(python)
    broken = any(check.ok is False for check in checks)
    if json:
        print(json_format.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}, indent=2))
        return int(broken)
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = MARKS[check.ok]
        if sys.stdout.isatty():
            mark = f"\x1b[{COLOURS[check.ok]}m{mark}\x1b[0m"
        print(f"{mark} {check.name:<{width}}  {check.found}")
        if check.remedy:
            print(f"  {'':<{width}}  → {check.remedy}")
    return int(broken)
