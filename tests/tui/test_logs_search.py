"""Filters and searches of real logs, in children: what they find, and that they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backends.logs.text import RANKS
from backends.logs.windows import END, START
from tests.tui.logs_stage import DEADLINE_S, STAMP, Open, alive, numbered, readers, write_lines


@pytest.fixture
def reading() -> Iterator[Open]:
    yield from readers()


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
    write_lines(path, REAL * 30)
    reader = reading(path, block_bytes=block_bytes)
    reader.whole(300)
    assert reader.source.extent.processes == ("APIServer", "EngineCore", "Worker_TP0", "gpubox") or block_bytes == 100
    reader.source.filter(RANKS[level], processes)
    lines = [REAL[number] for number in wanted] * 30
    if len(wanted) < 10:
        reader.until(lambda: reader.source.extent.shown == len(lines), "all that pass")
    assert reader.read() == reader.read_backwards() == lines
    write_lines(path, REAL, "a")
    reader.until(lambda: reader.source.extent.appended_lines == 10, "what was appended")
    if len(wanted) < 10:
        reader.until(lambda: reader.source.extent.shown == len(lines) + len(wanted), "what passes of it")
    assert reader.read() == lines + [REAL[number] for number in wanted]


def errors_in(path: Path, count: int) -> list[str]:
    lines = [f"{STAMP}{'ERROR: bad' if number % 100 == 7 else 'INFO: fine'} {number}" for number in range(count)]
    write_lines(path, lines)
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
    write_lines(path, [f"{STAMP}ERROR 1007"], "a")
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
    write_lines(path, lines)
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


def test_searching_children_end_with_the_reader_and_when_cancelled(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write_lines(path, numbered(0, 2000))
    reader = reading(path)
    reader.whole(2000)
    reader.source.search(re.compile("line 1"), (0, ()), START)
    reader.until(lambda: reader.source.extent.matches == 1111, "the search")
    first = reader.source.search_pids
    reader.source.search(re.compile("line 2"), (0, ()), START)
    reader.until(lambda: not alive(first), "the first child's end")
    reader.until(lambda: bool(reader.source.search_pids), "another child")
    second = reader.source.search_pids
    reader.source.close()
    reader.until(lambda: not alive(second), "the child's end")


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    write_lines(path, numbered(0, 2000))
    code = (
        "import re, sys, time; from pathlib import Path\n"
        "from backends.logs.reader import LogReader; from backends.logs.windows import START\n"
        "reader = LogReader([Path(sys.argv[1])], lambda: None); reader.open()\n"
        "reader.search(re.compile('line'), (0, ()), START)\n"
        "while not reader.search_pids or not reader.extent.matches: time.sleep(0.01)\n"
        "print(*reader.search_pids, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == len(alive(pids)) == 2
        parent.kill()
    deadline = time.monotonic() + DEADLINE_S
    while alive(pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


ENDLESS = "a" * 28 + "b"
"""Looking for (a+)+$ in this takes minutes, and some letters more take years."""


def test_an_expression_that_would_take_for_ever_gives_lines_up_and_keeps_no_thread_waiting(
    tmp_path: Path, reading: Open
) -> None:
    path = tmp_path / "a.log"
    lines = [f"{STAMP}{'x aaa' if number % 50 == 7 else f'b {number}'}" for number in range(300)]
    write_lines(path, [*lines[:100], f"{STAMP}{ENDLESS}", *lines[100:], f"{STAMP}{ENDLESS}"])
    reader = reading(path)
    reader.source.search(re.compile("(a+)+$"), (0, ()), START)
    here, found = START, []
    for _ in range(6):
        line = reader.land(reader.source.jump_to_match(here, 1))
        assert line is not None
        found.append(line.text)
        here = line.key
    assert found == [f"{STAMP}x aaa"] * 6
    reader.until(lambda: not reader.source.extent.is_searching, "the search's end")
    assert (reader.source.extent.matches, reader.source.extent.given_up) == (6, 2)
    window = reader.show(END)
    assert {line.text[slice(*span)] for line in window.lines for span in window.spans.get(line.key, ())} == {"aaa"}


def test_a_search_whose_child_dies_says_so(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    write_lines(path, numbered(0, 100))
    reader = reading(path)
    reader.source.search(re.compile("line 1"), (0, ()), START)
    reader.until(lambda: reader.source.extent.matches == 11, "the search")
    assert not reader.source.extent.has_failed
    for pid in reader.source.search_pids:
        os.kill(pid, signal.SIGKILL)
    reader.until(lambda: reader.source.extent.has_failed, "the end of its child")
    assert reader.land(reader.source.jump_to_match(START, 1)) is None
