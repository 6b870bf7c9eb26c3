"""Logs by the times of their lines: going to one, merging several, and reading times as people say them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from backends.errors import UsageError
from backends.logs.moments import parse_moment
from backends.logs.windows import START
from tests.tui.logs_stage import Open, readers, rotate, write_lines


@pytest.fixture
def reading() -> Iterator[Open]:
    yield from readers()


def timed(source: str, first: int, end: int, every: int) -> list[str]:
    return [
        f"2026-11-21T12:{number // 60000:02}:{number // 1000 % 60:02}.{number % 1000:03}+00:00 {source} {number}"
        for number in range(first, end, every)
    ]


def test_a_time_is_gone_to_by_bisection_also_in_parts(tmp_path: Path, reading: Open) -> None:
    path = tmp_path / "a.log"
    lines = timed("a", 0, 600_000, 500)
    write_lines(path, lines[:700])
    rotate(path, 3)
    write_lines(path, lines[700:])
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
        write_lines(path, part)
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


@pytest.mark.parametrize("text", ["", "noon", "25:00", "14:99", "13-40 10:00", "-5x", "-999999d", "-99999999999999d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_moment(text, datetime.fromisoformat("2026-11-21T15:30:00+02:00"))
