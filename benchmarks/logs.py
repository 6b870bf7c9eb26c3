"""Opens, seeks and searches a log of a gigabyte in gpubox's log screen, in `less` and in toolong, one after another.

`python -m benchmarks.logs [--lines N] [--rounds N] [--folder DIR] [--toolong PATH]`. Each program runs in a terminal of
its own (a pty of 120 × 40) and is driven by keys alone, as a person would; a step ends when the awaited text has
arrived on that terminal. What is awaited stands nowhere else: the last, the first and a rare line, and for the middle
any line of the file's middle fifth. gpubox's screen is the Logs panel with the file as its server's log; its times are
from the key press, so that starting Python is not in `open` but beside it, as `start` (less and toolong are one program
a file: their `open` is their start). Each figure is the median of the rounds; the file is in the page cache for all.
RSS is that of the program and its children after the last step, and at its highest as sampled at each step's end.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from fcntl import ioctl
from pathlib import Path

import psutil

from benchmarks.log_maker import RARE, make_log

ROWS, COLUMNS = 40, 120
PATIENCE_S = 120.0
STEPS = ("start", "open", "end", "start of file", "middle", "search", "RSS MiB")
RARE_TYPED = RARE.partition(":")[0]

PANEL = """
import sys, time
from dataclasses import replace
from pathlib import Path
from backends.simulation import SimulatedKeeper
from tui.app import GpuboxApp
class Keeper(SimulatedKeeper):
    def snapshot(self):
        now = super().snapshot()
        return replace(now, servers=(replace(now.servers[0], name="big", log_path=sys.argv[1]),))
    async def updates(self):
        from backends.snapshots import SnapshotUpdate
        import asyncio
        yield SnapshotUpdate(self.snapshot())
        await asyncio.Event().wait()
GpuboxApp(Keeper(folder=Path(sys.argv[2])), simulated=True).run()
"""


class Terminal:
    """A program in a pty of its own; what it has written since the last keys is kept."""

    def __init__(self, command: Sequence[str]) -> None:
        self.begun = time.monotonic()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            environ = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LESS": ""}
            os.execvpe(command[0], list(command), environ)
        self._raw = b""
        self.peak_bytes = 0

    def press(self, keys: str) -> None:
        """Type; what was written before counts no more."""
        while select.select([self._fd], [], [], 0.05)[0] and os.read(self._fd, 1 << 16):
            pass
        self._raw = b""
        os.write(self._fd, keys.encode())

    def until(self, shown: str, since: float) -> float:
        """Return the seconds from `since` until text that the expression `shown` matches has been written."""
        search = re.compile(shown).search
        heard = _plain(self._raw)
        while not search(heard):
            left_s = since + PATIENCE_S - time.monotonic()
            if left_s <= 0 or not select.select([self._fd], [], [], left_s)[0]:
                raise TimeoutError(
                    f"not shown within {PATIENCE_S:g} s: {shown}; last: {' '.join(heard.split())[-300:]!r}"
                )
            self._raw += os.read(self._fd, 1 << 16)
            heard = _plain(self._raw)
        took_s = time.monotonic() - since
        self.peak_bytes = max(self.peak_bytes, self.rss_bytes())
        return took_s

    def step(self, keys: str, shown: str) -> float:
        """Press keys, and return the seconds until something is shown."""
        self.press(keys)
        return self.until(shown, time.monotonic())

    def rss_bytes(self) -> int:
        """Return what the program and its children hold."""
        top = psutil.Process(self.pid)
        return sum(int(one.memory_info().rss) for one in (top, *top.children(recursive=True)) if one.is_running())

    def close(self) -> None:
        """End the program."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[P_^][^\x1b]*\x1b\\|[ -/]*[0-~])")


def _plain(data: bytes) -> str:
    return _ESCAPES.sub(b"", data).decode("utf-8", "replace")


class Awaited:
    """What the file's places look like: numbers of steps and times that stand nowhere else."""

    def __init__(self, path: Path, lines: int) -> None:
        with path.open("rb") as file:
            self.first = _mark(file.readline())
            file.seek(-400, os.SEEK_END)
            self.last = _mark(file.read().splitlines()[-1])
            # A line in the middle fifth, by its second: the lines are a millisecond apart.
            moments = []
            for part in (0.4, 0.5, 0.6):
                file.seek(int(path.stat().st_size * part))
                file.readline()
                moments.append(datetime.fromisoformat(file.readline()[:29].decode()))
        low, middle, high = moments
        self.half = f"{middle:%H:%M:%S}"
        seconds = int((high - low).total_seconds())
        self.middle = (
            "(?:" + "|".join(f"{low + timedelta(seconds=n):%H:%M:%S}" for n in range(seconds + 1)) + r")\.\d{3}"
        )
        self.rare = RARE


def _mark(line: bytes) -> str:
    return re.escape(line[11:23].decode())


def gpubox(path: Path, awaited: Awaited, scratch: Path) -> dict[str, float]:
    """Measure gpubox's Logs panel."""
    at = Terminal([sys.executable, "-c", PANEL, str(path), str(scratch)])
    try:
        found = {"start": at.until("GPU", at.begun)}
        time.sleep(2.0)  # Its first second of work is not the log's.
        before = at.rss_bytes()
        found["open"] = at.step("3", awaited.last)
        found["start of file"] = at.step("g", awaited.first)
        found["end"] = at.step("G", awaited.last)
        at.press("g")
        at.until(awaited.first, time.monotonic())
        at.step("/", "regular expression")
        found["search"] = at.step(f"{RARE_TYPED}\r", awaited.rare)
        at.press("\x1b")
        time.sleep(1.0)
        # The middle by time, as its users would; toolong and less have no such key for a log's times.
        at.step("@", "before the end")
        found["middle"] = at.step(f"{awaited.half}\r", awaited.middle)
        found["RSS MiB"] = at.rss_bytes() / 2**20
        print(
            f"  gpubox: RSS before the log {before / 2**20:.0f} MiB, highest {at.peak_bytes / 2**20:.0f} MiB",
            flush=True,
        )
        return found
    finally:
        at.close()


def less(path: Path, awaited: Awaited, scratch: Path) -> dict[str, float]:
    """Measure less, without line numbers (-n), which it would count."""
    at = Terminal(["less", "-n", str(path)])
    try:
        found = {"open": at.until(awaited.first, at.begun)}
        found["end"] = at.step("G", awaited.last)
        found["start of file"] = at.step("g", awaited.first)
        found["search"] = at.step(f"/{RARE_TYPED}\r", awaited.rare)
        found["middle"] = at.step("50%", awaited.middle)
        found["RSS MiB"] = at.rss_bytes() / 2**20
        return found
    finally:
        at.close()


def toolong(command: str) -> Callable[[Path, Awaited, Path], dict[str, float]]:
    """Return how to measure toolong, which has no key for the middle of a file."""

    def measure(path: Path, awaited: Awaited, scratch: Path) -> dict[str, float]:
        at = Terminal([command, str(path)])
        try:
            found = {"open": at.until(awaited.first + "|" + awaited.last, at.begun)}
            # It opens at the end, so that the start comes first.
            found["start of file"] = at.step("\x1b[H", awaited.first)
            found["end"] = at.step("\x1b[F", awaited.last)
            at.step("\x1b[H", awaited.first)
            found["RSS MiB"] = at.rss_bytes() / 2**20
            at.press("/")
            time.sleep(1.0)
            found["search"] = at.step(RARE_TYPED + "\r", RARE.partition(" ")[2])
            found["RSS MiB"] = at.rss_bytes() / 2**20
            return found
        except TimeoutError as problem:
            print(f"  toolong: {str(problem)[:200]}", flush=True)
            found["RSS MiB"] = at.rss_bytes() / 2**20
            return found
        finally:
            at.close()

    return measure


def main() -> int:
    """Make the log, measure, print."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.logs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    parser.add_argument("--folder", type=Path, help="where the log is made (and removed); best one in memory")
    parser.add_argument("--toolong", default=shutil.which("tl"), metavar="PATH", help="its command, if not on PATH")
    given = parser.parse_args()
    programs: dict[str, Callable[[Path, Awaited, Path], dict[str, float]]] = {"gpubox": gpubox}
    if shutil.which("less"):
        programs["less"] = less
    if given.toolong:
        programs["toolong"] = toolong(given.toolong)
    else:
        print("toolong is missing: pip install toolong into a virtual environment, and give --toolong PATH/bin/tl")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path, scratch = Path(folder) / "big.log", Path(folder) / "simulated"
        scratch.mkdir()
        make_log(path, given.lines)
        print(f"{given.lines:,} lines, {path.stat().st_size / 2**30:.2f} GiB; seconds, median of {given.rounds}")
        awaited = Awaited(path, given.lines)
        table = {name: _measured(measure, path, awaited, scratch, given.rounds) for name, measure in programs.items()}
    print(f"{'':<14}" + "".join(f"{name:>12}" for name in table) + "   × gpubox's")
    for step in STEPS:
        row = [found.get(step) for found in table.values()]
        digits = 0 if "RSS" in step else 3
        cells = "".join(f"{'–' if value is None else f'{value:.{digits}f}':>12}" for value in row)
        ratios = "  ".join("–" if value is None or not row[0] else f"{value / row[0]:.1f}" for value in row[1:])
        print(f"{step:<14}{cells}   {ratios}")
    return 0


def _measured(
    measure: Callable[[Path, Awaited, Path], dict[str, float]], path: Path, awaited: Awaited, scratch: Path, rounds: int
) -> dict[str, float]:
    found = [measure(path, awaited, scratch) for _ in range(rounds)]
    return {step: statistics.median(one[step] for one in found) for step in STEPS if all(step in one for one in found)}


if __name__ == "__main__":
    sys.exit(main())
