"""Servers that cannot sleep switch by stop and start, through a real keeper: the CPU is one place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from backends import paths
from backends.client import ensure_keeper
from backends.errors import NoSuchGpuError, NoSuchServerError, ProfileError
from backends.keeper import journal as journals
from backends.records import Records
from backends.snapshots import ServerState, StartRequest, SwitchRequest
from backends.switch_records import switches
from backends.switches import Switch, SwitchChoice, Way, Yield
from tests.keeper.conftest import PATIENCE_S, Box, fake_profile, kill_and_wait


@pytest.fixture
def box(lasting_box: Box) -> Iterator[Box]:
    yield lasting_box
    lasting_box.sweep()


def named(name: str, **args: object) -> dict[str, Any]:
    return fake_profile(name, **args) | {"served_name": name}


def until_over(box: Box, switch: Switch) -> Switch:
    """Return how a switch ended, which its record tells."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if any(one.id == switch.id for one in box.client.snapshot().switches):
            time.sleep(0.02)
            continue
        for one in switches(Records(paths.records_path())):
            if one.id == switch.id:
                assert one.outcome in ("done", "restored", "failed")
                return Switch(one.id, one.server, one.at, (), one.outcome, one.error, one.took_s)  # type: ignore[arg-type]
        time.sleep(0.02)
    raise AssertionError(f"{switch} is never over")


def steps_of(switch: Switch) -> list[tuple[str, str]]:
    record = next(one for one in switches(Records(paths.records_path())) if one.id == switch.id)
    return [(step.name, step.server) for step in record.steps]


def choice(box: Box, name: str) -> SwitchChoice:
    return next(one for one in box.client.switch_choices() if one.server == name)


def test_one_stops_and_the_other_starts(box: Box) -> None:
    box.start(named("a"))
    box.until(ServerState.READY, "a")
    assert choice(box, "a").way is Way.AWAKE
    request = StartRequest(named("b"), {"PATH": "/usr/bin:/bin"})
    done = until_over(box, box.client.switch(SwitchRequest("b", request)))
    assert (done.outcome, done.error) == ("done", None)
    assert done.took_s is not None
    assert box.server("b").state is ServerState.READY
    assert box.server("a").state is ServerState.STOPPED
    assert steps_of(done) == [("stop", "a"), ("start", "b"), ("first-token", "b")]
    back = choice(box, "a")
    assert back.way is Way.START
    assert [(one.server, one.how) for one in back.giving_way] == [("b", Yield.STOP)]
    assert back.expected_s is not None
    assert back.expected_s > 0
    # And back, as it was started before.
    again = until_over(box, box.client.switch(SwitchRequest("a")))
    assert again.outcome == "done"
    assert box.server("a").state is ServerState.READY
    assert any(event.kind == "switched" and event.server == "a" for event in box.client.history())


def test_a_start_that_fails_brings_back_who_served(box: Box) -> None:
    box.start(named("a"))
    box.until(ServerState.READY, "a")
    launched = box.server("a").launched_at
    request = StartRequest(named("b", fail="no such tensor"), {"PATH": "/usr/bin:/bin"})
    done = until_over(box, box.client.switch(SwitchRequest("b", request)))
    assert done.outcome == "restored"
    assert done.error is not None
    assert "no such tensor" in done.error
    assert box.server("a").state is ServerState.READY
    assert box.server("a").launched_at != launched
    assert box.server("b").state is ServerState.FAILED


def test_a_stop_by_the_user_wins(box: Box) -> None:
    box.start(named("a"))
    box.until(ServerState.READY, "a")
    switch = box.client.switch(SwitchRequest("b", StartRequest(box.held_profile("b"), {"PATH": "/usr/bin:/bin"})))
    assert _comes(box, "b")
    box.until(ServerState.STARTING, "b")
    box.client.stop("b", force=True)
    done = until_over(box, switch)
    assert (done.outcome, done.error) == ("restored", "server b was stopped by request")
    assert box.server("a").state is ServerState.READY
    assert not box.server("b").is_live


def test_switches_come_one_after_another(box: Box) -> None:
    box.start(named("a"))
    box.until(ServerState.READY, "a")
    environ = {"PATH": "/usr/bin:/bin"}
    held = box.held_profile("b") | {"served_name": "b"}
    first = box.client.switch(SwitchRequest("b", StartRequest(held, environ)))
    same = box.client.switch(SwitchRequest("b"))
    assert same.id == first.id
    second = box.client.switch(SwitchRequest("c", StartRequest(named("c"), environ)))
    assert [one.to for one in box.client.snapshot().switches] == ["b", "c"]
    box.let_start("b")
    assert until_over(box, first).outcome == "done"
    assert until_over(box, second).outcome == "done"
    assert [box.server(name).state for name in "abc"] == [ServerState.STOPPED, ServerState.STOPPED, ServerState.READY]


def test_what_cannot_be_is_told_at_once(box: Box) -> None:
    box.start(named("a"))
    box.until(ServerState.READY, "a")
    with pytest.raises(NoSuchServerError, match="known: a"):
        box.client.switch(SwitchRequest("nobody"))
    with pytest.raises(ProfileError):
        box.client.switch(SwitchRequest("b", StartRequest({"name": "b"}, {})))
    with pytest.raises(NoSuchGpuError):
        box.client.switch(SwitchRequest("b", StartRequest(named("b") | {"gpus": 1}, {})))
    assert box.client.snapshot().switches == ()
    assert box.server("a").state is ServerState.READY


def _comes(box: Box, name: str) -> bool:
    """Wait until the keeper knows of a server."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if any(server.name == name for server in box.client.snapshot().servers):
            return True
        time.sleep(0.02)
    raise AssertionError(f"{name} never came")


@pytest.mark.parametrize("step", ["stop", "start", "first-token"])
def test_a_keeper_killed_in_a_switch_is_followed_by_one_that_goes_on(box: Box, step: str) -> None:
    box.start(named("a"))
    box.until(ServerState.READY, "a")
    request = StartRequest(named("b", start=0.5), {"PATH": "/usr/bin:/bin"})
    switch = box.client.switch(SwitchRequest("b", request))
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        now = box.client.snapshot().switches
        if not now or any(one.name == step for one in now[0].steps):
            break
    keeper = box.client.snapshot().keeper
    assert keeper is not None
    kill_and_wait(keeper.pid)
    ensure_keeper(box.client)
    done = until_over(box, switch)
    assert (done.outcome, done.error) == ("done", None)
    assert box.server("b").state is ServerState.READY
    assert box.server("a").state is ServerState.STOPPED


def test_a_switch_of_an_earlier_boot_is_over(box: Box) -> None:
    box.start(named("a"))
    box.until(ServerState.READY, "a")
    keeper = box.client.snapshot().keeper
    assert keeper is not None
    kill_and_wait(keeper.pid)
    start = StartRequest(named("b"), {"PATH": "/usr/bin:/bin"})
    journals.write(journals.Journal("1.5-b", "b", 1.5, Way.START, (), (), ("cpu",), start, boot_id="another"))
    ensure_keeper(box.client)
    assert not list(paths.state_dir().glob("switch-*"))
    assert [server.name for server in box.client.snapshot().servers] == ["a"]
    assert any(event.kind == "switch-failed" and "booted" in event.text for event in box.client.history())
