"""The log's index against real files: huge, growing, rotating, truncated, and not text at all."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tui.widgets.log_view_source import LogSource

STAMP = "2026-11-21T12:34:56.789+00:00 "
DEADLINE_S = 20.0

Open = Callable[..., "Reader"]


class Reader:
    """A LogSource, and a way to wait for what it tells instead of sleeping."""

    def __init__(self, path: Path, block_bytes: int) -> None:
        self._told = threading.Condition()
        self.source = LogSource(path, self._tell, block_bytes)

    def _tell(self) -> None:
        with self._told:
            self._told.notify_all()

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        with self._told:
            while not holds():
                left = deadline - time.monotonic()
                assert left > 0, f"waited in vain: {what}; {self.source.extent}"
                self._told.wait(min(left, 0.05))

    def whole(self, count: int) -> list[str]:
        """Wait until `count` lines are known from the oldest on, and return them all."""
        self.until(lambda: self.source.extent.is_whole and self.count() == count, f"{count} lines, not {self.count()}")
        return self.read(self.source.extent.first, self.source.extent.end)

    def count(self) -> int:
        return self.source.extent.end - self.source.extent.first

    def read(self, first: int, end: int) -> list[str]:
        lines: list[str] = []
        for start in range(first, end, 50):
            stop = min(end, start + 50)
            self.source.want(start, stop)
            self.until(lambda a=start, b=stop: None not in self.source.lines(a, b), f"lines {start}–{stop}")  # type: ignore[misc]
            lines += [line or "" for line in self.source.lines(start, stop)]
        return lines


@pytest.fixture
def reading() -> Iterator[Open]:
    readers: list[Reader] = []

    def open_log(path: Path, block_bytes: int = 1 << 16) -> Reader:
        readers.append(Reader(path, block_bytes))
        readers[-1].source.open()
        return readers[-1]

    yield open_log
    for reader in readers:
        reader.source.close()


def numbered(first: int, end: int) -> list[str]:
    return [f"{STAMP}line {number} {'é' * (number % 7)}" for number in range(first, end)]


def write(path: Path, lines: list[str], mode: str = "w") -> None:
    with path.open(mode) as file:
        file.write("".join(f"{line}\n" for line in lines))


def test_every_line_is_read_whatever_the_size_of_a_block(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    lines = numbered(0, 400)
    write(path, lines)
    for block_bytes in (64, 100, 1000, 1 << 16):
        assert reading(path, block_bytes).whole(400) == lines


def test_a_log_of_200_000_lines_shows_its_end_before_it_is_indexed(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "big.log"
    write(path, numbered(0, 200_000))
    reader = reading(path)
    reader.until(lambda: reader.source.extent.exists, "the first sight of it")
    assert reader.read(-3, 0) == numbered(199_997, 200_000)
    reader.until(lambda: reader.source.extent.is_whole, "the whole index")
    first = reader.source.extent.first
    assert first == -200_000
    assert reader.read(first, first + 2) == numbered(0, 2)
    assert reader.read(-100_000, -99_998) == numbered(100_000, 100_002)


def test_lines_keep_their_numbers_while_the_log_grows(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 10))
    reader = reading(path, 256)
    reader.whole(10)
    for start in range(10, 200, 10):
        write(path, numbered(start, start + 10), "a")
        reader.until(lambda end=start: reader.count() == end + 10, "what was appended")  # type: ignore[misc]
    assert reader.read(-10, 190) == numbered(0, 200)


def test_a_line_that_is_still_being_written_is_shown_and_completed(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    path.write_text("one\ntw")
    reader = reading(path)
    assert reader.whole(2) == ["one", "tw"]
    with path.open("a") as file:
        file.write("o\nthree\n")
    reader.until(lambda: reader.count() == 3, "three lines")
    assert reader.read(-1, 2) == ["one", "two", "three"]


def test_a_file_that_does_not_exist_yet_is_waited_for(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "later.log"
    reader = reading(path)
    assert not reader.source.extent.exists
    write(path, ["first"])
    assert reader.whole(1) == ["first"]


def rotate(path: Path, parts: int) -> None:
    for number in range(parts, 0, -1):
        newer = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
        if newer.exists():
            newer.replace(path.with_name(f"{path.name}.{number}"))


def test_parts_that_were_rotated_before_are_read_as_one(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    for part in range(4):
        rotate(path, 9)
        write(path, numbered(part * 50, part * 50 + 50))
    assert reading(path, 300).whole(200) == numbered(0, 200)


def test_rotation_loses_and_repeats_nothing(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 20))
    reader = reading(path, 300)
    reader.whole(20)
    for part in range(1, 6):
        write(path, numbered(part * 20, part * 20 + 10), "a")
        rotate(path, 9)
        write(path, numbered(part * 20 + 10, part * 20 + 20))
        if part % 2:  # Two rotations at once must be seen, too.
            reader.until(lambda end=part: reader.count() == end * 20 + 20, "the new part")  # type: ignore[misc]
    reader.until(lambda: reader.count() == 120, "all parts")
    assert reader.read(-20, 100) == numbered(0, 120)


def test_deleted_parts_are_let_go(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 20))
    reader = reading(path, 300)
    reader.whole(20)
    found = reader.source.search(re.compile("line 1"))
    assert found is not None
    reader.until(lambda: found.is_done, "the search")
    for part in range(1, 4):
        rotate(path, 1)
        write(path, numbered(part * 20, part * 20 + 20))
        reader.until(lambda: reader.source.extent.end == part * 20, "the new part")  # noqa: B023
    assert reader.read(reader.source.extent.first, reader.source.extent.end) == numbered(40, 80)
    assert found.before(reader.source.extent.end) is None
    links = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [link for link in links if link.startswith(str(tmp_path)) and "(deleted)" in link]


def test_a_truncated_file_is_read_anew(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 50))
    reader = reading(path, 300)
    reader.whole(50)
    write(path, ["anew"])
    assert reader.whole(1) == ["anew"]


def test_bytes_that_are_no_text_and_control_characters_are_harmless(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"a\xff\xfeb\n\x1b[31mred\x1b[0m\x07\ttab\n" + bytes(range(32)) + b"\n\r\n\n\xc2\x9bX\nend\n")
    lines = reading(path).whole(8)
    assert lines[0] == "a��b"
    assert lines[1] == "red     tab"
    assert lines[-1] == "end"
    assert not re.search("[\x00-\x1f\x7f-\x9f]", "".join(lines))


def test_a_line_longer_than_a_block_loses_nothing(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    path.write_text("before\n" + "x" * 5000 + "\nafter\n")
    reader = reading(path, 1000)
    reader.until(lambda: reader.source.extent.is_whole, "the index")
    extent = reader.source.extent
    lines = reader.read(extent.first, extent.end)
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "".join(lines[1:-1]) == "x" * 5000


def test_a_file_that_may_not_be_read_is_told_in_one_line(tmp_path: Path, reading: Open) -> None:
    reader = reading(tmp_path)
    reader.until(lambda: reader.source.extent.problem is not None, "the problem")
    assert reader.source.extent.problem == "Is a directory"


def test_a_search_finds_older_and_newer_lines_but_not_in_the_stamps(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, [f"{STAMP}{'ERROR' if number % 100 == 7 else 'fine'} {number}" for number in range(1000)])
    reader = reading(path, 500)
    search = reader.source.search(re.compile("^ERROR"))
    assert search is not None
    reader.until(lambda: search.is_done, "the search")
    assert search.count == 10
    last = search.before(reader.source.extent.end)
    assert last is not None
    assert search.rank(last) == 10
    assert reader.read(last, last + 1) == [f"{STAMP}ERROR 907"]
    write(path, [f"{STAMP}ERROR 1007"], "a")
    reader.until(lambda: search.count == 11, "the new match")
    assert search.at_or_after(last + 1) == reader.source.extent.end - 1
    first = search.at_or_after(reader.source.extent.first)
    assert first is not None
    assert (search.rank(first), search.before(first)) == (1, None)
    stamped = reader.source.search(re.compile("2026-11-21"))
    assert stamped is not None
    reader.until(lambda: stamped.is_done, "the search in vain")
    assert stamped.count == 0


def test_nothing_is_read_while_paused_and_nothing_is_missed(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 5))
    reader = reading(path)
    reader.whole(5)
    reader.source.pause()
    time.sleep(0.3)  # The round that is under way may come to its end.
    write(path, numbered(5, 10), "a")
    rotate(path, 3)
    write(path, numbered(10, 15))
    time.sleep(0.3)  # Nothing is to happen, so there is nothing to wait for.
    assert reader.count() == 5
    reader.source.resume()
    reader.until(lambda: reader.count() == 15, "what was missed")
    assert reader.read(-5, 10) == numbered(0, 15)


def test_memory_is_bounded(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 5000))
    reader = reading(path, 256)
    reader.whole(5000)
    assert len(reader.source._cache) <= 48
