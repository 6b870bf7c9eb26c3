"""What `gpubox clean` takes, and above all what it leaves alone."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

from backends import paths
from backends.cleaning import Kind, clean_safely, leftovers, living_launches, remove
from backends.keeper.record import Record, save
from backends.ledger import Ledger
from backends.processes.facts import current_boot_id
from tui.headless.clean import clean, file_size

LATER_S = 3600.0
"""So far ahead of the files' own times, everything has settled."""

RECORD = Record(
    name="qwen",
    profile={"name": "qwen", "model": "m", "engine": "vllm", "gpus": "cpu", "logs": {"keep": 2}},
    environ={},
    gpus=(),
    gpu_indices=(),
    port=8000,
    any_port=True,
    launch="20260101-000009-000",
    log_path="",
    launched_at=time.time(),
    ended=True,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))
    monkeypatch.setenv("GPUBOX_LEDGER", str(tmp_path / "ledger"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))  # where keepers of long paths have their sockets
    return tmp_path


def keep(record: Record = RECORD, launches: int = 1, starts: int = 1) -> Record:
    """Put a server on disk with launch folders and logs, the newest of which are the record's."""
    save(record)
    for number in range(10 - launches, 10):
        folder = paths.private(paths.server_dir(record.name) / f"20260101-00000{number}-000")
        (folder / "spec.json").write_text("{}")
    for number in range(10 - starts, 10):
        for suffix in ("", ".1"):
            log(record.name, number, suffix)
    return record


def log(name: str, number: int, suffix: str = "") -> Path:
    path = paths.private(paths.log_dir()) / f"{name}-20260101-00000{number}.log{suffix}"
    path.write_text("0123456789")
    return path


def named(kind: Kind | None = None) -> set[str]:
    return {one.path.name for one in leftovers(time.time() + LATER_S) if kind in (None, one.kind)}


def test_logs_and_launch_folders_beyond_those_kept_go() -> None:
    keep(launches=5, starts=4)
    found = leftovers(time.time())
    assert {one.path.name for one in found if one.kind is Kind.LOG} == {
        f"qwen-20260101-00000{number}.log{suffix}" for number in (6, 7) for suffix in ("", ".1")
    }
    assert {one.path.name for one in found if one.kind is Kind.LAUNCH} == {"20260101-000005-000", "20260101-000006-000"}
    assert sum(one.size_bytes for one in found) == 4 * 10 + 2 * 2
    assert remove(found) == {}
    assert leftovers(time.time() + LATER_S) == ()
    assert len(list(paths.log_dir().iterdir())) == 4


def test_what_was_forgotten_goes_with_its_logs_and_names_are_not_mixed_up() -> None:
    keep(replace(RECORD, name="qwen-20250101-000000"))
    log("qwen", 1)
    log("stranger", 1, ".2")
    (paths.log_dir() / "notes.txt").write_text("mine")
    assert named() == {"qwen-20260101-000001.log", "stranger-20260101-000001.log.2"}


def test_the_age_spares_what_is_younger() -> None:
    old, young = log("gone", 1), log("gone", 2)
    os.utime(old, (time.time() - 100_000,) * 2)
    assert [one.path for one in leftovers(time.time(), older_than_s=86_400)] == [old]
    assert {one.path for one in leftovers(time.time())} == {old, young}


@pytest.mark.parametrize(
    "record",
    [replace(RECORD, ended=False), replace(RECORD, again=True), replace(RECORD, retry_at=1.0), None],
    ids=["its end is not on record", "to be started again", "to be tried again", "damaged"],
)
def test_a_server_that_may_live_is_not_touched(record: Record | None) -> None:
    keep(record or RECORD, launches=9, starts=9)
    folder = paths.server_dir("qwen")
    (folder / ".server.json.999999999").write_text("{")
    (folder / "server.json.broken").write_text("{")
    if record is None:
        (folder / "server.json").write_text('{"half":')
    assert named() == set()


@pytest.fixture
def engine() -> Iterator[Path]:
    """A process at home in a launch folder of a server whose record says that it has ended."""
    keep(launches=9, starts=9)
    folder = paths.server_dir("qwen") / "20260101-000001-000"
    child = subprocess.Popen(["sleep", "600"], cwd=folder)
    yield folder
    child.kill()
    child.wait()


def test_a_process_protects_its_server_whatever_the_files_say(engine: Path) -> None:
    assert living_launches() == {engine}
    assert named() == set()
    (paths.server_dir("qwen") / "server.json").unlink()
    assert named() == set()


def test_a_state_without_a_record_goes_once_it_has_settled() -> None:
    folder = paths.private(paths.server_dir("odd") / "20260101-000001-000")
    (folder.parent / "server.json.broken").write_text("{")
    assert leftovers(time.time()) == ()
    assert named() == {"odd"}
    assert remove(leftovers(time.time() + LATER_S)) == {}
    assert not folder.parent.exists()


def test_a_damaged_record_that_was_replaced_goes() -> None:
    keep()
    (paths.server_dir("qwen") / "server.json.broken").write_text("{")
    assert named() == {"server.json.broken"}


def test_files_that_nobody_finishes_go_and_those_in_the_making_stay() -> None:
    keep()
    folder = paths.server_dir("qwen")
    dead = [folder / ".server.json.999999999", folder / RECORD.launch / "process.json.999999999.tmp"]
    dead += [paths.private(paths.profile_dir()) / ".fake.toml.999999999", paths.config_dir() / ".config.toml.999999999"]
    ours = folder / f".server.json.{os.getpid()}"
    for path in (*dead, ours, paths.profile_dir() / ".fake.toml.swp"):
        path.write_text("{")
    assert leftovers(time.time()) == ()
    assert named() == {path.name for path in dead}


def test_a_socket_that_nobody_listens_on_goes() -> None:
    path = paths.private(paths.keeper_socket().parent) / paths.keeper_socket().name
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()
        assert path.name not in named(Kind.SOCKET)
    assert path.name in named(Kind.SOCKET)


@pytest.fixture
def cut_short() -> Record:
    """A launch whose shim and guard died at once: nobody wrote down its end, or removed its shared memory."""
    record = keep(replace(RECORD, launched_at=time.time()))
    nobody = {"pid": 999_999_999, "start_ticks": 1}
    record.facts_path.write_text(
        json.dumps(
            {
                "schema": 1,
                "boot_id": current_boot_id(),
                "shim": nobody,
                "guard": nobody,
                "engine": nobody,
                "step": "engine",
                "launched_at": record.launched_at,
                "phase": "running",
                "stop_asked_at": None,
                "exit": None,
                "error": None,
                "log": "",
                "dropped_lines": 0,
            }
        )
    )
    return record


def shared_memory(*, kept_open: bool) -> SharedMemory:
    """Make a file as multiprocessing does, without its tracker, which would remove it at the test's end."""
    from multiprocessing import resource_tracker

    file = SharedMemory(create=True, size=4096)
    resource_tracker.unregister(f"/{file.name}", "shared_memory")
    if not kept_open:
        file.close()
    return file


def made_after(moment: float) -> SharedMemory:
    """Make a file whose time is later: the clock that stamps files ticks every few milliseconds."""
    while True:
        file = shared_memory(kept_open=False)
        if Path("/dev/shm", file.name).stat().st_ctime > moment:
            return file
        Path("/dev/shm", file.name).unlink()


def test_shared_memory_of_a_launch_that_was_cut_short_goes_and_no_other(cut_short: Record) -> None:
    unused, used = shared_memory(kept_open=False), shared_memory(kept_open=True)
    try:
        save(cut_short)  # its end is written down now
        later = made_after((paths.server_dir("qwen") / "server.json").stat().st_mtime)
        assert named(Kind.SHARED_MEMORY) == {unused.name}
        removed = clean_safely(time.time() + LATER_S)
        assert {one.path.name for one in removed if one.kind is Kind.SHARED_MEMORY} == {unused.name}
        assert Path("/dev/shm", used.name).exists()
        assert Path("/dev/shm", later.name).exists()
    finally:
        for file in (unused, used, later):
            Path("/dev/shm", file.name).unlink(missing_ok=True)
        used.close()


def test_a_grant_goes_once_nobody_holds_it() -> None:
    ledger = Ledger()
    with ledger.changing():
        ledger.grant("held", {"GPU-1": None})
        (ended,) = ledger.grant("ended", {"GPU-2": None})
    other = os.open(ended, os.O_RDONLY)
    content = Path(ended).read_bytes()
    ledger.release("ended")
    os.close(other)
    assert named() == set()
    Path(ended).write_bytes(content)  # as a keeper leaves it that is killed
    assert leftovers(time.time()) == ()
    assert named(Kind.GRANT) == {Path(ended).name}
    found = leftovers(time.time() + LATER_S)
    holder = os.open(ended, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_SH)  # somebody took it meanwhile
    assert remove(found) == {}
    assert Path(ended).exists()
    os.close(holder)
    assert remove(found) == {}
    assert not Path(ended).exists()
    assert set(ledger.grants()) == {"GPU-1"}


def test_the_keeper_takes_only_what_nobody_can_want_back() -> None:
    keep(launches=9, starts=9)
    partial = paths.server_dir("qwen") / ".server.json.999999999"
    partial.write_text("{")
    assert [one.path for one in clean_safely(time.time() + LATER_S)] == [partial]
    assert not partial.exists()
    assert len(named(Kind.LOG)) == 14


def test_an_empty_home_has_nothing_to_remove() -> None:
    assert leftovers(time.time() + LATER_S) == ()


def said(capsys: pytest.CaptureFixture[str], **wishes: Any) -> tuple[int, str, str]:
    code = clean(**({"dry_run": False, "older_than": None, "json": False} | wishes))
    return code, *capsys.readouterr()


def test_the_command_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    keep(launches=5, starts=3)
    code, out, err = said(capsys, dry_run=True)
    assert (code, err) == (0, "would remove 2 logs, 2 launch folders: 24 B\n")
    assert f"     10 B  {log('qwen', 7)}  (beyond the newest 2 of qwen)\n" in out
    assert said(capsys, older_than="30d") == (0, "", "there is nothing to remove\n")
    told = json.loads(said(capsys, dry_run=True, json=True)[1])
    assert (told["removed"], told["size_bytes"], len(told["leftovers"])) == (False, 24, 4)
    assert said(capsys) == (0, "", "removed 2 logs, 2 launch folders: 24 B\n")
    assert said(capsys) == (0, "", "there is nothing to remove\n")


def test_what_cannot_be_removed_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = log("gone", 1)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    code, _, err = said(capsys)
    assert code == 1
    assert f"gpubox: {path} cannot be removed: Permission denied" in err


def test_an_age_that_is_none_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tui", "clean", "--older-than", "soon"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpubox: --older-than 'soon' is no length of time\n  → say 30d, 12h, 10m or 90s\n"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (4096, "4.0 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert file_size(size) == text
