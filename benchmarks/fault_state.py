"""Faults of what is on disk and of time: reboots, damaged files, folders that cannot be read, full disks, clocks."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from backends import paths
from backends.errors import GpuboxError
from backends.processes import logs
from backends.processes.facts import current_boot_id, is_alive
from backends.snapshots import Missing, ServerState
from benchmarks.stage import LIMIT_S, PATIENCE_S, Stage, Victim, took, until

ANOTHER_BOOT = "00000000-1111-2222-3333-444444444444"
CLOCK = Path(__file__).with_name("clock.c")
DAY_S = 86_400.0


def rebooted(stage: Stage) -> float:
    """State of another boot, whose processes are all gone: the server is lost, and can be started again."""
    return _dead(stage, ANOTHER_BOOT, os.getpid())


def pids_reused(stage: Stage) -> float:
    """The same boot, but the pids of a dead server's processes are others' now, which nothing may happen to."""
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        lasted_s = _dead(stage, current_boot_id(), stranger.pid)
        assert stranger.poll() is None, "a stranger was killed"
    finally:
        stranger.kill()
        stranger.wait()
    return lasted_s


def _dead(stage: Stage, boot_id: str, pid: int) -> float:
    victim = stage.ready()
    stage.kill_keeper()
    supervisors = [psutil.Process(victim.part(part)) for part in ("shim", "guard")]
    everything = [psutil.Process(one.pid) for one in victim.tree]
    for process in supervisors:
        process.suspend()
    for process in everything:
        with contextlib.suppress(psutil.NoSuchProcess):  # some end with those before them
            process.kill()
    assert psutil.wait_procs(everything, timeout=PATIENCE_S)[1] == []
    _edit(_facts_path(victim), lambda facts: _forge(facts, boot_id, pid))
    with took() as seconds:
        stage.comes_to(victim.name, ServerState.LOST, within_s=LIMIT_S)
    stage.client.restart(victim.name)
    again = stage.victim(stage.comes_to(victim.name, ServerState.READY))
    stage.drop(victim.name)
    again.expect_gone()
    for one in victim.tree:  # a reboot would have emptied it
        Path(f"/dev/shm/psm_faulty_{one.pid}").unlink(missing_ok=True)
    return seconds()


def _forge(facts: dict[str, Any], boot_id: str, pid: int) -> None:
    facts |= {"boot_id": boot_id, "phase": "running", "exit": None, "error": None}
    for part in ("shim", "guard", "engine"):
        facts[part]["pid"] = pid


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _facts_path(victim: Victim) -> Path:
    return max(paths.server_dir(victim.name).glob("*/process.json"), key=lambda path: path.parent.name)


def record_damaged(stage: Stage) -> float:
    """The record of a server that has ended is half a file: it is set aside, and the others stay."""
    victim = stage.ready()
    stage.client.stop(victim.name, force=True)
    stage.comes_to(victim.name, ServerState.STOPPED)
    stage.kill_keeper()
    path = paths.server_dir(victim.name) / "server.json"
    path.write_bytes(path.read_bytes()[: next(stage.moments) * 37 % path.stat().st_size])
    with took() as seconds:
        names = {server.name for server in stage.keeper().snapshot().servers}
    assert victim.name not in names
    assert stage.standing().name in names
    assert (path.parent / "server.json.broken").exists()
    victim.expect_gone()
    shutil.rmtree(path.parent)
    return seconds()


def record_damaged_while_it_runs(stage: Stage) -> float:
    """The record of a server that runs is half a file: a client must still be told of its processes."""
    victim = stage.ready()
    stage.kill_keeper()
    path = paths.server_dir(victim.name) / "server.json"
    path.write_bytes(path.read_bytes()[:100])
    try:
        with took() as seconds:
            stage.keeper()
            until(lambda: _told_or_gone(stage, victim), "it is told, or ended", LIMIT_S)
    finally:
        _end(victim)
        shutil.rmtree(path.parent, ignore_errors=True)
    return seconds()


def facts_damaged_while_it_runs(stage: Stage) -> float:
    """The shim's own record is half a file: the keeper must still find the shim."""
    victim = stage.ready()
    stage.kill_keeper()
    path = _facts_path(victim)
    path.write_bytes(path.read_bytes()[:50])
    try:
        with took() as seconds:
            stage.keeper()
            until(
                lambda: stage.server(victim.name).state not in (ServerState.STARTING, ServerState.LOST)
                or not [one for one in victim.tree if is_alive(one)],
                "it is found, or ended",
                LIMIT_S,
            )
    finally:
        _end(victim)
        with contextlib.suppress(AssertionError, GpuboxError):
            stage.drop(victim.name)
    return seconds()


def _told_or_gone(stage: Stage, victim: Victim) -> bool:
    """Whether a client is told that the server lives, or else nothing of it lives."""
    told = any(server.name == victim.name and server.is_live for server in stage.client.snapshot().servers)
    return told or not [one for one in victim.tree if is_alive(one)]


def _end(victim: Victim) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(victim.facts.shim.pid).send_signal(signal.SIGQUIT)
    victim.expect_gone()


def profiles_unreadable(stage: Stage) -> float:
    """The folder of profiles cannot be listed: each command that needs it says so in one line, all else works."""
    folder = paths.profile_dir()
    shutil.rmtree(folder, ignore_errors=True)
    paths.private(folder.parent)
    folder.write_text("not a folder")
    try:
        with took() as seconds:
            listed = stage.gpubox("profiles", "list")
            assert f"✗ {folder}: cannot be listed: Not a directory" in listed.stderr
            assert "\ndemo " in listed.stdout
            refused = stage.gpubox("--headless", "--profile", "nowhere", code=3)
            assert refused.stderr.startswith("gpubox: nowhere: no such profile")
            assert len(refused.stderr.splitlines()) <= 2
    finally:
        folder.unlink()
    return seconds()


def disk_full_for_the_log(stage: Stage) -> float:
    """No room for the log: the engine lives and serves; once there is room, the log says how many lines are lost."""
    victim = stage.ready()
    shim = victim.part("shim")
    log = Path(victim.server.log_path or "")
    before = resource.prlimit(shim, resource.RLIMIT_FSIZE)
    room = log.stat().st_size + 200
    resource.prlimit(shim, resource.RLIMIT_FSIZE, (room, before[1]))
    until(lambda: log.stat().st_size >= room, "the disk is full")
    printed = int(victim.note.read_text())
    until(lambda: int(victim.note.read_text()) > printed + 20, "the engine goes on")
    assert stage.server(victim.name).state is ServerState.READY
    resource.prlimit(shim, resource.RLIMIT_FSIZE, before)
    with took() as seconds:
        now = int(victim.note.read_text())
        until(lambda: f"beat {now}\n" in log.read_text(), "the log goes on", LIMIT_S)
    stage.client.stop(victim.name)
    stage.comes_to(victim.name, ServerState.STOPPED)
    _account(victim, log)
    victim.expect_gone()
    stage.drop(victim.name)
    return seconds()


def _account(victim: Victim, log: Path) -> None:
    """See that each line is in the log, or counted by it as dropped."""
    lines = [logs.split_stamp(line)[1] for line in logs.tail(log, 1 << 30)]
    beats = [int(line.split()[1]) for line in lines if line.startswith("beat ")]
    dropped = sum(int(line.split()[1]) for line in lines if "dropped: " in line)
    printed = int(victim.note.read_text())
    assert beats == sorted(set(beats)), "lines are doubled or out of order"
    assert printed <= len(beats) + dropped <= printed + 1, f"{printed} printed, {len(beats)} there, {dropped} dropped"


def disk_full_for_state(stage: Stage) -> float:
    """No room for state files: a start is refused in one line, the keeper lives on, and starts once there is room."""
    keeper = stage.keeper_pid()
    before = resource.prlimit(keeper, resource.RLIMIT_FSIZE)
    profile = stage.profile(note=str(stage.home / "full.note"))
    with took() as seconds:
        resource.prlimit(keeper, resource.RLIMIT_FSIZE, (64, before[1]))
        try:
            said = _refusal(stage, profile)
        finally:
            resource.prlimit(keeper, resource.RLIMIT_FSIZE, before)
        assert "File too large" in said, said
        assert "\n" not in said, said
        assert stage.keeper_pid() == keeper
        stage.start(profile)
        stage.comes_to(profile["name"], ServerState.READY)
    stage.drop(profile["name"])
    return seconds()


def _refusal(stage: Stage, profile: dict[str, Any]) -> str:
    """Return why a start was refused."""
    try:
        stage.start(profile)
    except GpuboxError as refused:
        return refused.message
    raise AssertionError("it was started, with no room for its record")


class Clock:
    """A library that moves the clock of processes started with it by what its file says, in seconds."""

    def __init__(self, folder: Path) -> None:
        self._library, self._offset = folder / "clock.so", folder / "clock"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(CLOCK), "-ldl"], check=True)
        self.set(0)

    def set(self, offset_s: float) -> None:
        """Move the clock so far from the true time."""
        partial = self._offset.with_suffix(".new")
        partial.write_text(f"{offset_s:.0f}\n")
        partial.replace(self._offset)

    @contextlib.contextmanager
    def in_new_processes(self) -> Iterator[None]:
        """Have processes that are started within this have the clock."""
        given = {"LD_PRELOAD": str(self._library), "GPUBOX_CLOCK": str(self._offset)}
        os.environ.update(given)
        try:
            yield
        finally:
            for name in given:
                del os.environ[name]


def clock_jumps(stage: Stage) -> float:
    """The keeper's clock jumps a day ahead and two back: servers stay as they are, starts and stops work."""
    clock = Clock(stage.home)
    stage.kill_keeper()
    with clock.in_new_processes():
        stage.keeper()
    try:
        victim = stage.ready()
        with took() as seconds:
            for offset_s in (DAY_S, -DAY_S):
                clock.set(offset_s)
                _see_that_all_works(stage, victim)
        stage.drop(victim.name)
    finally:
        stage.kill_keeper()
    return seconds()


def clock_jumps_during_a_start(stage: Stage) -> float:
    """The keeper's clock jumps a day ahead during a start that may take ten minutes: it goes on."""
    clock = Clock(stage.home)
    stage.kill_keeper()
    with clock.in_new_processes():
        stage.keeper()
    try:
        server = stage.begin(stage.profile(start=1.5) | {"start_timeout_s": 600.0})
        until(lambda: stage.server(server.name).pid, "the engine runs")
        clock.set(DAY_S)
        with took() as seconds:
            stage.comes_to(server.name, ServerState.READY, within_s=LIMIT_S)
        stage.drop(server.name)
    finally:
        stage.kill_keeper()
    return seconds()


def _see_that_all_works(stage: Stage, victim: Victim) -> None:
    stage.comes_to(victim.name, ServerState.READY)
    until(lambda: not isinstance(stage.server(victim.name).metrics, Missing), "metrics come in", LIMIT_S)
    victim.expect_untouched()
    profile = stage.profile(die_after=0.1)
    profile["restart"] = {"policy": "on-failure", "max_attempts": 1, "backoff_s": 0.2}
    name = stage.begin(profile).name
    until(lambda: stage.server(name).attempt == 1, "the restart", LIMIT_S)
    failed = stage.comes_to(name, ServerState.FAILED)
    assert failed.log_path is not None
    assert Path(failed.log_path).exists()
    newest = logs.log_starts(paths.log_dir(), name)[0].path
    assert str(newest) == failed.log_path, f"{newest} sorts after {failed.log_path}"
    stage.drop(name)
