"""`gpubox logs`: a server's log, read from its file; with `-f` into later starts, too."""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from datetime import datetime, timedelta

from backends import paths
from backends.errors import NoSuchServerError, UsageError
from backends.processes.logs import LogFollower, grep, log_starts

LOOK_S = 0.2
FOLLOW_FROM_LINES = 20
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def show(name: str, *, follow: bool, lines: int | None, since_text: str | None, pattern: str | None, start: int) -> int:
    """Print a start's log, or part of it; `follow` goes on until interrupted.

    `start` counts back from the newest (0). Without `lines` and `since_text` all of it is printed, or with `follow`
    the last 20 lines. Raises NoSuchServerError where there is no log, UsageError where an argument makes no sense.
    """
    starts = log_starts(paths.log_dir(), name)
    if not starts:
        raise NoSuchServerError(f"{name} has no log", f"logs are in {paths.log_dir()}")
    if -start >= len(starts):
        count = f"{len(starts)} start{'' if len(starts) == 1 else 's'}"
        raise UsageError(f"{name} has {count} on record", f"--start goes down to {1 - len(starts)}")
    search = _compiled(pattern)
    when = moment_of(since_text, datetime.now().astimezone()) if since_text else None
    if follow and lines is None and when is None:
        lines = FOLLOW_FROM_LINES
    path = starts[-start].path
    follower = LogFollower(path, last=lines if search is None and when is None else None, since=when)
    held: deque[str] = deque(maxlen=lines)
    while new := follower.poll():
        held.extend(_matching(new, search))
        if lines is None:
            _print(held)
    _print(held)
    while follow:
        new = follower.poll()
        _print(deque(_matching(new, search)))
        if not new:
            newest = log_starts(paths.log_dir(), name)[0].path
            if start == 0 and newest != path:
                path = newest
                follower.close()
                follower = LogFollower(path)
                print(f"==> {path} <==", file=sys.stderr)
            else:
                time.sleep(LOOK_S)
    return 0


def moment_of(text: str, now: datetime) -> datetime:
    """Read `90s`, `10m`, `2h`, `1d` as so long before `now`, anything else as an ISO time; raises UsageError."""
    if found := re.fullmatch(r"(\d+)([smhd])", text):
        return now - timedelta(seconds=int(found[1]) * _UNITS_S[found[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--since {text!r} is no time", "say 90s, 10m, 2h, 1d, or 2026-11-21T12:30:00") from None
    return moment if moment.tzinfo else moment.astimezone()


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as problem:
        raise UsageError(f"--grep {pattern!r} is no regular expression: {problem}") from problem


def _matching(lines: list[str], search: re.Pattern[str] | None) -> list[str]:
    return lines if search is None else list(grep(lines, search))


def _print(lines: deque[str]) -> None:
    if lines:
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        lines.clear()
