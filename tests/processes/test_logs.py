from __future__ import annotations

import random
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backends.processes import logs
from backends.processes.logs import LogFollower
from backends.processes.sink import Sink

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def stamped(number: int, text: str = "line") -> str:
    """Line `number`, written `number` seconds after START."""
    return f"{(START + timedelta(seconds=number)).isoformat(timespec='milliseconds')} {text} {number}\n"


def numbers(lines: list[str]) -> list[int]:
    return [int(line.rsplit(" ", 1)[1]) for line in lines]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of 300 lines in three parts."""
    path = tmp_path / "demo-20261121-120000.log"
    for name, first in (("log.2", 0), ("log.1", 100), ("log", 200)):
        (tmp_path / f"demo-20261121-120000.{name}").write_text("".join(stamped(first + i) for i in range(100)))
    return path


# Which logs there are


def test_starts_are_newest_first_and_only_this_server_s(tmp_path: Path) -> None:
    for name in (
        "demo-20261121-120000.log",
        "demo-20261121-120000.log.1",
        "demo-20261122-000000.log",
        "demo-7b-20261123-000000.log",
        "demo-20261121-120000-20261124-000000.log",
        "demo-20269999-000000.log",
        "demo.log",
    ):
        (tmp_path / name).touch()
    starts = logs.log_starts(tmp_path, "demo")
    assert [start.path.name for start in starts] == ["demo-20261122-000000.log", "demo-20261121-120000.log"]
    assert starts[0].at == datetime(2026, 11, 22).astimezone()
    assert [start.path.name for start in logs.log_starts(tmp_path, "demo-7b")] == ["demo-7b-20261123-000000.log"]
    assert logs.log_starts(tmp_path / "none", "demo") == []


def test_a_new_log_never_shares_a_file_and_sorts_last(tmp_path: Path) -> None:
    now = time.time()
    first = logs.new_log_path(tmp_path, "demo", now)
    assert re.fullmatch(r"demo-\d{8}-\d{6}\.log", first.name)
    first.touch()
    second = logs.new_log_path(tmp_path, "demo", now)
    second.touch()
    after_setting_the_clock_back = logs.new_log_path(tmp_path, "demo", now - 3600)
    assert first.name < second.name < after_setting_the_clock_back.name


def test_prune_keeps_the_newest_starts_with_all_their_parts(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        for part in ("", ".1", ".2"):
            (tmp_path / f"demo-2026110{day}-000000.log{part}").touch()
    (tmp_path / "other-20261101-000000.log").touch()
    logs.prune(tmp_path, "demo", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "demo-20261103-000000.log",
        "demo-20261103-000000.log.1",
        "demo-20261103-000000.log.2",
        "other-20261101-000000.log",
    ]


# Reading


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250, 300, 1000])
def test_tail_reaches_back_over_parts(log: Path, count: int) -> None:
    assert numbers(logs.tail(log, count)) == list(range(max(0, 300 - count), 300))


def test_tail_of_long_lines_and_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert logs.tail(path, 5) == []
    path.touch()
    assert logs.tail(path, 5) == []
    path.write_text("".join(stamped(number, "x" * 50_000) for number in range(20)))
    assert numbers(logs.tail(path, 7)) == list(range(13, 20))


@pytest.mark.parametrize("moment", [-5, 0, 0.5, 1, 99.5, 100, 150.25, 299, 299.5])
def test_since_finds_the_moment(log: Path, moment: float) -> None:
    when = START + timedelta(seconds=moment)
    assert numbers(list(logs.since(log, when))) == [number for number in range(300) if number >= moment]


def test_since_understands_another_zone(log: Path) -> None:
    when = datetime.fromisoformat("2026-11-21T17:34:00+05:30")
    assert numbers(list(logs.since(log, when))) == list(range(240, 300))


def test_grep_looks_at_the_text_not_at_the_stamp() -> None:
    lines = [stamped(2026).rstrip(), stamped(7).rstrip()]
    assert numbers(list(logs.grep(lines, r"20\d6"))) == [2026]
    with pytest.raises(re.error):
        logs.grep(lines, "(")


def test_split_stamp() -> None:
    assert logs.split_stamp("2026-11-21T12:34:56.789+00:00  two") == (
        datetime(2026, 11, 21, 12, 34, 56, 789000, tzinfo=UTC),
        " two",
    )
    assert logs.split_stamp("no stamp") == (None, "no stamp")


# Following


def test_a_follower_waits_for_the_log_and_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    follower = LogFollower(path)
    assert follower.poll() == []
    with path.open("w") as file:
        file.write("one\ntw")
        file.flush()
        assert follower.poll() == ["one"]
        assert follower.poll() == []
        file.write("o\nthree\n")
        file.flush()
    assert follower.poll() == ["two", "three"]
    follower.close()


def test_a_follower_starts_at_the_last_lines(log: Path) -> None:
    follower = LogFollower(log, last=2)
    with log.open("a") as file:
        file.write(stamped(300))
    assert numbers(follower.poll()) == [299, 300]
    with log.open("a") as file:
        file.write(stamped(301))
    assert numbers(follower.poll()) == [301]
    follower.close()


def test_a_follower_that_slept_through_rotations_misses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("0\n")
    follower = LogFollower(path)
    assert follower.poll() == ["0"]
    with path.open("a") as file:
        file.write("1\n")
    for number in (2, 3, 4):
        for part in range(4, 0, -1):
            older = tmp_path / (f"log.{part - 1}" if part > 1 else "log")
            if older.exists():
                older.rename(tmp_path / f"log.{part}")
        assert number != 2 or follower.poll() == ["1"], "the next part is not there yet"
        path.write_text(f"{number}\n")
    found = []
    while new := follower.poll():
        found += new
    assert found == ["2", "3", "4"]
    follower.close()


def test_a_follower_whose_part_was_dropped_goes_on_with_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("0\n")
    follower = LogFollower(path)
    assert follower.poll() == ["0"]
    path.unlink()
    (tmp_path / "log.1").write_text("5\n")
    path.write_text("6\n")
    assert [*follower.poll(), *follower.poll()] == ["5", "6"]
    follower.close()


def test_a_part_whose_name_moves_while_it_is_looked_for_is_not_taken_for_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_text("0\n")
    follower = LogFollower(path)
    assert follower.poll() == ["0"]
    (tmp_path / "log.2").write_text("old\n")
    path.rename(tmp_path / "log.1")
    path.write_text("1\n")
    looks = []

    def moved_once(file: object, name: Path) -> bool:
        """As if the name had moved past the first search."""
        looks.append(name)
        return len(looks) > 3 and is_same(file, name)  # type: ignore[arg-type]

    is_same = logs._is
    monkeypatch.setattr(logs, "_is", moved_once)
    assert follower.poll() == ["1"]
    follower.close()


def test_a_part_that_somebody_gave_a_name_of_his_own_is_left_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("0\n")
    follower = LogFollower(path)
    assert follower.poll() == ["0"]
    path.rename(tmp_path / "kept")
    path.write_text("1\n")
    assert follower.poll() == ["1"]
    follower.close()


def test_readers_keep_up_with_a_writer_that_rotates(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = Sink(str(path), 2000, 500, str(tmp_path / "progress"))
    sink.start()
    count = 20_000
    over = threading.Event()

    def write() -> None:
        source = random.Random(3)
        at = 0
        while at < count:
            upto = min(count, at + source.randrange(1, 200))
            sink.put("".join(f"{number}\n" for number in range(at, upto)).encode())
            at = upto
            time.sleep(0.0002)
        sink.close(10)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    followed = list(logs.follow(path, ended=over.is_set, every_s=0.001))
    writer.join()
    assert [int(line) for line in followed] == list(range(count))
    assert len(logs.parts(path)) > 20
