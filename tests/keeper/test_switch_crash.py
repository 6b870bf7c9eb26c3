"""The keeper is killed at each step of a switch: the next one carries it on, or takes it back; nobody is lost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends import paths
from backends.snapshots import ServerState
from backends.switches import Switch
from tests.gpu.conftest import nvml_library  # noqa: F401
from tests.keeper.conftest import PATIENCE_S
from tests.keeper.switch_box import SwitchBox, switch_box_in

READY, SLEEPING = ServerState.READY, ServerState.SLEEPING
SLOW: dict[str, Any] = {
    "first_sleep": 0.3,
    "sleep": 0.3,
    "wake": 0.3,
    "reload": 0.3,
    "memory_lag": 0.3,
    "token_s": 0.2,
}


@pytest.fixture(scope="module")
def kept_box(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwitchBox]:  # noqa: F811
    """A box with two servers that take their time, one of them asleep."""
    with switch_box_in(tmp_path_factory.mktemp("home"), nvml_library) as box:
        box.start_one(box.sleepy("a", **SLOW))
        assert box.switch(box.sleepy("b", **SLOW)).outcome == "done"
        yield box


def asleep_and_awake(box: SwitchBox) -> tuple[str, str]:
    states = dict(zip("ab", box.states("a", "b"), strict=True))
    assert sorted(states.values()) == [READY, SLEEPING]
    return next(name for name, state in states.items() if state is SLEEPING), next(
        name for name, state in states.items() if state is READY
    )


@pytest.mark.parametrize(
    ("level", "step"),
    [(1, step) for step in ("drain", "sleep", "memory", "wake", "first-token")]
    + [(2, step) for step in ("sleep", "wake", "weights", "kv-cache")],
)
def test_a_switch_is_carried_on(kept_box: SwitchBox, level: int, step: str) -> None:
    box = kept_box
    target, awake = asleep_and_awake(box)
    if level == 2:  # sleep as deep before, so that the wake has all its steps
        assert box.switch(target, level=2).outcome == "done"
        target, awake = awake, target
    asking = None
    if step == "drain":
        asking = threading.Thread(target=lambda: _suppressed(lambda: box.ask(awake, max_tokens=8)))
        asking.start()
        box.until(lambda server: _in_flight(box, awake), awake)
    switch = box.begin_switch(target, level=level, drain_s=5.0)
    assert box.during(switch, lambda now: reached(now, step))
    box.kill_keeper()
    done = box.over(switch)
    assert (done.outcome, done.error) == ("done", None)
    assert box.states(target, awake) == [READY, SLEEPING]
    assert box.ask(target) == "You asked: hello"
    deadline = time.monotonic() + PATIENCE_S
    while list(paths.state_dir().glob("switch-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if asking is not None:
        asking.join(PATIENCE_S)


def test_a_switch_is_taken_back(kept_box: SwitchBox) -> None:
    box = kept_box
    _, awake = asleep_and_awake(box)
    switch = box.begin_switch(box.sleepy("c", fail="no such tensor", start=0.5))
    assert box.during(switch, lambda now: reached(now, "restore"))
    box.kill_keeper()
    done = box.over(switch)
    assert done.outcome == "restored"
    assert "no such tensor" in (done.error or "")
    assert box.states(awake, "c") == [READY, ServerState.FAILED]
    assert box.ask(awake) == "You asked: hello"


def test_a_start_is_carried_on(kept_box: SwitchBox) -> None:
    box = kept_box
    _, awake = asleep_and_awake(box)
    switch = box.begin_switch(box.sleepy("d", start=1.0))
    assert box.during(switch, lambda now: reached(now, "start"))
    box.kill_keeper()
    done = box.over(switch)
    assert (done.outcome, done.error) == ("done", None)
    assert box.states(awake, "d") == [SLEEPING, READY]


def reached(switch: Switch, step: str) -> bool:
    # Not only the last: a machine with much else to do may see none but the next.
    return any(one.name == step for one in switch.steps)


def _in_flight(box: SwitchBox, name: str) -> bool:
    metrics = box.server(name).metrics
    return bool(getattr(metrics, "running", 0))


def _suppressed(work: object) -> None:
    with contextlib.suppress(OSError):
        work()  # type: ignore[operator]
