"""The servers screen by its keys: what is asked of the keeper, and what is shown of its answers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from textual.pilot import Pilot

from backends.errors import ConflictError
from backends.snapshots import Event, EventUpdate, Latency, Metrics, Missing, Server, ServerState, ServerUpdate
from backends.starts import Stage
from profiles.store import Store
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.actions import in_use
from tui.app import GpuboxApp
from tui.headless.status import lines
from tui.order import in_order
from tui.screens.confirm import ConfirmScreen


async def opened(pilot: Pilot[None]) -> None:
    await pilot.press("2")
    await until(pilot, lambda: "x Stop" in shown(pilot), "the servers")


def line_of(pilot: Pilot[None], name: str) -> str:
    return next(line for line in shown(pilot).splitlines()[1:] if line.strip().startswith(name))


def test_status_tells_what_to_be_careful_about_with_servers_that_live() -> None:
    box = simulated()
    odd = [replace(box.servers[0], warnings=("half awake",)), replace(box.servers[1], state=ServerState.STOPPED)]
    told = lines(replace(box, servers=(odd[0], replace(odd[1], warnings=("of old",)))), NOW)
    assert f"{odd[0].name}: careful: half awake" in told
    assert not any("of old" in line for line in told)


async def test_rows_tell_state_stage_progress_and_load() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        assert line_of(pilot, "llama-3.3-70b").split() == [
            "llama-3.3-70b",
            "●",
            "ready",
            "0-1",
            "82%",
            "2.6k",
            "46+7",
            "3h",
            "12m",
        ]
        assert line_of(pilot, "mistral-7b").split()[:5] == ["mistral-7b", "◐", "weights", "62%", "~40"]
        assert line_of(pilot, "qwen2.5-14b").split()[1:6] == ["✗", "failed", "8", "min", "ago"]


async def test_a_wide_screen_shows_model_and_port_too() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(pilot)
        row = line_of(pilot, "llama-3.3-70b")
        assert "meta-llama/Llama-3.3-70B-Instruct" in row
        assert " 8000 " in row


async def test_the_details_say_why_a_server_failed() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        assert "http://127.0.0.1:8000/v1" in shown(pilot)
        await pilot.press("down", "down", "down")
        await until(pilot, lambda: "CUDA out of memory" in shown(pilot), "the cause")
        assert app.selected == "qwen2.5-14b"
        assert "code 1, nobody asked for it" in shown(pilot)


async def test_stopping_a_busy_server_asks_first_and_no_means_no() -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        for no in (("n",), ("escape",), ("enter",)):
            await pilot.press("x")
            assert isinstance(app.screen, ConfirmScreen)
            assert "It has 46 running requests" in shown(pilot)
            await pilot.press(*no)
            assert not isinstance(app.screen, ConfirmScreen)
        assert link.requests() == []
        await pilot.press("x", "y")
        await until(pilot, lambda: link.requests() != [], "the request")
        assert link.requests() == [("stop", "llama-3.3-70b", False)]


def at_rest(server: Server, **other: object) -> Server:
    """Return a ready server that nobody has asked anything for a minute; `other` are fields that differ."""
    assert isinstance(server.metrics, Metrics)
    none = Latency(0, None, None, None, None, 0.01)
    return replace(server, metrics=replace(server.metrics, running=0, waiting=0, e2e=none), **other)  # type: ignore[arg-type]


async def test_an_idle_server_stops_at_once_and_a_second_time_is_killed() -> None:
    link = FakeLink()
    idle = at_rest(link.state.servers[0])
    link.state = replace(link.state, servers=(idle,))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("x")
        await until(pilot, lambda: link.requests() == [("stop", idle.name, False)], "a stop")
        link.say(ServerUpdate(replace(idle, state=ServerState.STOPPING)))
        await until(pilot, lambda: "stopping" in line_of(pilot, idle.name), "its new state")
        await pilot.press("x")
        await until(pilot, lambda: link.requests()[1:] == [("stop", idle.name, True)], "a kill")


def test_a_server_that_somebody_may_be_using_is_not_ended_without_a_question() -> None:
    some = simulated().servers[0]
    idle = at_rest(some)
    assert in_use(idle) == ""
    assert in_use(some, kills=True) == "This kills 46 running requests."
    assert in_use(some) == "It has 46 running requests: what does not end within its drain_s is killed."
    assert in_use(at_rest(some, host="0.0.0.0")) == "Other machines can reach it: somebody may be using it."
    assert in_use(replace(some, metrics=Missing("none"))) == "It does not tell whether anybody uses it."
    assert isinstance(idle.metrics, Metrics)
    lately = replace(idle.metrics, e2e=Latency(1, 0.5, 0.5, 0.5, 0.5, 0.01))
    assert "answered 1 request in" in in_use(replace(idle, metrics=lately))
    for state in set(ServerState) - {ServerState.READY}:
        assert in_use(replace(some, state=state)) == "", "it serves nobody"


@pytest.mark.parametrize("key", ["x", "X", "r"])
async def test_stop_kill_and_restart_ask_alike_and_a_server_that_starts_goes_at_once(key: str) -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press(key)
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        await pilot.press("n")
        app.selected = "mistral-7b"
        await until(pilot, lambda: "mistral-7b" in str(app.screen.query_one("#details").border_title), "it")
        await pilot.press(key)
        await until(pilot, lambda: link.requests() != [], "the request")
        assert link.requests()[0][:2] == ("restart" if key == "r" else "stop", "mistral-7b")


async def test_servers_stand_in_one_order_however_the_keeper_tells_them() -> None:
    link = FakeLink()
    some = link.state.servers[0]
    states = {
        "d": ServerState.STOPPED,
        "c": ServerState.FAILED,
        "e": ServerState.LOST,
        "b": ServerState.READY,
        "a": ServerState.STOPPED,
        "f": ServerState.QUEUED,
    }
    link.state = replace(link.state, servers=tuple(replace(some, name=n, state=s) for n, s in states.items()))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 40)) as pilot:
        await opened(pilot)
        assert [server.name for server in app.servers] == ["b", "f", "c", "e", "a", "d"]
        rows = [line.split()[0] for line in shown(pilot).splitlines() if re.match(r" [a-f]  ", line)]
        assert rows == ["b", "f", "c", "e", "a", "d"]
        assert app.selected == "b"
    table = next(part for part in lines(link.state, NOW) if part.startswith("SERVER"))
    told = [line.split()[0] for line in table.splitlines()[1:]]
    assert told == ["b", "f", "c", "e", "a", "d"], "gpubox status alike"


@pytest.mark.parametrize(
    ("down", "key", "request_"),
    [
        (1, "X", ("stop", "mistral-7b", True)),
        (1, "r", ("restart", "mistral-7b")),
        (3, "r", ("restart", "qwen2.5-14b")),
        (3, "d", ("forget", "qwen2.5-14b")),
        (3, "delete", ("forget", "qwen2.5-14b")),
    ],
)
async def test_keys_ask_the_keeper(down: int, key: str, request_: tuple[object, ...]) -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press(*["down"] * down)
        name = app.servers[down].name
        await until(pilot, lambda: app.selected == name, name)
        await pilot.press(key)
        await until(pilot, lambda: link.requests() == [request_], str(request_))


@pytest.mark.parametrize(("down", "key"), [(0, "d"), (3, "x"), (3, "X"), (3, "u")])
async def test_keys_that_make_no_sense_ask_nothing(down: int, key: str) -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press(*["down"] * down)
        await until(pilot, lambda: app.selected == app.servers[down].name, "the selection")
        await pilot.press(key)
        await pilot.pause()
        assert link.requests() == []
        assert not isinstance(app.screen, ConfirmScreen)
        assert app.clipboard == ""


@pytest.mark.parametrize(("key", "mode"), [("l", "logs"), ("c", "chat"), ("m", "metrics"), ("enter", "logs")])
async def test_keys_show_the_server_elsewhere(key: str, mode: str) -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("down")
        await until(pilot, lambda: app.selected == "mistral-7b", "the selection")
        await pilot.press(key)
        assert app.current_mode == mode
        assert app.selected == "mistral-7b"


async def test_a_refusal_is_a_toast_with_what_to_do() -> None:
    link = FakeLink()
    link.refusal = ConflictError("mistral-7b is starting already", "wait, or stop it [first]")
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await opened(pilot)
        await pilot.press("down", "r")
        await until(pilot, lambda: "mistral-7b is starting already" in shown(pilot), "the refusal")
        assert "wait, or stop it [first]" in shown(pilot)
        assert app.is_running


async def test_events_become_toasts_but_not_what_the_table_shows_anyway() -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await opened(pilot)
        link.say(EventUpdate(Event(NOW, "a", "started", "started on GPU 3")))
        link.say(EventUpdate(Event(NOW, "b", "ready", "ready in 61 s")))
        link.say(EventUpdate(Event(NOW, "c", "failed", "failed: [Errno 98] Address already in use")))
        await until(pilot, lambda: "[Errno 98] Address already in use" in shown(pilot), "the failure")
        assert "ready in 61 s" in shown(pilot)
        assert "started on GPU 3" not in shown(pilot)


async def test_the_cursor_stays_on_its_server_when_others_come_and_go() -> None:
    link = FakeLink()
    one, two, three, _ = in_order(link.state.servers)
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("down")
        await until(pilot, lambda: app.selected == two.name, "the selection")
        link.show(replace(one, name="aaa"), one, two, three)
        await until(pilot, lambda: "aaa" in shown(pilot), "the new server")
        assert app.selected == two.name
        link.show(two, three)
        await until(pilot, lambda: "aaa" not in shown(pilot), "its end")
        assert app.selected == two.name
        link.show(three)
        await until(pilot, lambda: app.selected == three.name, "the one that is left")


async def test_a_stage_that_moves_on_is_shown() -> None:
    link = FakeLink()
    starting = link.state.servers[2]
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        stage = Stage("cuda graphs", NOW - 65, 1.0, "captured in 3 s")
        link.say(ServerUpdate(replace(starting, stage=stage, progress=None)))
        await until(pilot, lambda: "◐ cuda graphs 100% 1:05 " in line_of(pilot, starting.name), "the stage")


async def test_no_server_and_no_profile_say_what_to_do_next(store: Store) -> None:
    link = FakeLink()
    link.state = replace(link.state, servers=())
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "No server yet" in shown(pilot), "the hint")
        assert "gpubox profiles new NAME" in shown(pilot)
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "pair" in shown(pilot), "the profiles")
        assert "No profile yet" not in shown(pilot)
        assert "s Switch" in shown(pilot).splitlines()[-1]


async def test_a_broken_profile_is_listed_with_its_problem(store: Store) -> None:
    app = GpuboxApp(FakeLink(), store=store, clock=lambda: NOW)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "enigne: no such key; did you mean engine?" in shown(pilot), "the problem")
        await pilot.press("tab", "end", "down", "down", "down", "down")
        await pilot.press("enter")
        await until(pilot, lambda: "wrong.toml" in shown(pilot), "the whole problem")
        assert app.current_mode == "servers"
