from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.processes import facts
from backends.processes.facts import Identity, ProcessFacts
from backends.snapshots import Missing

RECORD: dict[str, Any] = {
    "schema": 1,
    "boot_id": "b",
    "shim": {"pid": 1, "start_ticks": 2},
    "guard": {"pid": 3, "start_ticks": 4},
    "engine": None,
    "step": "engine",
    "launched_at": 5.0,
    "phase": "exited",
    "stop_asked_at": None,
    "exit": {"at": 6.0, "code": 1, "signal": None, "step": "engine"},
    "error": None,
    "log": "/log",
    "dropped_lines": 0,
}


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"])
    yield process
    process.kill()
    process.wait()


def identity(process: subprocess.Popen[bytes]) -> Identity:
    found = facts.identity_of(process.pid)
    assert found is not None
    return found


def test_a_zombie_is_dead(child: subprocess.Popen[bytes]) -> None:
    who = identity(child)
    assert facts.is_alive(who)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert facts.identity_of(child.pid) == who, "it still has its pid"
    assert not facts.is_alive(who)
    assert facts.open_pidfd(who) is None
    assert not facts.signal(who, signal.SIGTERM)
    child.wait()
    assert facts.identity_of(child.pid) is None
    assert not facts.is_alive(who)


@pytest.mark.parametrize("other", [{"start_ticks": 1}, {"boot_id": "another boot"}])
def test_another_process_with_the_same_pid_is_left_alone(child: subprocess.Popen[bytes], other: dict[str, Any]) -> None:
    who = dataclasses.replace(identity(child), **other)
    assert not facts.is_alive(who)
    assert facts.open_pidfd(who) is None
    assert not facts.signal(who, signal.SIGKILL)
    assert child.poll() is None


def test_a_signal_reaches_the_process(child: subprocess.Popen[bytes]) -> None:
    assert facts.signal(identity(child), signal.SIGTERM)
    assert child.wait(5) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("", "not a shim's record"),
        (json.dumps(RECORD)[:80], "not a shim's record"),
        ("[]", "not a shim's record"),
        (json.dumps({"schema": 1}), "not a shim's record"),
        (json.dumps(RECORD | {"shim": {"pid": 1}}), "not a shim's record"),
        (json.dumps(RECORD | {"schema": 2}), "has schema 2, this gpubox reads 1"),
    ],
)
def test_facts_that_make_no_sense_are_missing_with_a_reason(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "process.json"
    if content is not None:
        path.write_text(content)
    found = facts.read_facts(path)
    assert isinstance(found, Missing)
    assert reason in found.reason
    assert str(path) in found.reason


def test_facts_of_a_later_minor_version_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "process.json"
    path.write_text(json.dumps(RECORD | {"new": 1}))
    found = facts.read_facts(path)
    assert isinstance(found, ProcessFacts)
    assert found.shim == Identity("b", 1, 2)
    assert found.exit == facts.StepExit(6.0, 1, None, "engine")


def test_progress_that_makes_no_sense_is_none(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    assert facts.read_progress(path) is None
    path.write_text('{"at": 1')
    assert facts.read_progress(path) is None
    path.write_text(json.dumps({"at": time.time(), "text": "50%"}))
    progress = facts.read_progress(path)
    assert progress is not None
    assert progress.text == "50%"
