"""`--foreground`: a server as systemd wants one: it streams the log, hands signals on, and ends with the engine."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends import paths
from backends.keeper.launching import KILL_AFTER_S
from backends.processes.facts import identity_of
from backends.snapshots import ServerState
from tests.keeper.conftest import PATIENCE_S, Box, box_in, fake_profile, kill_and_wait


@pytest.fixture
def box(lasting_box: Box) -> Iterator[Box]:
    yield lasting_box
    lasting_box.sweep()


def begin(box: Box, **options: Any) -> subprocess.Popen[str]:
    return box.spawn("--headless", "--profile", "fake", "--foreground", **options)


def until(box: Box, wanted: ServerState) -> None:
    """Wait for a state of a server that need not be known yet."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if box.client.is_up() and any(server.state is wanted for server in box.client.snapshot().servers):
            return
        time.sleep(0.05)
    raise AssertionError(f"fake never got {wanted}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_streams_the_whole_log_and_a_signal_stops_the_server(
    box: Box, tmp_path: Path, number: signal.Signals
) -> None:
    box.keep_profile(fake_profile(chatter=3000))
    box.environ["PYTHONUNBUFFERED"] = "1"  # as in many containers; more is said here than a pipe holds
    told = tmp_path / "stderr"
    with told.open("w") as file:
        child = begin(box, stderr=file)
    until(box, ServerState.READY)
    server = box.server()
    deadline = time.monotonic() + PATIENCE_S
    while f"export OPENAI_BASE_URL={server.address}/v1" not in told.read_text():
        assert time.monotonic() < deadline, told.read_text()
        time.sleep(0.05)
    child.send_signal(number)
    stdout, _ = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, told.read_text()
    assert stdout == Path(server.log_path or "").read_text()
    assert stdout.count("] chatter") == 3000
    assert server.pid is not None
    assert identity_of(server.pid) is None
    assert box.server().state is ServerState.STOPPED


def test_a_second_sigterm_kills(box: Box) -> None:
    box.keep_profile(fake_profile(ignore_term=True))
    child = begin(box)
    until(box, ServerState.READY)
    child.send_signal(signal.SIGTERM)
    until(box, ServerState.STOPPING)
    assert child.poll() is None
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0
    assert time.monotonic() - begun < KILL_AFTER_S
    ended = box.server().exit
    assert ended is not None
    assert (ended.signal, ended.asked) == (signal.SIGKILL, True)


def test_a_sigterm_before_there_is_a_server_stops_it_all_the_same(tmp_path: Path) -> None:
    with box_in(tmp_path) as box:
        box.keep_profile(fake_profile(start=30))
        child = begin(box)
        log, deadline = paths.state_dir() / "keeper.log", time.monotonic() + PATIENCE_S
        while not log.exists() and time.monotonic() < deadline:  # the keeper is being started
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 0, stderr
        assert box.server().state is ServerState.STOPPED


def test_an_engine_that_dies_ends_it_with_each_start_in_its_output(box: Box) -> None:
    restart = {"policy": "on-failure", "max_attempts": 1, "backoff_s": 0.2}
    box.keep_profile(fake_profile(die_after=0.1) | {"restart": restart})
    child = begin(box)
    stdout, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 6
    failed = box.server()
    assert "gpubox: fake failed: it ended with exit code 0, though nobody asked it to" in stderr
    assert f"log: {failed.log_path}" in stderr
    logs = sorted(paths.log_dir().glob("fake-*.log"))
    assert len(logs) == 2
    assert stdout == "".join(log.read_text() for log in logs)


def test_it_outlives_the_keeper(box: Box) -> None:
    box.keep_profile(fake_profile())
    child = begin(box)
    until(box, ServerState.READY)
    before = box.client.snapshot().keeper
    assert before is not None
    kill_and_wait(before.pid)
    until(box, ServerState.READY)  # it has started another keeper itself: nobody else here does
    after = box.client.snapshot().keeper
    assert after is not None
    assert after.pid != before.pid
    kill_and_wait(after.pid)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, stderr
    assert box.gpubox("status").stdout.count("stopped") == 1
