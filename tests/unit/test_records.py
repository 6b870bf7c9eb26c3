"""The records in SQLite: what is written is read again, alike is told from unalike, no broken file stops anybody."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends.records import MIGRATIONS, Launch, Records, fingerprint
from backends.starts import StageTime, StartFigures
from profiles.schema import Profile, parse_profile

GIB = 1 << 30
FIGURES = StartFigures(weights_bytes=12 * GIB, kv_tokens=791_808, max_concurrency=96.66, max_model_len=8192)


def profile(**changes: Any) -> Profile:
    return parse_profile({"name": "m7b", "model": "/models/m7b", "gpus": "cpu"} | changes, "test")


def launch(number: int = 1, **changes: Any) -> Launch:
    values: dict[str, Any] = {
        "id": f"m7b/{number}",
        "server": "m7b",
        "profile": "m7b",
        "fingerprint": fingerprint(profile()),
        "engine": "vllm",
        "engine_version": "0.26.0",
        "gpu_kind": "NVIDIA H200",
        "gpu_count": 1,
        "launched_at": 1000.0 * number,
        "ready_at": 1000.0 * number + 80,
        "outcome": "ready",
        "compile_cached": False,
        "stages": (StageTime("boot", 0.5), StageTime("weights", 3.5)),
        "figures": FIGURES,
        "log_path": "/logs/m7b.log",
    }
    return Launch(**(values | changes))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "data" / "records.sqlite")


def test_what_is_written_is_read_again_newest_first(records: Records) -> None:
    first, second = launch(1), launch(2, outcome="failed", ready_at=None, figures=None, cause="no room", card="no-kv")
    assert records.add(first)
    assert records.add(second)
    assert records.add(launch(3, server="other", compile_cached=None))
    assert records.launches("m7b") == (second, first)
    assert [one.server for one in records.launches(limit=2)] == ["other", "m7b"]
    assert records.launch("m7b/1") == first
    assert records.launch("m7b/9") is None


def test_a_launch_is_written_over_as_it_goes_on(records: Records) -> None:
    records.add(launch(1, outcome="starting", ready_at=None, stages=(), figures=None))
    records.add(launch(1))
    assert records.launches() == (launch(1),)


def test_file_and_folder_are_the_users_alone(records: Records, tmp_path: Path) -> None:
    records.add(launch())
    path = tmp_path / "data" / "records.sqlite"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_figures_are_learned_from_the_newest_start_alike(records: Records) -> None:
    older, newer = StartFigures(weights_bytes=1), StartFigures(weights_bytes=2)
    records.add(launch(1, figures=older, engine_version="0.26.0"))
    records.add(launch(2, figures=newer, engine_version="0.27.0"))
    records.add(launch(3, figures=None))
    records.add(launch(4, ready_at=None, outcome="failed", figures=StartFigures(weights_bytes=3)))
    assert records.learned(profile(), "NVIDIA H200") == newer
    assert records.learned(profile(), "NVIDIA H200", "0.26.0") == older
    assert records.learned(profile(), "NVIDIA A100") is None
    assert records.learned(profile(), "NVIDIA H200", "0.28.0") is None
    assert records.learned(profile(args={"max_model_len": 1024}), "NVIDIA H200") is None


def test_earlier_starts_are_those_alike_that_got_ready(records: Records) -> None:
    records.add(launch(1))
    records.add(launch(2, gpu_count=2))
    records.add(launch(3, ready_at=None, outcome="failed"))
    records.add(launch(4))
    assert [one.id for one in records.earlier(profile(), "NVIDIA H200", 1)] == ["m7b/4", "m7b/1"]
    assert [one.id for one in records.earlier(profile(), "NVIDIA H200", 1, limit=1)] == ["m7b/4"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"port": 9000},
        {"host": "0.0.0.0"},
        {"description": "another"},
        {"served_name": "another"},
        {"restart": {"policy": "on-failure"}},
        {"logs": {"keep": 1}},
        {"secrets": {"api_key": "env:KEY"}},
        {"env": {"VLLM_LOGGING_LEVEL": "DEBUG"}},
        {"args": {"tool_call_parser": "hermes"}},
    ],
)
def test_what_changes_no_memory_leaves_the_fingerprint(changes: dict[str, Any]) -> None:
    assert fingerprint(profile(**changes)) == fingerprint(profile())


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "/models/other"},
        {"engine": "transformers", "served_name": "/models/m7b"},
        {"args": {"max_model_len": 1024}},
        {"args": {"quantization": "fp8"}},
        {"env": {"VLLM_CPU_KVCACHE_SPACE": "1"}},
    ],
)
def test_what_changes_memory_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert fingerprint(profile(**changes)) != fingerprint(profile())


def test_nothing_there_is_nothing_read(records: Records, tmp_path: Path) -> None:
    assert records.launches() == ()
    assert records.problem is None
    assert not (tmp_path / "data").exists()


def test_a_broken_file_is_set_aside_and_a_new_one_begun(records: Records, tmp_path: Path) -> None:
    path = tmp_path / "data" / "records.sqlite"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"no database at all" * 500)
    assert records.launches() == ()
    assert records.problem is not None
    assert records.add(launch())
    assert records.launches() == (launch(),)
    assert records.problem is None
    assert path.with_name("records.sqlite.broken").read_bytes().startswith(b"no database")


def test_a_file_of_a_newer_gpubox_is_left_as_it_is(records: Records, tmp_path: Path) -> None:
    records.add(launch())
    with sqlite3.connect(tmp_path / "data" / "records.sqlite") as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    assert not records.add(launch(2))
    assert records.problem is not None
    assert "newer gpubox" in records.problem
    assert records.launches() == (launch(),)


def test_a_locked_file_is_told_and_disturbs_nobody(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.add(launch())
    monkeypatch.setattr("backends.records.WAIT_S", 0.05)
    db = sqlite3.connect(tmp_path / "data" / "records.sqlite", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    assert not records.add(launch(2))
    assert records.problem is not None
    assert "locked" in records.problem
    assert records.launches() == (launch(),), "a reader does not wait for a writer"
    db.close()
    assert records.add(launch(2))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    records = Records(tmp_path / "data" / "records.sqlite")
    assert not records.add(launch())
    assert records.problem is not None
    assert records.launches() == ()


WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from backends.records import Launch, Records
import sqlite3
records = Records(Path(sys.argv[1]))
def work(db):
    db.execute("INSERT OR REPLACE INTO launches VALUES "
        "('half/1','half','p','f','vllm',NULL,'CPU',0,9e9,NULL,NULL,'ready',NULL,NULL,NULL,'[]',NULL,'')")
    print("written", flush=True)
    sys.stdin.read()
records.change(work)
"""


def test_a_writer_that_is_killed_midway_leaves_what_was_there(records: Records, tmp_path: Path) -> None:
    records.add(launch())
    path, root = tmp_path / "data" / "records.sqlite", Path(__file__).parents[2]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert records.launches() == (launch(),)
    assert records.add(launch(2))
    assert records.problem is None


READER = """
import sys
from pathlib import Path

from backends.records import Records

while True:
    Records(Path(sys.argv[1])).launches()
"""


def test_threads_that_write_at_once_lose_nothing_while_others_read(records: Records, tmp_path: Path) -> None:
    def write(server: str) -> None:
        for number in range(20):
            assert records.add(launch(id=f"{server}/{number}", server=server))

    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", READER, str(tmp_path / "data" / "records.sqlite")]
    with subprocess.Popen(command, env=environ) as reader:
        try:
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(write, "abcd"))
        finally:
            reader.kill()
    assert len(records.launches(limit=1000)) == 80
