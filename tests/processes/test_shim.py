"""The shim's contract: how engines end, what the log holds, steps, and what the shim leans on, leaks and costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backends.processes import facts, logs
from tests.processes.conftest import locked, outcome

if TYPE_CHECKING:
    from tests.processes.conftest import Launcher


# How an engine ends


@pytest.mark.parametrize(("action", "code", "number"), [("exit:0", 0, None), ("exit:3", 3, None), ("die:6", None, 6)])
def test_an_exit_nobody_asked_for_is_recorded_as_it_was(
    start: Launcher, action: str, code: int | None, number: int | None
) -> None:
    end = start("say:hello", action).await_end()
    assert outcome(end.exit) == (code, number)
    assert end.stop_asked_at is None
    assert end.error is None


def test_the_log_is_whole_to_the_last_line(start: Launcher) -> None:
    launched = start("lines:50000", "raw:no line feed at the end", "exit:1")
    launched.await_end()
    first, *middle, partial, last = launched.lines()
    engine = launched.facts.engine
    assert engine is not None
    assert first.startswith(f"gpubox: demo: engine, pid {engine.pid}: {sys.executable} -I -S")
    assert middle == [f"line {number}" for number in range(50000)]
    assert partial == "no line feed at the end"
    assert last == "gpubox: engine ended with exit code 1"


def test_both_streams_stay_in_order(start: Launcher) -> None:
    launched = start("both:500")
    launched.await_end()
    assert launched.lines()[1:-1] == [str(number) for number in range(500)]


def test_the_engine_gets_its_environment_folder_and_signals(start: Launcher, tmp_path: Path) -> None:
    spec = start.spec("environ:KEY", "environ:HOME", "cwd", environ={"KEY": "value"}, cwd=str(tmp_path))
    launched = start.launch(spec)
    launched.await_end()
    assert launched.lines()[1:-1] == ["KEY=value", "HOME=None", str(tmp_path)]
    launched = start("wait")
    launched.await_phase("running")
    engine = launched.facts.engine
    assert engine is not None
    status = Path(f"/proc/{engine.pid}/status").read_text()
    ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    # CPython itself ignores SIGPIPE and SIGXFSZ once it runs.
    assert not ignored & (1 << signal.SIGTERM - 1 | 1 << signal.SIGHUP - 1 | 1 << signal.SIGINT - 1)


# Steps


def test_steps_run_one_after_another(start: Launcher) -> None:
    steps = [
        {"label": "prepare", "argv": start.argv("orphan:ignore-term", "raw:prepared")},
        {"label": "engine", "argv": start.argv("say:ready", "wait")},
    ]
    launched = start(steps=steps)
    launched.await_line("ready")
    assert (launched.facts.phase, launched.facts.step, launched.facts.exit) == ("running", "engine", None)
    assert len(launched.tree()) == 3, "what the first step left is gone: shim, guard and engine remain"
    assert [line for line in launched.lines() if not line.startswith("gpubox: demo:")] == [
        "prepared",
        "gpubox: prepare ended with exit code 0",
        "ready",
    ]


def test_a_failed_step_ends_the_launch(start: Launcher) -> None:
    steps = [{"label": "prepare", "argv": start.argv("exit:4")}, {"label": "engine", "argv": start.argv("say:never")}]
    launched = start(steps=steps)
    end = launched.await_end()
    assert outcome(end.exit) == (4, None)
    assert end.exit is not None
    assert end.exit.step == "prepare"
    assert "never" not in launched.lines()


def test_stop_during_a_step_starts_no_other(start: Launcher) -> None:
    steps = [
        {"label": "prepare", "argv": start.argv("swallow-term", "say:ready", "wait")},
        {"label": "engine", "argv": start.argv("say:never")},
    ]
    launched = start(steps=steps)
    launched.await_line("ready")
    assert launched.facts.phase == "starting"
    launched.signal(signal.SIGTERM)
    end = launched.await_end()
    assert outcome(end.exit) == (0, None)
    assert "never" not in launched.lines()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"steps": [{"label": "engine", "argv": ["/no/such/program"]}]}, "/no/such/program"),
        ({"cwd": "/no/dir"}, "/no/dir"),
    ],
)
def test_an_engine_that_cannot_be_started_says_why(start: Launcher, change: dict[str, object], fault: str) -> None:
    launched = start("wait", **change)
    end = launched.await_end()
    assert end.error == f"cannot start engine: {fault}: No such file or directory"
    assert launched.lines() == [f"gpubox: {end.error}"]


# What it leans on, what it leaks, what it costs


def test_it_is_detached_and_keeps_secrets(start: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    launched = start("say:ready", "wait", environ={"VLLM_API_KEY": "sk-secret"})
    launched.await_line("ready")
    shim = launched.facts.shim.pid
    assert os.getsid(shim) != os.getsid(0)
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{shim}/fd/{fd}") == "/dev/null"
    assert os.readlink(f"/proc/{shim}/cwd") == "/"
    for pid in (shim, launched.facts.guard.pid):
        told = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"secret" not in told
    assert stat.S_IMODE(launched.folder.stat().st_mode) == 0o700
    for path in (launched.folder / "spec.json", launched.folder / "process.json", launched.log):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_no_folder_of_the_users_can_shadow_it_and_an_upgrade_does_not_break_it(start: Launcher, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("json", "backends", "signal", "ctypes"):
        (hostile / f"{name}.py").write_text("raise SystemExit('shadowed')")
    old = tmp_path / "old"
    shutil.copytree(Path(facts.__file__).parent, old / "backends" / "processes")
    spec = start.spec("swallow-term", "say:ready", "progress:3", "wait", log_max_bytes=200)
    launched_folder = Path(spec["facts"]).parent
    launched_folder.mkdir(parents=True)
    (launched_folder / "spec.json").write_text(json.dumps(spec))
    shim = old / "backends" / "processes" / "shim.py"
    argv = [sys.executable, "-I", "-P", "-S", str(shim), str(launched_folder / "spec.json")]
    subprocess.run(argv, cwd=hostile, env={"PYTHONPATH": str(hostile)}, check=True)
    launched = start.adopt(spec)
    launched.await_line("ready")
    shutil.rmtree(old)
    launched.signal(signal.SIGTERM)
    assert outcome(launched.await_end().exit) == (0, None)


def test_an_idle_shim_does_nothing_and_is_small(start: Launcher) -> None:
    launched = start("say:ready", "wait")
    launched.await_line("ready")
    launched.await_phase("running")
    pids = (launched.facts.shim.pid, launched.facts.guard.pid)

    def switches() -> list[int]:
        """Times that any thread of theirs was put to sleep: each wake-up ends in one."""
        counts = []
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                words = (task / "status").read_text().split()
                counts.append(int(words[words.index("voluntary_ctxt_switches:") + 1]))
        return counts

    # The guard wakes when shared memory is made anywhere on the machine, so one quiet second has to do.
    for _ in range(10):
        before = switches()
        time.sleep(1)
        if switches() == before:
            break
    else:
        pytest.fail("never a second without waking up")
    for pid in pids:
        words = Path(f"/proc/{pid}/status").read_text().split()
        assert int(words[words.index("VmRSS:") + 1]) < 20_000


def test_locks_are_held_while_anything_lives(start: Launcher, tmp_path: Path) -> None:
    lock = tmp_path / "gpu.lock"
    launched = start("say:ready", "wait", locks=[str(lock)])
    launched.await_line("ready")
    assert locked(lock)
    launched.signal(signal.SIGTERM)
    launched.await_phase("exited")
    assert not locked(lock)


def test_progress_shows_while_it_runs_and_reaches_the_log_at_its_end(start: Launcher) -> None:
    launched = start("progress:5", "wait")
    path = Path(launched.spec["progress"])
    deadline = time.monotonic() + 45
    while (progress := facts.read_progress(path)) is None or progress.text != "5/5":
        assert time.monotonic() < deadline, progress
        time.sleep(0.005)
    assert launched.lines()[1:] == []
    launched.signal(signal.SIGTERM)
    launched.await_end()
    assert launched.lines()[1:-1] == ["5/5"]


def test_a_big_log_is_kept_in_parts(start: Launcher) -> None:
    launched = start("lines:20000", log_max_bytes=100_000, log_parts=3)
    launched.await_end()
    parts = logs.parts(launched.log)
    assert [part.name for part in parts] == ["demo.log.3", "demo.log.2", "demo.log.1", "demo.log"]
    assert all(part.stat().st_size <= 100_000 for part in parts)
    numbers = [int(line.split()[1]) for line in launched.lines()[:-1]]
    assert numbers == list(range(numbers[0], 20000))
