"""The log's index against real files: huge, growing, rotating, truncated, and not text at all."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.logs.windows import START
from tests.tui.logs_stage import Open, numbered, readers, rotate, write_lines


@pytest.fixture
def reading() -> Iterator[Open]:
    yield from readers()


def test_every_line_is_read_whatever_the_size_of_a_block(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    lines = numbered(0, 400)
    write_lines(path, lines)
    for block_bytes in (64, 100, 1000, 1 << 16):
        assert reading(path, block_bytes=block_bytes).whole(400) == lines


def test_a_log_of_200_000_lines_shows_end_start_and_middle_before_its_lines_are_counted(
    tmp_path: Path, reading: Open
) -> None:
    path = tmp_path / "big.log"
    lines = numbered(0, 200_000)
    write_lines(path, lines)
    reader = reading(path)
    reader.until(lambda: bool(reader.source.window.lines), "the first sight of it")
    assert [line.text for line in reader.source.window.lines[-3:]] == lines[-3:]
    first = reader.show(START)
    assert ([line.text for line in first.lines[:2]], first.first, first.last) == (lines[:2], True, False)
    middle = reader.land(reader.source.jump_to(0.5))
    assert middle is not None
    assert lines.index(middle.text) in range(95_000, 105_000)
    reader.until(lambda: reader.source.extent.is_whole, "all lines are counted")
    assert reader.count() == 200_000
    window = reader.show(middle.key)
    assert window.number is not None
    assert lines[window.number - 1 + window.focus] == middle.text


def test_lines_keep_their_numbers_while_the_log_grows(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write_lines(path, numbered(0, 10))
    reader = reading(path, block_bytes=256)
    reader.whole(10)
    for start in range(10, 200, 10):
        write_lines(path, numbered(start, start + 10), "a")
        reader.until(lambda end=start: reader.count() == end + 10, "what was appended")  # type: ignore[misc]
    assert reader.read() == reader.read_backwards() == numbered(0, 200)


def test_a_line_that_is_still_being_written_is_shown_and_completed(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    path.write_text("one\ntw")
    reader = reading(path)
    assert reader.whole(2) == ["one", "tw"]
    with path.open("a") as file:
        file.write("o\nthree\n")
    reader.until(lambda: reader.count() == 3, "three lines")
    assert reader.read() == ["one", "two", "three"]


def test_a_file_that_does_not_exist_yet_is_waited_for(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "later.log"
    reader = reading(path)
    assert not reader.source.extent.exists
    write_lines(path, ["first"])
    assert reader.whole(1) == ["first"]


def test_parts_that_were_rotated_before_are_read_as_one(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    for part in range(4):
        rotate(path, 9)
        write_lines(path, numbered(part * 50, part * 50 + 50))
    assert reading(path, block_bytes=300).whole(200) == numbered(0, 200)


def test_rotation_loses_and_repeats_nothing(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write_lines(path, numbered(0, 20))
    reader = reading(path, block_bytes=300)
    reader.whole(20)
    for part in range(1, 6):
        write_lines(path, numbered(part * 20, part * 20 + 10), "a")
        rotate(path, 9)
        write_lines(path, numbered(part * 20 + 10, part * 20 + 20))
        if part % 2:  # Two rotations at once must be seen, too.
            reader.until(lambda end=part: reader.count() == end * 20 + 20, "the new part")  # type: ignore[misc]
    reader.until(lambda: reader.count() == 120, "all parts")
    assert reader.read() == reader.read_backwards() == numbered(0, 120)


def test_deleted_parts_are_let_go(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write_lines(path, numbered(0, 20))
    reader = reading(path, block_bytes=300)
    reader.whole(20)
    reader.source.search(re.compile("line 1"), (0, ()), START)
    reader.until(lambda: reader.source.extent.matches == 11, "the search")
    for part in range(1, 4):
        rotate(path, 1)
        write_lines(path, numbered(part * 20, part * 20 + 20))
        reader.until(lambda: reader.source.extent.appended_lines == part * 20, "the new part")  # noqa: B023
    assert reader.whole(40) == numbered(40, 80)
    reader.until(lambda: reader.source.extent.matches == 0, "matches go with their lines")
    links = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [link for link in links if link.startswith(str(tmp_path)) and "(deleted)" in link]


def test_a_truncated_file_is_read_anew(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write_lines(path, numbered(0, 50))
    reader = reading(path, block_bytes=300)
    reader.whole(50)
    write_lines(path, ["anew"])
    assert reader.whole(1) == ["anew"]


def test_bytes_that_are_no_text_and_control_characters_are_harmless(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"a\xff\xfeb\n\x1b[31mred\x1b[0m\x07\ttab\n" + bytes(range(32)) + b"\n\r\n\n\xc2\x9bX\nend\n")
    lines = reading(path).whole(8)
    assert lines[0] == "a��b"
    assert lines[1] == "red     tab"
    assert lines[-1] == "end"
    assert not re.search("[\x00-\x1f\x7f-\x9f]", "".join(lines))


def test_a_line_longer_than_many_blocks_is_one_line(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    lines = ["before", "x" * 5000, "after", "", "y" * 999, "z" * 1000, "end"]
    write_lines(path, lines)
    reader = reading(path, block_bytes=1000)
    assert reader.whole(7) == lines == reader.read_backwards()


def test_a_file_that_may_not_be_read_is_told_in_one_line(tmp_path: Path, reading: Open) -> None:
    reader = reading(tmp_path)
    reader.until(lambda: reader.source.extent.problem is not None, "the problem")
    assert reader.source.extent.problem == "Is a directory"


def test_nothing_is_read_while_paused_and_nothing_is_missed(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write_lines(path, numbered(0, 5))
    reader = reading(path)
    reader.whole(5)
    reader.source.pause()
    time.sleep(0.3)  # The round that is under way may come to its end.
    write_lines(path, numbered(5, 10), "a")
    rotate(path, 3)
    write_lines(path, numbered(10, 15))
    time.sleep(0.3)  # Nothing is to happen, so there is nothing to wait for.
    assert reader.count() == 5
    reader.source.resume()
    reader.until(lambda: reader.count() == 15, "what was missed")
    assert reader.read() == numbered(0, 15)


def test_memory_is_bounded(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write_lines(path, numbered(0, 60_000))
    reader = reading(path)
    reader.whole(60_000)
    assert reader.source._sources[0]._kept.lines <= 20_000
