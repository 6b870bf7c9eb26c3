"""A disk that is slow, full or hung must never hold the engine up, and the log must say what it lost."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from backends.processes.sink import QUEUE_BYTES, Sink
from tests.processes.conftest import until

if TYPE_CHECKING:
    from tests.processes.conftest import Launcher

COUNT = 500_000
"""Lines that with their stamps take more than the queue holds."""


def account(lines: list[str]) -> tuple[list[int], int, set[str]]:
    """The numbers of the engine's lines that reached the log, how many it says were dropped, and why."""
    numbers = [int(line.split()[1]) for line in lines if line.startswith("line ")]
    notes = [match for line in lines if (match := re.fullmatch(r"gpubox: (\d+) lines? dropped: (.+)", line))]
    return numbers, sum(int(note[1]) for note in notes), {note[2] for note in notes}


def test_a_hung_disk_does_not_hold_the_engine_up(start: Launcher, tmp_path: Path) -> None:
    """The log is a pipe that nobody reads: the worst of all disks."""
    log = tmp_path / "hung.log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    launched = start(f"lines:{COUNT}", "exit:0", log=str(log))
    until(lambda: launched.facts.exit, "the engine wrote all and ended")
    assert launched.facts.phase == "stopping"
    os.set_blocking(reader, True)
    with open(reader, "rb") as pipe:
        lines = [line[30:] for line in pipe.read().decode().splitlines()]
    numbers, dropped, why = account(lines)
    assert numbers == sorted(numbers)
    assert dropped > 0
    assert len(numbers) + dropped == COUNT
    assert why == {"the disk is too slow"}
    assert lines[-1] == "gpubox: engine ended with exit code 0"
    assert launched.await_end().dropped_lines == dropped


def test_a_full_disk_loses_only_what_does_not_fit_the_queue(start: Launcher, tmp_path: Path) -> None:
    go, end = tmp_path / "go", tmp_path / "end"
    launched = start("say:ready", f"await:{go}", f"lines:{COUNT}", "say:written", f"await:{end}", "exit:0")
    launched.await_line("ready")
    shim = launched.facts.shim.pid
    before = resource.prlimit(shim, resource.RLIMIT_FSIZE)
    # Room that ends within a line: what is written of it must be neither lost nor doubled.
    resource.prlimit(shim, resource.RLIMIT_FSIZE, (launched.log.stat().st_size + 100_010, before[1]))
    go.touch()
    engine = launched.facts.engine
    assert engine is not None
    written = Path(f"/proc/{engine.pid}/io")
    until(lambda: int(written.read_text().split("wchar: ")[1].split()[0]) > COUNT * 11, "the engine wrote all")
    until(lambda: launched.log.stat().st_size == resource.prlimit(shim, resource.RLIMIT_FSIZE)[0], "the disk is full")
    resource.prlimit(shim, resource.RLIMIT_FSIZE, before)
    end.touch()
    facts = launched.await_end()
    numbers, dropped, why = account(launched.lines())
    assert numbers == sorted(set(numbers))
    assert numbers[: QUEUE_BYTES // 50] == list(range(QUEUE_BYTES // 50))
    assert dropped > 0
    assert len(numbers) + dropped + ("written" in launched.lines()) == COUNT + len(["written"])
    assert why == {os.strerror(27)}, "File too large"
    assert facts.dropped_lines == dropped


def test_a_healthy_disk_loses_nothing_of_a_flood(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "log"), 1 << 30, 1, str(tmp_path / "progress"))
    sink.start()
    block = b"x" * 999 + b"\n"
    for _ in range(1000):
        sink.put(block * 100)
    sink.close(10)
    assert sink.dropped_lines == 0
    assert (tmp_path / "log").stat().st_size == 100_000_000


def test_what_cannot_be_written_at_the_end_is_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    sink = Sink(str(tmp_path / "log"), 1 << 30, 1, str(tmp_path / "progress"))
    sink.start()
    sink.put(b"x" * 99_999 + b"\n")
    sink.put(b"one\ntwo\n")
    sink.close(0.1)
    assert sink.dropped_lines == 3
    os.close(reader)


def test_a_line_longer_than_a_part_gets_a_part_to_itself(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "log"), 10, 9, str(tmp_path / "progress"))
    sink.start()
    sink.put(b"1234\n6789\na\n" + b"long" * 5 + b"\nb\nc\n")
    sink.close(5)
    parts = [(tmp_path / name).read_text() for name in ("log.3", "log.2", "log.1", "log")]
    assert parts == ["1234\n6789\n", "a\n", "longlonglonglonglong\n", "b\nc\n"]


def test_no_older_parts_are_kept_where_none_are_wanted(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "log"), 10, 0, str(tmp_path / "progress"))
    sink.start()
    sink.put(b"12345678\nabcdefgh\n")
    sink.close(5)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").read_text() == "abcdefgh\n"
