"""Somebody else takes the GPU's room in the middle of a switch, or wakes an engine behind the keeper's back."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import paths
from backends.keeper.changeover import RESTORED_WITHIN_S
from backends.keeper.holding import MEMORY_GONE_S
from backends.snapshots import ServerState
from backends.switches import Switch, Way
from tests.gpu.conftest import StubGpu, nvml_library  # noqa: F401
from tests.keeper.conftest import PATIENCE_S
from tests.keeper.switch_box import GIB, SwitchBox, switch_box_in

READY, SLEEPING = ServerState.READY, ServerState.SLEEPING


@pytest.fixture(scope="module")
def kept_box(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwitchBox]:  # noqa: F811
    with switch_box_in(tmp_path_factory.mktemp("home"), nvml_library) as box:
        yield box


@pytest.fixture
def box(kept_box: SwitchBox) -> Iterator[SwitchBox]:
    kept_box.stub.show([StubGpu()])
    yield kept_box
    kept_box.sweep()


def take(box: SwitchBox, size: int) -> int:
    """Have a process that is nobody's hold so much of the GPU; returns its pid."""
    pid = box.spawn_other("sleep", "600").pid
    box.stub.show([StubGpu(readings={"memory_used": size}, processes=((pid, size, "compute"),))])
    return pid


def snatched(box: SwitchBox) -> tuple[Switch, int]:
    """Begin a switch from a to b, in which another takes what a gives back while it falls asleep."""
    box.start_one(box.sleepy("b"))
    assert box.switch(box.sleepy("a", first_sleep=3.0)).outcome == "done"
    switch = box.begin_switch("b")
    assert box.during(switch, lambda now: any(step.name == "sleep" for step in now.steps))
    return switch, take(box, 70 * GIB)


def test_room_that_another_takes_for_a_while_is_waited_for(box: SwitchBox) -> None:
    switch, pid = snatched(box)
    assert box.during(switch, lambda now: any(one.name == "restore" and one.note for one in now.steps))
    restoring = next(one for one in box.client.snapshot().switches[0].steps if one.name == "restore")
    assert f"pid {pid} sleep" in restoring.note
    assert box.server("a").state is ServerState.WAKING
    box.stub.show([StubGpu()])
    done = box.over(switch)
    assert (done.outcome, box.states("a", "b")) == ("restored", [READY, SLEEPING])
    assert f"pid {pid} sleep" in (done.error or "")
    # What another took meanwhile is not taken for what a had not given back.
    assert all(step.took_s < MEMORY_GONE_S for step in done.steps if (step.name, step.server) == ("memory", "a"))
    assert box.ask("a") == "You asked: hello"
    assert box.switch("b").outcome == "done"


def test_who_finds_no_room_sleeps_on_and_is_not_killed(box: SwitchBox) -> None:
    switch, pid = snatched(box)
    engine = box.server("a").pid
    done = box.over(switch, RESTORED_WITHIN_S + PATIENCE_S)
    assert (done.outcome, box.states("a", "b")) == ("failed", [SLEEPING, SLEEPING])
    assert f"pid {pid} sleep" in (done.error or "")
    assert "gpubox switch a brings it back" in (done.error or "")
    box.stub.show([StubGpu()])
    assert box.switch("a").outcome == "done"
    assert box.server("a").pid == engine
    assert box.ask("a") == "You asked: hello"


def test_who_was_woken_by_hand_without_room_is_told_and_a_switch_starts_it_again(box: SwitchBox) -> None:
    first = box.start_one(box.sleepy("a", gpu_bytes=80 * GIB))
    assert box.switch(box.sleepy("b", gpu_bytes=80 * GIB)).outcome == "done"
    assert wake_by_hand(box, "a") == 500
    half = box.until(lambda server: bool(server.warnings), "a")
    assert half.state is SLEEPING
    assert half.warnings == ("sleeps, but holds 20.0 GiB of GPU 0: half awake; a switch to it starts it again",)
    assert [event.text for event in box.client.history() if event.kind == "half-awake"] == list(half.warnings)
    assert box.choice("a").way is Way.START
    done = box.switch("a")
    assert (done.outcome, done.error, done.way) == ("done", None, Way.START)
    again = box.server("a")
    assert (again.pid != first.pid, again.warnings, box.states("a", "b")) == (True, (), [READY, SLEEPING])
    assert box.ask("a") == "You asked: hello"


def test_who_was_woken_by_hand_a_moment_ago_is_not_woken_again(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a", gpu_bytes=80 * GIB))
    assert box.switch(box.sleepy("b", gpu_bytes=80 * GIB)).outcome == "done"
    assert wake_by_hand(box, "a") == 500
    done = box.switch("a")  # before two readings of its memory
    assert (done.outcome, box.states("a", "b")) == ("done", [READY, SLEEPING])
    assert any(step.name == "start" for step in done.steps)


def wake_by_hand(box: SwitchBox, name: str) -> int:
    """Call an engine's own route to wake it, and return its answer's status."""
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(PATIENCE_S)
        door.connect(json.loads((paths.server_dir(name) / "server.json").read_text())["uds"])
        door.sendall(b"POST /wake_up HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        return int(door.recv(4096).split(b" ")[1])


def test_who_is_primed_after_a_switch_pins_its_memory_then_and_whoever_wants_the_gpu_goes_first(box: SwitchBox) -> None:
    assert box.switch(box.sleepy("a", more={"prime": True}, first_sleep=0.5)).outcome == "done"
    assert box.ask("a") == "You asked: hello"  # held while it sleeps
    told = [event.text for event in box.until_told("primed", "a")]
    assert told[0].endswith("its next sleep is fast")
    box.until(READY, "a")
    switch = box.begin_switch(box.sleepy("b", more={"prime": True}, first_sleep=2.0))
    assert box.over(switch).outcome == "done"
    box.until(ServerState.FALLING_ASLEEP, "b")
    assert box.switch("a").outcome == "done"
    assert box.states("a", "b") == [READY, SLEEPING]
    assert box.until_told("primed", "b")[0].text.endswith("it sleeps on, since its GPUs are wanted")
    assert box.switch("b").outcome == "done"
    assert box.ask("b") == "You asked: hello"
