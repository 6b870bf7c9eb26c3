"""Switches between servers that sleep, through a real keeper: engines and GPUs are stand-ins."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from backends.errors import ConflictError, GpuBusyError
from backends.snapshots import Missing, Server, ServerState
from backends.switches import Way, Yield
from tests.gpu.conftest import MIB, StubGpu, nvml_library  # noqa: F401
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
    kept_box.set_most_sleeping(None)


def test_two_servers_give_way_to_each_other(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a"))
    first = box.switch(box.sleepy("b"))
    assert (first.outcome, first.way) == ("done", Way.START), first
    assert box.states("a", "b") == [SLEEPING, READY]
    assert box.ask("b") == "You asked: hello"
    back = box.choice("a")
    assert back.way is Way.WAKE_1
    assert [(one.server, one.how) for one in back.giving_way] == [("b", Yield.SLEEP_1)]
    assert box.choice("b").way is Way.AWAKE

    second = box.switch("a")
    assert (second.outcome, second.error, second.way) == ("done", None, Way.WAKE_1)
    assert box.states("a", "b") == [READY, SLEEPING]
    assert box.ask("a") == "You asked: hello"
    names = [(step.name, step.server) for step in second.steps]
    assert names[0] == ("drain", "b")
    assert ("sleep", "b") in names
    assert names[-2:] == [("wake", "a"), ("first-token", "a")]
    assert second.took_s is not None
    assert 0 < sum(step.took_s for step in second.steps) <= second.took_s
    again = box.switch("b")
    assert again.outcome == "done"
    # By now each has given way, and has been woken once.
    assert box.choice("a").expected_s is not None
    told = box.gpubox("history", "a").stdout
    assert "SWITCHED" in told
    assert "b sleep-1" in told
    assert sum("switch" in row for row in json.loads(box.gpubox("history", "a", "--json").stdout)) == 3


def test_three_in_rotation(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a"))
    for name in ("b", "c"):
        assert box.switch(box.sleepy(name)).outcome == "done"
    for awake in ("a", "b", "c", "a"):
        done = box.switch(awake)
        assert (done.outcome, done.error) == ("done", None)
        others = [name for name in "abc" if name != awake]
        assert box.states(awake, *others) == [READY, SLEEPING, SLEEPING]
        assert box.ask(awake) == "You asked: hello"


def test_level_2_by_wish_and_for_want_of_host_memory(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a"))
    assert box.switch(box.sleepy("b"), level=2).gave_way[0].how is Yield.SLEEP_2
    asleep = box.server("a").sleep
    assert asleep is not None
    assert asleep.level == 2
    assert box.choice("a").way is Way.WAKE_2
    done = box.switch("a")
    assert done.way is Way.WAKE_2
    names = [step.name for step in done.steps if step.server == "a"]
    assert names == ["wake", "weights", "kv-cache", "prefix-cache", "first-token"]
    assert box.ask("a") == "You asked: hello"  # with weights that were not read again it talks nonsense

    big = box.sleepy("c", weights_bytes=1 << 42)
    assert box.switch(big).outcome == "done"
    done = box.switch("a")
    assert [(one.server, one.how) for one in done.gave_way] == [("c", Yield.SLEEP_2)]
    assert "of host memory" in done.gave_way[0].why


def test_the_oldest_sleeper_stops_for_the_host_memory_it_holds(box: SwitchBox) -> None:
    pin = 300 * MIB  # what the rest of this machine does meanwhile is less
    for name in ("a", "b", "c"):
        profile = box.sleepy(name, weights_bytes=pin // 2, pin_bytes=pin)
        if name == "a":
            box.start_one(profile)
        else:
            assert box.switch(profile).outcome == "done"
    pinned = sum(box.server(name).host_bytes for name in "ab")
    assert pinned > pin
    box.set_most_sleeping(f"{(pinned + pin // 2) // MIB} MiB")
    done = box.switch("b")
    gave_way = {one.server: one.how for one in done.gave_way}
    assert gave_way == {"a": Yield.STOP, "c": Yield.SLEEP_1}
    assert box.states("a", "b", "c") == [ServerState.STOPPED, READY, SLEEPING]


def test_what_is_not_ours_is_left_alone(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a"))
    assert box.switch(box.sleepy("b")).outcome == "done"
    box.stub.show([StubGpu(readings={"memory_used": 70 * GIB}, processes=((1, 70 * GIB, "compute"),))])
    with pytest.raises(GpuBusyError, match="GPU 0 is in use by"):
        box.switch("a")
    assert box.states("a", "b") == [SLEEPING, READY]


def test_who_fails_to_wake_is_ended_and_who_served_serves_again(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a", wake_fails=True))
    assert box.switch(box.sleepy("b")).outcome == "done"
    done = box.switch("a")
    assert done.outcome == "restored"
    assert done.error is not None
    assert "did not wake" in done.error
    assert done.steps[-1].name == "restore"
    assert box.states("a", "b") == [ServerState.FAILED, READY]
    assert box.ask("b") == "You asked: hello"
    assert box.server("a").card is not None
    box.hears("restored", "a")


def test_who_fails_to_start_leaves_who_served_awake(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a"))
    done = box.switch(box.sleepy("b", fail="no such tensor"))
    assert done.outcome == "restored"
    assert "no such tensor" in (done.error or "")
    assert box.states("a", "b") == [READY, ServerState.FAILED]
    assert box.ask("a") == "You asked: hello"


def test_requests_are_drained_then_cut_off(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a", token_s=0.05))
    assert box.switch(box.sleepy("b")).outcome == "done"
    assert box.switch("a").outcome == "done"
    answers: dict[str, object] = {}

    def ask(key: str, words: int) -> None:
        try:
            answers[key] = box.ask("a", max_tokens=words)
        except OSError as problem:
            answers[key] = problem

    asking = [threading.Thread(target=ask, args=("long", 2000)), threading.Thread(target=ask, args=("short", 40))]
    for one in asking:
        one.start()
    # A machine with much else to do may see the short one only once it is answered.
    box.until(lambda server: _running(server) + ("short" in answers) >= 2, "a")
    done = box.switch("b", drain_s=5.0)
    for one in asking:
        one.join(PATIENCE_S)
    assert done.outcome == "done"
    assert isinstance(answers["short"], str)
    assert isinstance(answers["long"], OSError)
    assert box.states("a", "b") == [SLEEPING, READY]


def _running(server: Server) -> int:
    running = Missing("") if isinstance(server.metrics, Missing) else server.metrics.running
    return 0 if isinstance(running, Missing) else running


def test_a_request_wakes_who_may_be_woken(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a", more={"wake_on_request": True}))
    assert box.switch(box.sleepy("b")).outcome == "done"
    assert box.ask("a") == "You asked: hello"
    assert box.states("a", "b") == [READY, SLEEPING]
    box.hears("switched", "a")


def test_two_that_are_wanted_at_once_are_served_in_turn(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a", more={"wake_on_request": True}))
    assert box.switch(box.sleepy("b", more={"wake_on_request": True})).outcome == "done"
    assert box.switch(box.sleepy("c")).outcome == "done"
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(box.ask, name) for name in "abab"]
        assert [answer.result(PATIENCE_S) for answer in answers] == ["You asked: hello"] * 4
    assert READY in box.states("a", "b")


def test_a_stop_of_the_woken_one_wins(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a", wake=2.0))
    assert box.switch(box.sleepy("b")).outcome == "done"
    switch = box.begin_switch("a")
    box.until(ServerState.WAKING, "a")
    box.client.stop("a")
    done = box.over(switch)
    assert (done.outcome, done.error) == ("restored", "server a was stopped by request")
    assert box.states("a", "b") == [ServerState.STOPPED, READY]


def test_requests_wait_for_who_is_being_switched_to(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a", wake=1.0))
    assert box.switch(box.sleepy("b", sleep=1.0, first_sleep=1.0)).outcome == "done"
    switch = box.begin_switch("a")
    assert box.during(switch, lambda now: any(step.name == "sleep" for step in now.steps))
    assert box.ask("a") == "You asked: hello"
    assert box.over(switch).outcome == "done"


def test_a_warm_spare_starts_once_there_is_room_and_is_switched_to(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a"))
    box.start(box.sleepy("b"), box.engine_environ(), asleep=True)
    box.until(lambda server: server.stage is not None and bool(server.stage.detail), "b")
    assert box.states("a", "b") == [READY, ServerState.QUEUED]
    box.client.sleep("a")
    box.until(SLEEPING, "b")
    assert box.switch("b").way is Way.WAKE_1
    assert box.ask("b") == "You asked: hello"
    # One that has not started yet stays awake where it is switched to.
    box.start(box.sleepy("c"), box.engine_environ(), asleep=True)
    done = box.switch("c")
    assert (done.outcome, done.error) == ("done", None)
    assert box.states("a", "b", "c") == [SLEEPING, SLEEPING, READY]
    assert box.ask("c") == "You asked: hello"


def test_who_is_idle_sleeps_with_nobody_looking_and_the_next_request_wakes_it(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a", more={"ttl": 0.01, "wake_on_request": True}))
    box.until(SLEEPING, "a")
    assert box.ask("a") == "You asked: hello"
    box.hears("switched", "a")
    told = [event.kind for event in box.client.history() if event.server == "a"]
    assert told.index("asleep") < told.index("switched")


def test_a_sleeper_whose_core_was_killed_is_told_and_who_serves_goes_on_serving(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a", core=True))
    assert box.switch(box.sleepy("b")).outcome == "done"
    engine = psutil.Process(box.server("a").pid)
    (core,) = (one for one in engine.children(recursive=True) if one.name().startswith("VLLM::"))
    core.kill()
    try:
        done = box.switch("a")
    except ConflictError:  # its death was seen before
        pass
    else:
        assert done.outcome == "restored"
    box.until(lambda server: not server.is_live, "a")
    assert box.server("b").state is READY
    assert box.ask("b") == "You asked: hello"
