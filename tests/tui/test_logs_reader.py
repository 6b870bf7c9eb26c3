"""The log's index against real files: huge, growing, rotating, truncated, and not text at all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from backends.errors import UsageError
from backends.logs.moments import parse_moment
from backends.logs.reader import LogReader
from backends.logs.text import RANKS
from backends.logs.windows import END, START, Key, LogLine, Window

STAMP = "2026-11-21T12:34:56.789+00:00 "
DEADLINE_S = 20.0

Open = Callable[..., "Reader"]


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


@pytest.fixture
def reading() -> Iterator[Open]:
    readers: list[Reader] = []

    def open_log(*paths: Path, block_bytes: int = 1 << 16) -> Reader:
        readers.append(Reader(paths, block_bytes))
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
        assert reading(path, block_bytes=block_bytes).whole(400) == lines


def test_a_log_of_200_000_lines_shows_end_start_and_middle_before_its_lines_are_counted(
    tmp_path: Path, reading: Open
) -> None:
    path = tmp_path / "big.log"
    lines = numbered(0, 200_000)
    write(path, lines)
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
    write(path, numbered(0, 10))
    reader = reading(path, block_bytes=256)
    reader.whole(10)
    for start in range(10, 200, 10):
        write(path, numbered(start, start + 10), "a")
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
    assert reading(path, block_bytes=300).whole(200) == numbered(0, 200)


def test_rotation_loses_and_repeats_nothing(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 20))
    reader = reading(path, block_bytes=300)
    reader.whole(20)
    for part in range(1, 6):
        write(path, numbered(part * 20, part * 20 + 10), "a")
        rotate(path, 9)
        write(path, numbered(part * 20 + 10, part * 20 + 20))
        if part % 2:  # Two rotations at once must be seen, too.
            reader.until(lambda end=part: reader.count() == end * 20 + 20, "the new part")  # type: ignore[misc]
    reader.until(lambda: reader.count() == 120, "all parts")
    assert reader.read() == reader.read_backwards() == numbered(0, 120)


def test_deleted_parts_are_let_go(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 20))
    reader = reading(path, block_bytes=300)
    reader.whole(20)
    reader.source.search(re.compile("line 1"), (0, ()), START)
    reader.until(lambda: reader.source.extent.matches == 11, "the search")
    for part in range(1, 4):
        rotate(path, 1)
        write(path, numbered(part * 20, part * 20 + 20))
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
    write(path, numbered(0, 50))
    reader = reading(path, block_bytes=300)
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


def test_a_line_longer_than_many_blocks_is_one_line(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    lines = ["before", "x" * 5000, "after", "", "y" * 999, "z" * 1000, "end"]
    write(path, lines)
    reader = reading(path, block_bytes=1000)
    assert reader.whole(7) == lines == reader.read_backwards()


def test_a_file_that_may_not_be_read_is_told_in_one_line(tmp_path: Path, reading: Open) -> None:
    reader = reading(tmp_path)
    reader.until(lambda: reader.source.extent.problem is not None, "the problem")
    assert reader.source.extent.problem == "Is a directory"


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
    assert reader.read() == numbered(0, 15)


def test_memory_is_bounded(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 60_000))
    reader = reading(path)
    reader.whole(60_000)
    assert reader.source._sources[0]._kept.lines <= 20_000


REAL = [
    f"{STAMP}(APIServer pid=1) INFO 11-21 12:34:56 [a.py:1] begins",
    f"{STAMP}(EngineCore pid=2) INFO 11-21 12:34:56 [core.py:1] engine",
    f"{STAMP}(EngineCore pid=2) WARNING 11-21 12:34:56 [core.py:1] careful",
    f"{STAMP}  and this belongs to the warning",
    f"{STAMP}(APIServer pid=1) Traceback (most recent call last):",
    f"{STAMP}(APIServer pid=1)   File 'a.py'",
    f"{STAMP}ValueError: broken",
    f"{STAMP}(Worker_TP0 pid=3) DEBUG 11-21 12:34:56 [w.py:1] noise",
    f"{STAMP}W1121 12:34:56.575000 5143 torch/_library/triton.py:53] Triton not available",
    f"{STAMP}gpubox: ended with code 1",
]


@pytest.mark.parametrize("block_bytes", [100, 1 << 16])
@pytest.mark.parametrize(
    ("level", "processes", "wanted"),
    [
        ("DEBUG", (), range(10)),
        ("INFO", (), [0, 1, 2, 3, 4, 5, 6, 8, 9]),
        ("WARNING", (), [2, 3, 4, 5, 6, 8]),
        ("ERROR", (), [4, 5, 6]),
        ("CRITICAL", (), []),
        ("DEBUG", ("EngineCore",), [1, 2, 3]),
        ("ERROR", ("EngineCore",), []),
        ("WARNING", ("EngineCore", "APIServer"), [2, 3, 4, 5, 6]),
        ("DEBUG", ("gpubox",), [9]),
    ],
)
def test_a_filter_lets_pass_levels_and_processes_and_what_belongs_to_them(
    tmp_path: Path, reading: Open, level: str, processes: tuple[str, ...], wanted: Sequence[int], block_bytes: int
) -> None:
    path = tmp_path / "a.log"
    write(path, REAL * 30)
    reader = reading(path, block_bytes=block_bytes)
    reader.whole(300)
    assert reader.source.extent.processes == ("APIServer", "EngineCore", "Worker_TP0", "gpubox") or block_bytes == 100
    reader.source.filter(RANKS[level], processes)
    lines = [REAL[number] for number in wanted] * 30
    if len(wanted) < 10:
        reader.until(lambda: reader.source.extent.shown == len(lines), "all that pass")
    assert reader.read() == reader.read_backwards() == lines
    write(path, REAL, "a")
    reader.until(lambda: reader.source.extent.appended_lines == 10, "what was appended")
    if len(wanted) < 10:
        reader.until(lambda: reader.source.extent.shown == len(lines) + len(wanted), "what passes of it")
    assert reader.read() == lines + [REAL[number] for number in wanted]


def errors_in(path: Path, count: int) -> list[str]:
    lines = [f"{STAMP}{'ERROR: bad' if number % 100 == 7 else 'INFO: fine'} {number}" for number in range(count)]
    write(path, lines)
    return lines


def test_a_search_finds_older_and_newer_lines_but_not_in_the_stamps(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    lines = errors_in(path, 1000)
    reader = reading(path, block_bytes=500)
    reader.source.search(re.compile("^ERROR"), (0, ()), END)
    found = reader.land(reader.source.jump_to_match(END, 0))
    assert found is not None
    assert found.text == lines[907]
    reader.until(lambda: reader.source.extent.matches == 10 and not reader.source.extent.is_searching, "the search")
    reader.until(lambda: reader.source.extent.match == 10, "its rank")
    again = reader.land(reader.source.jump_to_match(found.key, 1))
    assert again is not None
    assert again.text == lines[7]
    assert reader.land(reader.source.jump_to_match(again.key, -1)) == found
    write(path, [f"{STAMP}ERROR 1007"], "a")
    reader.until(lambda: reader.source.extent.matches == 11, "the new match")
    newest = reader.land(reader.source.jump_to_match(found.key, 1))
    assert newest is not None
    assert newest.text == f"{STAMP}ERROR 1007"
    reader.source.search(re.compile("2026-11-21"), (0, ()), START)
    assert reader.land(reader.source.jump_to_match(START, 0)) is None
    assert reader.source.extent.matches == 0


@pytest.mark.parametrize(
    "pattern", ["LINE 1[0-9]5 ", "line 15. é+", "(?i)LINE 77", "^line 7|line 8$", "é{6}", "x|line 42 "]
)
def test_a_search_finds_what_the_expression_finds_line_by_line(tmp_path: Path, reading: Open, pattern: str) -> None:
    path = tmp_path / "a.log"
    lines = [line for number in range(500) for line in (numbered(number, number + 1)[0], f"{STAMP}plain {number}")]
    write(path, lines)
    expression = re.compile(pattern, re.IGNORECASE)
    wanted = [line for line in lines if expression.search(line[len(STAMP) :])]
    assert wanted
    reader = reading(path, block_bytes=4096)
    reader.source.search(expression, (0, ()), START)
    reader.until(lambda: reader.source.extent.matches == len(wanted), f"{len(wanted)} matches")
    reader.until(lambda: not reader.source.extent.is_searching, "the end of the search")
    assert reader.source.extent.matches == len(wanted)
    found, here = [], START
    for _ in wanted:
        line = reader.land(reader.source.jump_to_match(here, 1))
        assert line is not None
        found.append(line.text)
        here = line.key
    assert found == wanted


def test_a_search_sees_only_what_the_filter_lets_pass(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    errors_in(path, 1000)
    reader = reading(path, block_bytes=500)
    reader.whole(1000)
    reader.source.filter(RANKS["ERROR"], ())
    reader.source.search(re.compile("[0-9]*07"), (RANKS["ERROR"], ()), START)
    reader.until(lambda: reader.source.extent.shown == 10, "the filter")
    reader.until(lambda: reader.source.extent.matches == 9, "the search")


def test_the_first_error_and_then_the_next_are_found(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    lines = errors_in(path, 300)
    reader = reading(path, block_bytes=700)
    here, found = START, []
    while line := reader.land(reader.source.jump_to_error(here)):
        found.append(line.text)
        here = (line.key[0], line.key[1], line.key[2] + 1)
    assert found == [lines[7], lines[107], lines[207]]


def timed(source: str, first: int, end: int, every: int) -> list[str]:
    return [
        f"2026-11-21T12:{number // 60000:02}:{number // 1000 % 60:02}.{number % 1000:03}+00:00 {source} {number}"
        for number in range(first, end, every)
    ]


def test_a_time_is_gone_to_by_bisection_also_in_parts(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    lines = timed("a", 0, 600_000, 500)
    write(path, lines[:700])
    rotate(path, 3)
    write(path, lines[700:])
    reader = reading(path, block_bytes=600)
    reader.whole(1200)
    for wanted in (0, 1, 699, 700, 701, 1199):
        moment = datetime.fromisoformat(lines[wanted][:29])
        line = reader.land(reader.source.jump_to_moment(moment - timedelta(milliseconds=100)))
        assert line is not None
        assert line.text == lines[wanted]


def test_logs_are_merged_by_time_and_lines_without_one_stay_with_theirs(tmp_path: Path, reading: Open) -> None:
    one, other, third = (tmp_path / f"{name}.log" for name in ("one", "other", "third"))
    parts = [timed("one", 0, 60_000, 300), timed("other", 100, 60_000, 500), timed("third", 0, 60_000, 7000)]
    merged = sorted((line for part in parts for line in part), key=lambda line: line[:29])
    for path, part in zip((one, other, third), parts, strict=True):
        write(path, part)
    reader = reading(one, other, third, block_bytes=900)
    assert reader.whole(len(merged)) == merged
    assert reader.read_backwards() == merged
    reader.source.filter(0, ("nobody",))
    reader.until(lambda: reader.source.extent.shown == 0, "the filter")
    reader.source.filter(0, ())
    reader.source.search(re.compile("other 20100$|third 42000$|one 59700$"), (0, ()), START)
    found, here = [], START
    for _ in range(3):
        line = reader.land(reader.source.jump_to_match(here, 1))
        assert line is not None
        found.append(line.text.partition(" ")[2])
        here = line.key
    assert found == ["other 20100", "third 42000", "one 59700"]


def test_searching_children_end_with_the_reader_and_when_cancelled(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 2000))
    reader = reading(path)
    reader.whole(2000)
    reader.source.search(re.compile("line 1"), (0, ()), START)
    reader.until(lambda: reader.source.extent.matches == 1111, "the search")
    (first,) = reader.source.search_pids
    reader.source.search(re.compile("line 2"), (0, ()), START)
    reader.until(lambda: not os.path.exists(f"/proc/{first}"), "the first child's end")
    reader.until(lambda: bool(reader.source.search_pids), "another child")
    (second,) = reader.source.search_pids
    reader.source.close()
    reader.until(lambda: not os.path.exists(f"/proc/{second}"), "the child's end")


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    write(path, numbered(0, 2000))
    code = (
        "import re, sys, time; from pathlib import Path\n"
        "from backends.logs.reader import LogReader; from backends.logs.windows import START\n"
        "reader = LogReader([Path(sys.argv[1])], lambda: None); reader.open()\n"
        "reader.search(re.compile('line'), (0, ()), START)\n"
        "while not reader.search_pids or not reader.extent.matches: time.sleep(0.01)\n"
        "print(reader.search_pids[0], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert os.path.exists(f"/proc/{pid}")
        parent.kill()
    deadline = time.monotonic() + DEADLINE_S
    while os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("14:03", "2026-11-21T14:03:00+02:00"),
        ("14:03:20.5", "2026-11-21T14:03:20.500+02:00"),
        ("23:59", "2026-11-20T23:59:00+02:00"),
        ("-5m", "2026-11-21T15:25:00+02:00"),
        ("2h", "2026-11-21T13:30:00+02:00"),
        ("11-19 08:00", "2026-11-19T08:00:00+02:00"),
        ("12-31 08:00", "2025-12-31T08:00:00+02:00"),
        ("2026-11-21 08:00", "2026-11-21T08:00:00+02:00"),
    ],
)
def test_times_are_read_as_people_say_them(text: str, wanted: str) -> None:
    last = datetime.fromisoformat("2026-11-21T15:30:00+02:00")
    assert parse_moment(text, last) == datetime.fromisoformat(wanted)


@pytest.mark.parametrize("text", ["", "noon", "25:00", "14:99", "13-40 10:00", "-5x"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_moment(text, datetime.fromisoformat("2026-11-21T15:30:00+02:00"))
