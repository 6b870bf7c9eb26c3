"""Launches go to the records whoever sees them end, teach the next start what is left, and are shown by `history`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator

import pytest

from backends import paths
from backends.records import CPU, Launch, Records, fingerprint
from backends.snapshots import ServerState
from profiles.schema import parse_profile
from tests.keeper.conftest import PATIENCE_S, Box, fake_profile, kill_and_wait


@pytest.fixture
def box(lasting_box: Box) -> Iterator[Box]:
    paths.records_path().unlink(missing_ok=True)
    yield lasting_box
    lasting_box.sweep()


def on_record(wanted: Callable[[Launch], bool], name: str = "fake") -> Launch:
    """Return the newest launch once it is as wanted: the keeper writes off its loop."""
    deadline, newest = time.monotonic() + PATIENCE_S, None
    while time.monotonic() < deadline:
        newest = next(iter(Records(paths.records_path()).launches(name, 1)), None)
        if newest is not None and wanted(newest):
            return newest
        time.sleep(0.05)
    raise AssertionError(f"not on record: {newest}")


def is_whole(launch: Launch) -> bool:
    """Whether its stages are told, and take no longer than the start (their times are rounded to milliseconds)."""
    return launch.start_s is not None and 0.0 < sum(stage.took_s for stage in launch.stages) < launch.start_s + 0.01


def test_a_launch_is_on_record_from_its_begin_to_its_end(box: Box) -> None:
    profile = box.held_profile()
    box.start(profile)
    began = on_record(lambda launch: launch.outcome == "starting")
    box.let_start()
    assert (began.ready_at, began.gpu_kind, began.gpu_count) == (None, CPU, 0)
    ready = box.until(ServerState.READY)
    launch = on_record(lambda launch: launch.outcome == "ready")
    assert (launch.id, launch.ready_at, launch.log_path) == (began.id, ready.ready_at, ready.log_path)
    assert [stage.name for stage in launch.stages] == ["boot", "config", "weights"]
    assert is_whole(launch)
    assert (launch.fingerprint, launch.engine_version) == (fingerprint(parse_profile(profile, "test")), "0.0.fake")
    assert ready.progress is not None
    assert ready.progress.done == launch.stages
    box.client.stop("fake")
    stopped = on_record(lambda launch: launch.outcome == "stopped")
    assert stopped.ended_at is not None
    assert (stopped.stages, stopped.cause) == (launch.stages, None)


def test_the_next_start_knows_what_is_left(box: Box) -> None:
    profile = box.held_profile()
    box.start(profile)
    first = box.until(lambda server: server.progress is not None and server.stage is not None)
    assert first.progress is not None
    assert (first.progress.eta_s, first.progress.ratio, first.progress.based_on) == (None, None, 0)
    box.until(lambda server: server.stage is not None and server.stage.name == "weights")
    box.let_start()
    box.until(ServerState.READY)
    on_record(lambda launch: launch.outcome == "ready")
    box.hold_again()
    box.client.restart("fake")
    second = box.until(lambda server: server.progress is not None and server.progress.eta_s is not None)
    assert second.progress is not None
    assert second.progress.based_on == 1
    assert second.progress.ratio is not None
    box.let_start()
    box.until(ServerState.READY)


def test_a_failed_start_is_on_record_with_its_cause_and_what_its_log_told(box: Box) -> None:
    box.start(fake_profile(fail="haunted, though Model loading took 1.5 GiB and 2.0 seconds"))
    failed = box.until(ServerState.FAILED)
    launch = on_record(lambda launch: launch.outcome == "failed")
    assert (launch.cause, launch.ready_at) == (failed.cause, None)
    assert launch.stages[-1].name == "profiling", "the stage that it failed in"
    assert launch.figures is not None
    assert launch.figures.weights_bytes == 3 << 29


def test_a_start_that_another_keeper_saw_begin_is_on_record_whole(box: Box) -> None:
    box.start(box.held_profile())
    began = box.until(lambda server: server.stage is not None and server.stage.name == "weights")
    keeper = box.client.snapshot().keeper
    assert keeper is not None
    kill_and_wait(keeper.pid)
    box.start(fake_profile("other"))
    box.let_start()
    ready = box.until(ServerState.READY)
    launch = on_record(lambda launch: launch.outcome == "ready")
    assert launch.launched_at == began.launched_at
    assert launch.ready_at == ready.ready_at
    assert [stage.name for stage in launch.stages] == ["boot", "config", "weights"]
    assert is_whole(launch)


def test_another_keeper_knows_how_a_server_started(box: Box) -> None:
    box.start(fake_profile())
    stages = on_record(lambda launch: launch.outcome == "ready").stages
    keeper = box.client.snapshot().keeper
    assert keeper is not None
    kill_and_wait(keeper.pid)
    box.start(fake_profile("other"))
    again = box.until(lambda server: server.progress is not None)
    assert again.state is ServerState.READY
    assert again.progress is not None
    assert again.progress.done == stages


def test_what_was_lost_of_the_records_is_read_from_the_log_again(box: Box) -> None:
    box.start(fake_profile())
    box.until(ServerState.READY)
    whole = on_record(lambda launch: launch.outcome == "ready")
    paths.records_path().write_bytes(b"no database " * 100)
    box.client.stop("fake")
    again = on_record(lambda launch: launch.outcome == "stopped")
    assert (again.id, again.ready_at) == (whole.id, whole.ready_at)
    assert [stage.name for stage in again.stages] == [stage.name for stage in whole.stages]


def test_a_start_with_a_time_limit_fails_when_it_is_over(box: Box) -> None:
    box.start(fake_profile(start=600) | {"start_timeout_s": 0.5})
    failed = box.until(ServerState.FAILED)
    assert re.fullmatch(
        r"not ready after 0\.5 s, which is its start_timeout_s; it was at: (boot|config|weights)", failed.cause or ""
    )
    launch = on_record(lambda launch: launch.outcome == "failed")
    assert launch.cause == failed.cause


def test_a_stop_of_a_start_is_no_failure(box: Box) -> None:
    box.start(fake_profile(start=600) | {"start_timeout_s": 600.0})
    box.until(lambda server: server.stage is not None and server.stage.name == "weights")
    box.client.stop("fake")
    box.until(ServerState.STOPPED)
    assert on_record(lambda launch: launch.outcome == "stopped").ready_at is None


def test_history_tells_of_launches_without_a_keeper(box: Box) -> None:
    box.start(fake_profile())
    box.until(ServerState.READY)
    box.start(fake_profile("broken", fail="haunted"))
    box.until(ServerState.FAILED, "broken")
    on_record(lambda launch: launch.outcome == "ready")
    on_record(lambda launch: launch.outcome == "failed", "broken")
    lines = box.gpubox("history").stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["ENGINE", "broken", "fake"]
    assert "failed: ValueError: haunted" in lines[1]
    assert lines[2].endswith("ready")
    assert len(box.gpubox("history", "-n", "1").stdout.splitlines()) == 2
    one = box.gpubox("history", "fake").stdout
    assert "  stages:  boot " in one
    assert " · weights " in one
    (told,) = json.loads(box.gpubox("history", "broken", "--json").stdout)
    assert (told["server"], told["outcome"], told["start_s"]) == ("broken", "failed", None)
    assert [stage["name"] for stage in told["stages"]] == ["boot", "config", "weights"]
    missing = box.gpubox("history", "nobody", code=9)
    assert "no launch of nobody is on record" in missing.stderr
    assert "known: broken, fake" in missing.stderr


def test_a_headless_start_tells_each_stages_time(box: Box) -> None:
    box.keep_profile(fake_profile(start=1.0))
    done = box.gpubox("--headless", "--profile", "fake", "--json")
    for name in ("boot", "config", "weights"):
        assert f" {name} " in done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert [stage["name"] for stage in stages] == ["boot", "config", "weights"]
    assert sum(stage["took_s"] for stage in stages) > 0, "lines that are read at once have the same stamp"
