"""What the logs' tests share: files as a shim writes them, a reader that is waited for, and the app on its logs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import Static

from backends.logs.reader import LogReader
from backends.logs.windows import END, START, Key, LogLine, Window
from backends.simulation import SimulatedKeeper
from backends.snapshots import Server, ServerState, Snapshot, SnapshotUpdate, Update
from tui.widgets.log_view import LogView

STAMP = "2026-11-21T12:34:56.789+00:00 "
NOW = 1_795_264_496.0
DEADLINE_S = 30.0

Open = Callable[..., "Reader"]


def numbered(first: int, end: int) -> list[str]:
    """Return lines of several lengths, some of them with letters of two bytes."""
    return [f"{STAMP}line {number} {'é' * (number % 7)}" for number in range(first, end)]


def write_lines(path: Path, lines: Sequence[str], mode: str = "w") -> None:
    """Write a log of just these lines, or append them."""
    with path.open(mode) as file:
        file.write("".join(f"{line}\n" for line in lines))


def write(path: Path, first: int, end: int) -> None:
    """Append 'line 0' and so on, with stamps."""
    write_lines(path, [f"{STAMP}line {number}" for number in range(first, end)], "a")


def rotate(path: Path, parts: int) -> None:
    """Rename a log and its parts as the shim does, at most so many of them."""
    for number in range(parts, 0, -1):
        newer = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
        if newer.exists():
            newer.replace(path.with_name(f"{path.name}.{number}"))


class Reader:
    """A LogReader, and a way to wait for what it tells instead of sleeping."""

    def __init__(self, paths: Sequence[Path], block_bytes: int) -> None:
        self._told = threading.Condition()
        self.source = LogReader(paths, self._tell, block_bytes)

    def _tell(self) -> None:
        with self._told:
            self._told.notify_all()

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        with self._told:
            while not holds():
                left = deadline - time.monotonic()
                assert left > 0, f"waited in vain: {what}; {self.source.extent} {self.source.window.lines[-5:]}"
                self._told.wait(min(left, 0.05))

    def whole(self, count: int) -> list[str]:
        """Wait until `count` lines are counted, and return all lines that are shown."""
        self.until(lambda: self.source.extent.is_whole and self.count() == count, f"{count} lines, not {self.count()}")
        return self.read()

    def count(self) -> int:
        extent = self.source.extent
        return extent.lines

    def show(self, place: Key, around: int = 50) -> Window:
        ask = self.source.show(place, around)
        self.until(lambda: self.source.window.ask == ask, "the window")
        return self.source.window

    def read(self) -> list[str]:
        """Read all that is shown, from the start, window by window."""
        window = self.show(START)
        lines = list(window.lines)
        while lines and not window.last:
            window = self.show(lines[-1].key)
            assert window.lines[window.focus] == lines[-1]
            lines += window.lines[window.focus + 1 :]
        return [line.text for line in lines]

    def read_backwards(self) -> list[str]:
        window = self.show(END)
        lines = list(window.lines)
        while lines and not window.first:
            window = self.show(lines[0].key)
            lines[0:0] = window.lines[: window.focus]
        return [line.text for line in lines]

    def land(self, jump: int) -> LogLine | None:
        """Wait until a jump has ended; returns the line it led to."""
        self.until(lambda: self.source.window.jump == jump, "the jump's end")
        window = self.source.window
        return window.lines[window.focus] if window.has_found and window.focus < len(window.lines) else None


def alive(pids: Sequence[int]) -> list[int]:
    """Return those of these processes that have not ended; one that nobody has waited for yet has."""
    living = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                living.append(pid)
    return living


def readers() -> Iterator[Open]:
    """Yield what opens a log with a reader; all of them are closed in the end."""
    opened: list[Reader] = []

    def open_log(*paths: Path, block_bytes: int = 1 << 16) -> Reader:
        opened.append(Reader(paths, block_bytes))
        opened[-1].source.open()
        return opened[-1]

    yield open_log
    for reader in opened:
        reader.source.close()


class StillKeeper(SimulatedKeeper):
    """A keeper whose servers are what the test says, when it says so."""

    def __init__(self, folder: Path, *servers: Server) -> None:
        super().__init__(clock=lambda: NOW, folder=folder)
        self._still = replace(self.snapshot(), servers=servers)
        self._news: asyncio.Queue[Snapshot] = asyncio.Queue()

    async def updates(self) -> AsyncIterator[Update]:
        yield SnapshotUpdate(self._still)
        while True:
            yield SnapshotUpdate(await self._news.get())

    def tell(self, *servers: Server) -> None:
        self._news.put_nowait(replace(self._still, servers=servers))


def a_server(name: str, log: Path | None, state: ServerState = ServerState.READY) -> Server:
    some = SimulatedKeeper(clock=lambda: NOW).snapshot().servers[0]
    return replace(some, name=name, log_path=str(log) if log else None, state=state, state_since=NOW - 5)


class Screen:
    """The app on its logs screen, and what it shows."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot
        self.app = pilot.app

    @property
    def view(self) -> LogView:
        return self.app.screen.query_one(LogView)

    def rows(self) -> list[str]:
        height = self.view.scrollable_size.height
        return [self.view.render_line(y).text.rstrip() for y in range(height)]

    def said(self, part: str) -> str:
        return str(self.app.screen.query_one(part, Static).content)

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain: {what}; shown: {self.rows()}; {self.said('#foot')}"
            await self.pilot.pause(0.01)

    async def until_last(self, line: str) -> None:
        await self.until(lambda: [row for row in self.rows() if row][-1:] == [f"12:34:56.789 {line}"], line)


async def opened(pilot: Pilot[None]) -> Screen:
    await pilot.press("3")
    await pilot.pause()
    return Screen(pilot)
