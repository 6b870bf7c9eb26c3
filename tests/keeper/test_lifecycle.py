"""A server's life under a real keeper and a real shim."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from backends import paths
from backends.client import KeeperClient, ensure_keeper
from backends.errors import ConflictError, NoSuchGpuError, NoSuchServerError, ProfileError, UsageError
from backends.processes.facts import identity_of, is_alive
from backends.snapshots import Missing, ModelKind, ServerState
from tests.keeper.conftest import PATIENCE_S, Box, box_in, fake_profile, kill_and_wait


@pytest.fixture
def box(lasting_box: Box) -> Iterator[Box]:
    yield lasting_box
    lasting_box.sweep()


def test_a_server_starts_serves_and_stops(box: Box) -> None:
    server = box.start(fake_profile())
    assert server.state is ServerState.STARTING
    ready = box.until(ServerState.READY)
    assert (ready.kind, ready.engine_version, ready.max_model_len) == (ModelKind.CHAT, "0.0.fake", 1024)
    scraped = box.until(lambda s: not isinstance(s.metrics, Missing))
    assert not isinstance(scraped.metrics, Missing)
    assert scraped.metrics.kv_cache_usage == 0.25
    box.client.stop("fake")
    stopped = box.until(ServerState.STOPPED)
    assert stopped.exit is not None
    assert stopped.exit.asked
    assert stopped.cause is None
    assert ready.pid is not None
    assert identity_of(ready.pid) is None


def test_the_log_holds_the_engine_and_not_our_scraping(box: Box) -> None:
    box.start(fake_profile())
    ready = box.until(lambda s: not isinstance(s.metrics, Missing))
    log = Path(ready.log_path or "").read_text()
    assert "Application startup complete" in log
    assert "/metrics" not in log
    assert "/health" not in log
    assert "marker from-the-client" in log
    assert "cuda ''" in log
    assert "100% Completed" in log


def test_files_are_private(box: Box) -> None:
    box.start(fake_profile())
    box.until(ServerState.READY)
    for path in paths.state_dir().rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"


def test_stages_come_from_the_log(box: Box) -> None:
    box.start(box.held_profile())
    staged = box.until(lambda s: s.stage is not None and s.stage.name == "weights" and s.stage.progress == 0.5)
    assert staged.stage is not None
    assert staged.stage.detail == "shard 1 of 2"
    box.let_start()
    box.until(ServerState.READY)


def test_a_keeper_that_is_killed_loses_nothing(box: Box) -> None:
    box.start(fake_profile())
    before = box.until(ServerState.READY)
    keeper = box.client.snapshot().keeper
    assert keeper is not None
    kill_and_wait(keeper.pid)
    after = ensure_keeper(KeeperClient()).snapshot()
    assert after.keeper is not None
    assert after.keeper.pid != keeper.pid
    (server,) = after.servers
    assert (server.state, server.pid or before.pid, server.port) == (ServerState.READY, before.pid, before.port)
    assert server.log_path == before.log_path
    box.until(lambda s: not isinstance(s.metrics, Missing))
    box.client.stop("fake")
    box.until(ServerState.STOPPED)


def test_a_keeper_killed_during_a_start_finds_the_start_again(box: Box) -> None:
    box.start(box.held_profile())
    keeper = box.client.snapshot().keeper
    assert keeper is not None
    box.until(lambda s: s.pid is not None)
    kill_and_wait(keeper.pid)
    ensure_keeper(box.client)
    assert box.server().state is ServerState.STARTING
    box.let_start()
    box.until(ServerState.READY)


def test_a_stop_goes_on_though_the_keeper_dies_during_it(box: Box) -> None:
    box.start(fake_profile(running=2) | {"drain_s": 600.0})
    box.until(lambda s: not isinstance(s.metrics, Missing) and s.metrics.running == 2)
    assert box.client.stop("fake").state is ServerState.DRAINING
    keeper = box.client.snapshot().keeper
    assert keeper is not None
    kill_and_wait(keeper.pid)
    ensure_keeper(box.client)
    box.until(ServerState.STOPPED)


def test_a_restart_goes_on_though_the_keeper_dies_during_it(box: Box) -> None:
    box.start(fake_profile(ignore_term=True))
    before = box.until(ServerState.READY)
    assert box.client.restart("fake").state is ServerState.STOPPING
    keeper = box.client.snapshot().keeper
    assert keeper is not None
    kill_and_wait(keeper.pid)
    ensure_keeper(box.client)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    after = box.until(ServerState.READY)
    assert after.launched_at != before.launched_at


def test_an_end_that_nobody_asked_for_is_a_failure_even_with_exit_code_0(box: Box) -> None:
    box.start(fake_profile(die_after=0.5))
    failed = box.until(ServerState.FAILED)
    assert failed.cause == "it ended with exit code 0, though nobody asked it to"


def test_a_failed_start_names_the_root_cause(box: Box) -> None:
    box.start(fake_profile(fail="the model is haunted"))
    failed = box.until(ServerState.FAILED)
    assert failed.cause == "ValueError: the model is haunted (exit code 1)"


def test_a_keeper_killed_between_the_stop_and_the_start_of_a_restart_is_followed_by_one_that_starts(box: Box) -> None:
    box.start(fake_profile())
    box.until(ServerState.READY)
    box.client.stop("fake", force=True)
    box.until(ServerState.STOPPED)
    kill_and_wait(box.keeper_pids()[0])
    path = paths.server_dir("fake") / "server.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"again": True, "wanted": False}))
    ensure_keeper(box.client)
    assert box.until(ServerState.READY).attempt == 0


def test_the_death_of_an_engine_core_is_seen_at_once_and_ends_the_server(box: Box) -> None:
    server = box.start(fake_profile(core=True))
    server = box.until(ServerState.READY)
    assert server.pid is not None

    def core() -> psutil.Process | None:
        below = psutil.Process(server.pid).children(recursive=True)
        return next((process for process in below if process.name().startswith("VLLM::")), None)

    deadline = time.monotonic() + PATIENCE_S
    while (found := core()) is None:
        assert time.monotonic() < deadline
    kill_and_wait(found.pid)
    failed = box.until(lambda server: server.state in (ServerState.UNRESPONSIVE, ServerState.FAILED))
    assert any(event.kind == "died" for event in box.client.history())
    failed = box.until(ServerState.FAILED)
    assert failed.exit is not None
    assert not failed.exit.asked
    assert not psutil.pid_exists(server.pid)


def test_sigkill_of_the_engine_leaves_no_child(box: Box) -> None:
    import psutil

    box.start(fake_profile(child=True))
    ready = box.until(ServerState.READY)
    assert ready.pid is not None
    children = [identity_of(child.pid) for child in psutil.Process(ready.pid).children()]
    os.kill(ready.pid, signal.SIGKILL)
    failed = box.until(ServerState.FAILED)
    assert failed.cause is not None
    assert "SIGKILL" in failed.cause
    assert children
    assert not any(child and is_alive(child) for child in children)


def test_a_server_that_ignores_sigterm_is_killed_when_forced(box: Box) -> None:
    box.start(fake_profile(ignore_term=True))
    box.until(ServerState.READY)
    box.client.stop("fake")
    box.until(ServerState.STOPPING)
    box.client.stop("fake", force=True)
    box.until(ServerState.STOPPED)


def test_requests_may_end_before_the_engine_is_asked_to(box: Box) -> None:
    box.start(fake_profile(running=2))
    box.until(lambda s: not isinstance(s.metrics, Missing) and s.metrics.running == 2)
    box.client.stop("fake")
    assert box.server().state is ServerState.DRAINING
    box.until(ServerState.STOPPED)


def test_a_stop_during_the_start_stops_it(box: Box) -> None:
    box.start(fake_profile(start=30))
    box.client.stop("fake")
    stopped = box.until(ServerState.STOPPED)
    assert stopped.cause is None


def test_restart_keeps_the_port_and_makes_a_new_log(box: Box) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    box.start(fake_profile(), port=port)
    before = box.until(ServerState.READY)
    box.client.restart("fake")
    box.until(lambda s: s.launched_at != before.launched_at)
    after = box.until(ServerState.READY)
    assert after.port == before.port
    assert after.log_path != before.log_path


def test_on_failure_it_is_started_again_and_each_log_stays(box: Box) -> None:
    profile = fake_profile(die_after=0.2) | {"restart": {"policy": "on-failure", "max_attempts": 2, "backoff_s": 0.2}}
    box.start(profile)
    failed = box.until(ServerState.FAILED)
    assert failed.attempt == 2
    assert len(list(paths.log_dir().glob("fake-*.log"))) == 3


def test_a_stop_ends_the_waiting_for_the_next_attempt(box: Box) -> None:
    profile = fake_profile(die_after=0.1) | {"restart": {"policy": "on-failure", "max_attempts": 2, "backoff_s": 60.0}}
    box.start(profile)
    box.until(ServerState.BACKOFF)
    box.client.stop("fake")
    box.until(ServerState.STOPPED)


def test_what_cannot_be_is_refused_in_one_line(box: Box) -> None:
    box.start(fake_profile())
    with pytest.raises(ConflictError, match="server fake is"):
        box.start(fake_profile())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConflictError, match="in use by pid"):
            box.start(fake_profile("other"), port=taken.getsockname()[1])
    with pytest.raises(ProfileError, match="colour"):
        box.start(fake_profile("other") | {"colour": "red"})
    with pytest.raises(UsageError, match="cannot be a server's name"):
        box.start(fake_profile("other"), name="../other")
    with pytest.raises(NoSuchServerError, match="known: fake"):
        box.client.stop("nobody")
    with pytest.raises(NoSuchGpuError):
        box.start(fake_profile("other") | {"gpus": 1}, gpus=("0",))
    with pytest.raises(ConflictError, match="stop it first"):
        box.client.forget("fake")


def test_a_server_that_has_ended_can_be_forgotten(box: Box) -> None:
    box.start(fake_profile())
    box.until(ServerState.READY)
    box.client.stop("fake")
    log = Path(box.until(ServerState.STOPPED).log_path or "")
    box.client.forget("fake")
    assert box.client.snapshot().servers == ()
    assert log.exists()
    assert not paths.server_dir("fake").exists()


def test_a_damaged_record_is_set_aside(tmp_path: Path) -> None:
    with box_in(tmp_path) as box:
        folder = paths.private(paths.server_dir("odd"))
        (folder / "server.json").write_text('{"half":')
        assert ensure_keeper(box.client).snapshot().servers == ()
        assert (folder / "server.json.broken").exists()


def test_history_tells_what_happened(box: Box) -> None:
    begun = time.time()
    box.start(fake_profile())
    box.until(ServerState.READY)
    events = [event for event in box.client.history() if event.at >= begun]
    assert [(event.server, event.kind) for event in events] == [("fake", "started"), ("fake", "ready")]
    assert "port" in events[0].text


def test_two_clients_start_one_keeper(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with box_in(tmp_path), ThreadPoolExecutor(4) as pool:
        pids = {
            info.pid for info in pool.map(lambda _: ensure_keeper(KeeperClient()).snapshot().keeper, range(4)) if info
        }
    assert len(pids) == 1
