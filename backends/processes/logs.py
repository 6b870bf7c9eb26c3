"""The servers' logs, as clients read them: one file a start, in parts when it grew, each line stamped.

The shim writes `LOG` and moves it to `LOG.1`, `LOG.1` to `LOG.2` and so on when it is full; readers never write.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import BinaryIO

STAMP_LENGTH = 29
POLL_BYTES = 1 << 20
SEARCHES = 100
"""So often a part that still has a name is looked for among names that are being moved."""

_BLOCK = 65536
_NAME_TIME = "%Y%m%d-%H%M%S"


@dataclass(frozen=True, slots=True)
class LogStart:
    """The log of one start of a server; `at` is local time, and only as true as the file's name."""

    name: str
    at: datetime
    path: Path


def log_starts(log_dir: Path, name: str) -> list[LogStart]:
    """Return the logs of a server's starts, newest first."""
    pattern = re.compile(rf"{re.escape(name)}-(\d{{8}}-\d{{6}})\.log")
    starts = []
    for path in log_dir.iterdir() if log_dir.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match:
            try:
                starts.append(LogStart(name, datetime.strptime(match.group(1), _NAME_TIME).astimezone(), path))
            except ValueError:
                continue
    return sorted(starts, key=lambda start: start.path.name, reverse=True)


def new_log_path(log_dir: Path, name: str, now: float) -> Path:
    """Return the path for the log of a start at `now` (Unix seconds).

    It sorts after every earlier start's, also after two in one second and when the clock is set back.
    """
    at = datetime.fromtimestamp(now)
    newest = log_starts(log_dir, name)
    if newest:
        at = max(at, newest[0].at.replace(tzinfo=None) + timedelta(seconds=1))
    return log_dir / f"{name}-{at.strftime(_NAME_TIME)}.log"


def prune(log_dir: Path, name: str, keep: int) -> None:
    """Remove the logs of all but the newest `keep` starts of a server; raises OSError."""
    for start in log_starts(log_dir, name)[keep:]:
        for path in parts(start.path):
            path.unlink(missing_ok=True)


def parts(path: Path) -> list[Path]:
    """Return the parts of a log that are there, oldest first."""
    numbered = []
    for sibling in path.parent.glob(f"{path.name}.*"):
        number = sibling.name.removeprefix(f"{path.name}.")
        if number.isdigit():
            numbered.append((int(number), sibling))
    older = [sibling for _, sibling in sorted(numbered, reverse=True)]
    return [*older, path] if path.exists() else older


def split_stamp(line: str) -> tuple[datetime | None, str]:
    """Return a line's time and text; None as its time where it has none."""
    try:
        return datetime.fromisoformat(line[:STAMP_LENGTH]), line[STAMP_LENGTH + 1 :]
    except ValueError:
        return None, line


class LogFollower:
    """Reads a log's lines as they come, across its parts: all, or from the `last` lines on, or `since` a moment on."""

    def __init__(self, path: Path, last: int | None = None, since: datetime | None = None) -> None:
        self._path, self._last, self._since = path, last, since
        self._file: BinaryIO | None = None
        self._rest = b""

    def poll(self) -> list[str]:
        """Return the next complete lines, about a megabyte at most; empty when there is none now."""
        if self._file is None:
            self._file = self._first()
        while self._file is not None:
            data = self._file.read(POLL_BYTES)
            if data:
                lines = (self._rest + data).split(b"\n")
                self._rest = lines.pop()
                if lines:
                    return _decoded(lines)
                continue
            following = self._following(self._file)
            if following is None:
                break
            # Nothing more goes into a part once the next one is there; what went in since the read above comes first.
            data, left = self._file.read(), self._rest
            self._file.close()
            self._file, self._rest = following, b""
            if left or data:
                return _decoded((left + data).removesuffix(b"\n").split(b"\n"))
        return []

    def close(self) -> None:
        """Let go of the file; a later poll starts anew."""
        if self._file is not None:
            self._file.close()
        self._file, self._rest = None, b""

    def _first(self) -> BinaryIO | None:
        """Open the part where reading starts, at the place where it starts."""
        wanted = self._last
        file: BinaryIO | None = None
        for part in reversed(parts(self._path)):
            older = _open(part)
            if older is None or (file is not None and _same(older, file)):
                continue
            if file is not None:
                file.close()
            file = older
            if self._since is not None:
                file.seek(_offset_since(file, self._since))
                if file.tell() > 0:
                    break
            elif wanted is not None:
                offset, found = _offset_of_last(file, wanted)
                file.seek(offset)
                wanted -= found
                if wanted <= 0:
                    break
        return file

    def _following(self, file: BinaryIO) -> BinaryIO | None:
        """Open the part after the one we have; None while ours is the newest, or the next is not there yet."""
        for search in count():
            names = parts(self._path)
            if not names or names[-1] != self._path or _is(file, self._path):
                return None
            # Where ours was dropped as too old, the oldest that is left comes next.
            own = next((at for at, name in enumerate(names) if _is(file, name)), -1)
            if own < 0 and os.fstat(file.fileno()).st_nlink > 0 and search < SEARCHES:
                continue  # It is there: the names moved past our search. (Or somebody gave it a name of his own.)
            following = _open(names[own + 1]) if own + 1 < len(names) else None
            if following is None:
                continue
            if own < 0 or _is(file, names[own]):
                return following
            following.close()  # The log was rotated in between: the names have moved.
        return None


def tail(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log, reading no more of it than needed."""
    return list(_all(LogFollower(path, last=count)))


def since(path: Path, when: datetime) -> Iterator[str]:
    """Yield a log's lines from `when` (with a time zone) on, finding the place by bisection."""
    return _all(LogFollower(path, since=when))


def grep(lines: Iterable[str], pattern: str | re.Pattern[str]) -> Iterator[str]:
    """Yield the lines whose text, the stamp aside, holds a match of `pattern`; raises re.error where it is none."""
    search = re.compile(pattern).search
    return (line for line in lines if search(split_stamp(line)[1]))


def follow(
    path: Path,
    *,
    last: int | None = None,
    since: datetime | None = None,
    ended: Callable[[], bool] = lambda: False,
    every_s: float = 0.1,
) -> Iterator[str]:
    """Yield a log's lines as they come, until `ended` says that there will be no more; the log may not be there yet."""
    follower = LogFollower(path, last, since)
    try:
        while True:
            over = ended()
            new = follower.poll()
            yield from new
            if not new:
                if over:
                    return
                time.sleep(every_s)
    finally:
        follower.close()


def _all(follower: LogFollower) -> Iterator[str]:
    try:
        while new := follower.poll():
            yield from new
    finally:
        follower.close()


def _decoded(lines: list[bytes]) -> list[str]:
    return [line.decode("utf-8", "replace") for line in lines]


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        return None


def _same(one: BinaryIO, other: BinaryIO) -> bool:
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))


def _is(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _offset_of_last(file: BinaryIO, count: int) -> tuple[int, int]:
    """Return where the last `count` complete lines begin, and how many there are of them."""
    end = os.fstat(file.fileno()).st_size
    position, breaks = end, 0
    # The line feed before the first wanted line must be found too, hence one more than `count`.
    while position > 0:
        start = max(0, position - _BLOCK)
        block = os.pread(file.fileno(), position - start, start)
        here = block.count(b"\n")
        if breaks + here > count:
            at = len(block)
            for _ in range(count + 1 - breaks):
                at = block.rfind(b"\n", 0, at)
            return start + at + 1, count
        breaks += here
        position = start
    return 0, breaks


def _offset_since(file: BinaryIO, when: datetime) -> int:
    """Return where the first line of `when` or later begins; the file's size where there is none."""
    low, high = 0, os.fstat(file.fileno()).st_size
    while low < high:
        middle = (low + high) // 2
        line = _line_from(file, middle)[1]
        at = split_stamp(line)[0]
        if not line or (at is not None and at >= when):
            high = middle
        else:
            low = middle + 1
    return _line_from(file, low)[0]


def _line_from(file: BinaryIO, offset: int) -> tuple[int, str]:
    """Return where the first line that begins at `offset` or later begins, and its stamp; an empty one at the end."""
    begin = max(0, offset - 1)
    while offset > 0:
        block = os.pread(file.fileno(), _BLOCK, begin)
        end = block.find(b"\n")
        if end >= 0 or not block:
            begin += end + 1
            break
        begin += len(block)
    return begin, os.pread(file.fileno(), STAMP_LENGTH, begin).decode("ascii", "replace")
