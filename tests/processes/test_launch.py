from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backends.errors import StartFailedError
from backends.processes import launch as launching
from backends.processes.facts import is_alive
from tests.processes.conftest import until

if TYPE_CHECKING:
    from tests.processes.conftest import Launcher


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": 9}, "not a spec of schema 1"),
        ({"steps": []}, "steps is empty"),
        ({"steps": [{"label": "engine", "argv": []}]}, "each of steps needs a label and an argv"),
        ({"environ": None}, "environ is missing, or not of the right kind"),
        ({"log_max_bytes": 0}, "log_max_bytes must be above 0"),
        ({"term_again_s": 0}, "term_again_s must be above 0"),
        ({"facts": "/no/such/folder/process.json"}, "/no/such/folder"),
        ({"log": "/dev/null/demo.log"}, "/dev/null"),
    ],
)
def test_a_launch_that_fails_says_why_in_one_line(start: Launcher, change: dict[str, Any], complaint: str) -> None:
    spec = start.spec("exit:0")
    folder = Path(spec["facts"]).parent
    with pytest.raises(StartFailedError) as raised:
        launching.launch(spec | change, folder)
    assert complaint in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.message.startswith("demo: ")


def test_a_lock_that_is_held_refuses_the_launch(start: Launcher, tmp_path: Path) -> None:
    lock = tmp_path / "gpu.lock"
    start("wait", locks=[str(lock)])
    with pytest.raises(StartFailedError, match="is locked by another process"):
        start("wait", locks=[str(lock)])


def test_a_log_that_is_a_link_is_refused(start: Launcher, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("as it was\n")
    link = tmp_path / "demo.log"
    link.symlink_to(target)
    with pytest.raises(StartFailedError, match="symbolic links"):
        start("say:hello", log=str(link))
    assert target.read_text() == "as it was\n"


def test_a_shim_whose_starter_is_gone_starts_nothing(
    start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a log that is a pipe without a reader waits for one: the shim hangs until the launch gives up."""
    monkeypatch.setattr(launching, "LAUNCH_LIMIT_S", 1.0)
    log = tmp_path / "hung.log"
    os.mkfifo(log)
    spec = start.spec("wait", log=str(log))
    with pytest.raises(StartFailedError, match="said nothing for 1 s"):
        launching.launch(spec, Path(spec["facts"]).parent)
    reader = os.open(log, os.O_RDWR)
    launched = start.adopt(spec)
    until(Path(spec["facts"]).exists, "facts")
    end = launched.await_end()
    assert end.error == "whoever started the shim was gone before the engine could be started"
    assert end.engine is None
    os.close(reader)


def test_the_shim_does_not_need_the_launching_process(start: Launcher) -> None:
    spec = start.spec("say:ready", "wait")
    pid = os.fork()
    if pid == 0:
        try:
            launching.launch(spec, Path(spec["facts"]).parent)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    launched = start.adopt(spec)
    launched.await_line("ready")
    assert is_alive(launched.facts.shim)


# systemd


@pytest.fixture
def fresh_scope() -> Iterator[None]:
    launching.scope_prefix.cache_clear()
    yield
    launching.scope_prefix.cache_clear()


def stub_systemd_run(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a systemd-run that notes its arguments first on PATH, and say that this user lingers; return the notes."""
    notes, folder, linger = tmp_path / "notes", tmp_path / "bin", tmp_path / "linger"
    folder.mkdir()
    linger.mkdir()
    stub = folder / "systemd-run"
    stub.write_text(f'#!/bin/sh\necho "$@" >> {notes}\n{script}\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    import pwd

    (linger / pwd.getpwuid(os.getuid()).pw_name).touch()
    monkeypatch.setattr(launching, "LINGER", linger)
    return notes


@pytest.mark.usefixtures("fresh_scope")
def test_a_scope_is_used_where_it_works(start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = stub_systemd_run(tmp_path, 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"', monkeypatch)
    launched = start("say:ready", "wait")
    launched.await_line("ready")
    tried, used = notes.read_text().splitlines()
    assert tried == "--user --scope --quiet --collect -- true"
    assert used.startswith(f"--user --scope --quiet --collect -- {sys.executable} -I -P -S ")


@pytest.mark.usefixtures("fresh_scope")
def test_a_scope_that_does_not_work_is_done_without(
    start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = stub_systemd_run(tmp_path, "echo Failed to connect to bus >&2; exit 1", monkeypatch)
    start("wait")
    start("wait")
    assert len(notes.read_text().splitlines()) == 1, "tried once, then remembered"


@pytest.mark.usefixtures("fresh_scope")
def test_no_scope_where_the_user_s_manager_ends_at_logout(
    start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = stub_systemd_run(tmp_path, "exit 0", monkeypatch)
    monkeypatch.setattr(launching, "LINGER", tmp_path / "nobody lingers")
    start("wait")
    assert not notes.exists()
