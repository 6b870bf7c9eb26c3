"""Who sleeps, who will, and what a switch is at, on the screens; and the keys for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from textual.pilot import Pilot

from backends.readonly import ReadOnlyKeeper
from backends.simulated_lives import ASLEEP
from backends.snapshots import Event, EventUpdate, Metrics, Server, ServerState, ServerUpdate, SwitchUpdate
from backends.switches import GivingWay, Idle, Sleep, Switch, SwitchChoice, SwitchStep, Way, Yield
from profiles.store import Place, Store
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import GpuboxApp
from tui.explain import EXPLANATIONS
from tui.launching import LaunchIntent, read_launchable
from tui.screens.base import GpuboxScreen
from tui.screens.confirm import ConfirmScreen
from tui.screens.launch import LaunchScreen
from tui.sleeping import held_text, idle_text, state_words, switched_line

AWAKE = "qwen2.5-7b"
GIB = 1 << 30
SLEEPY = 'model = "Qwen/Qwen2.5-7B"\nsleep = true\nttl = 10\n'


def link_of() -> FakeLink:
    link = FakeLink(simulated(sleeps=True))
    link.choices = (
        SwitchChoice(AWAKE, Way.AWAKE),
        SwitchChoice(ASLEEP, Way.WAKE_1, (), 0.7),
        SwitchChoice("qwen2.5-14b", Way.START, (GivingWay("llama-3.3-70b", Yield.STOP, "it cannot sleep"),)),
    )
    return link


def named(link: FakeLink, name: str) -> Server:
    return next(one for one in link.state.servers if one.name == name)


def row(pilot: Pilot[None], name: str) -> str:
    return next(line for line in shown(pilot).splitlines() if line.startswith(f" {name} "))


async def opened(pilot: Pilot[None], app: GpuboxApp, name: str) -> None:
    await pilot.press("2")
    await until(pilot, lambda: app.snapshot is not None and "l Logs" in shown(pilot), "the servers")
    app.selected = name
    await until(pilot, lambda: f"─{name}─" in shown(pilot), "the server's details")


@pytest.mark.parametrize(
    ("size", "said"), [((80, 24), "z asleep · L1 · 2h 00m"), ((200, 50), "z asleep · level 1 · 2h 00m")]
)
async def test_who_sleeps_says_how_deep_and_since_when(size: tuple[int, int], said: str) -> None:
    link = link_of()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: said in shown(pilot), "the state")
        app.selected = ASLEEP
        await until(pilot, lambda: "asleep · level 1 · 2h 00m · holds" in shown(pilot), "the details")
        screen = app.screen
        assert isinstance(screen, GpuboxScreen)
        assert {"sleep", "sleep_level", "pinned", "switch"} <= set(screen.explained()) <= EXPLANATIONS.keys()


async def test_who_will_sleep_counts_down_while_nothing_is_asked() -> None:
    link = link_of()
    idle = replace(named(link, AWAKE), idle=Idle(600.0, NOW - 350))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app, AWAKE)
        link.say(ServerUpdate(idle))
        await until(pilot, lambda: "● ready · z 4:10/10:00" in row(pilot, AWAKE), "the time left")
        await until(pilot, lambda: "sleeps in 4:10 / 10:00 · holds" in shown(pilot), "the time left in the details")
        link.say(ServerUpdate(replace(idle, idle=Idle(600.0, None))))
        await until(pilot, lambda: "sleeps after 10:00 without work" in shown(pilot), "the details while it works")
        await until(pilot, lambda: "z " not in row(pilot, AWAKE), "the row while it works")


async def test_s_switches_to_the_selected_server_without_a_question_where_nobody_gives_way() -> None:
    link = link_of()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app, ASLEEP)
        assert "s Switch" in shown(pilot).splitlines()[-1]
        await pilot.press("s")
        await until(pilot, lambda: link.requests() == [("switch", ASLEEP)], "the request")
        step = SwitchStep("weights", ASLEEP, NOW - 1.5)
        link.say(SwitchUpdate(Switch("1", ASLEEP, NOW - 2, (step,))))
        link.say(ServerUpdate(replace(named(link, ASLEEP), state=ServerState.WAKING, sleep=None)))
        await until(pilot, lambda: "waking · weights" in row(pilot, ASLEEP), "the step")
        await until(pilot, lambda: "weights 1.50 s …" in shown(pilot), "the step in the details")


async def test_s_asks_where_somebody_in_use_would_stop() -> None:
    link = link_of()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app, "qwen2.5-14b")
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        await until(pilot, lambda: "llama-3.3-70b stops. It has" in shown(pilot), "who stops")
        await pilot.press("escape")
        assert link.requests() == []


async def test_z_sleeps_and_asks_where_requests_run() -> None:
    link = link_of()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app, AWAKE)
        await pilot.press("z")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        await pilot.press("y")
        await until(pilot, lambda: link.requests() == [("sleep", AWAKE, None)], "the request")
        server = named(link, AWAKE)
        assert isinstance(server.metrics, Metrics)
        link.say(ServerUpdate(replace(server, metrics=replace(server.metrics, running=0))))
        await until(pilot, lambda: "0+0" in row(pilot, AWAKE), "no requests")
        await pilot.press("z")
        await until(pilot, lambda: len(link.requests()) == 2, "the second request")
        app.selected = "llama-3.3-70b"
        await until(pilot, lambda: "z Sleep" not in shown(pilot).splitlines()[-1], "no such key")


async def test_a_read_only_screen_neither_switches_nor_sleeps() -> None:
    link = link_of()
    app = GpuboxApp(ReadOnlyKeeper(link), clock=lambda: NOW)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await opened(pilot, app, ASLEEP)
        await pilot.press("s")
        await until(pilot, lambda: "it does not switch" in shown(pilot), "the refusal")
        assert link.requests() == []


async def test_a_switch_is_one_toast_and_its_failure_another() -> None:
    link = link_of()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        link.say(SwitchUpdate(Switch("1", ASLEEP, NOW, (SwitchStep("sleep", AWAKE, NOW),))))
        await until(pilot, lambda: bool(app.snapshot and app.snapshot.switches), "the switch")
        link.say(EventUpdate(Event(NOW, AWAKE, "asleep", "asleep at level 1")))
        link.say(EventUpdate(Event(NOW, ASLEEP, "awake", "awake again")))
        link.say(EventUpdate(Event(NOW, ASLEEP, "switched", "switched in 0.98 s")))
        await until(pilot, lambda: "switched in 0.98 s" in shown(pilot), "the toast")
        assert "asleep at level 1" not in shown(pilot)
        assert len(app._notifications) == 1
        link.say(EventUpdate(Event(NOW, ASLEEP, "switch-failed", "not switched: no room")))
        await until(pilot, lambda: "not switched: no room" in shown(pilot), "the failure")
        await pilot.press("e")
        await until(pilot, lambda: "⇄" in shown(pilot) and "z  qwen2.5-7b" in shown(pilot), "the signs")


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_the_box_says_who_is_awake_and_who_sleeps_on_a_gpu_and_what_that_holds(size: tuple[int, int]) -> None:
    app = GpuboxApp(link_of(), clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: "z sleep holds 52.2 GiB of the host's memory" in shown(pilot), "the host's line")
        await pilot.press("down", "down")
        said = f"slot  ● {AWAKE} awake · z {ASLEEP} asleep, level 1"
        await until(pilot, lambda: said in shown(pilot), "the slot")
        assert f"● {AWAKE}  z" in next(
            line for line in shown(pilot).splitlines() if " 2  █" in line or " 2  H200" in line
        )


async def test_the_sheet_lets_a_profile_sleep_and_start_asleep(store: Store) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        app.action_launch("single")
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen), "the sheet")
        await until(pilot, lambda: "[ ] sleep (z)" in shown(pilot), "the toggle")
        await pilot.press("Z")
        assert "asleep (Z)" not in shown(pilot)
        await pilot.press("z", "Z")
        await until(pilot, lambda: "[x] sleep (z) [x] asleep (Z)" in shown(pilot), "both")
        await until(pilot, lambda: "--enable-sleep-mode" in shown(pilot), "the command line")
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() != [], "the request")
        request = link.requests()[0][1]
        assert request.asleep  # type: ignore[attr-defined]
        assert request.profile["sleep"]  # type: ignore[attr-defined]


async def test_the_sheet_offers_no_sleep_on_the_cpu(store: Store) -> None:
    app = GpuboxApp(FakeLink(), store=store, clock=lambda: NOW)
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        app.action_launch("demo")
        await until(pilot, lambda: "on the CPU" in shown(pilot), "the sheet")
        assert "sleep (" not in shown(pilot)


def test_a_profile_that_shall_not_sleep_loses_what_goes_with_it(store: Store) -> None:
    folder = next(iter(store.entries())).path.parent
    (folder / "sleepy.toml").write_text(SLEEPY)
    launchable = read_launchable(Store([Place("folder", folder)]), "sleepy")
    assert launchable.request(LaunchIntent("sleepy")).profile["ttl"] == 10
    awake = launchable.request(LaunchIntent("sleepy", sleep=False)).profile
    assert awake["sleep"] is False
    assert "ttl" not in awake


@pytest.mark.parametrize(
    ("switch", "said"),
    [
        (Switch("1", "a", NOW, (), "done", took_s=0.004), "switched in 0.00 s"),
        (Switch("1", "a", NOW, (), "failed", "no room"), "not switched: no room"),
        (
            Switch(
                "1",
                "a",
                NOW,
                (
                    SwitchStep("sleep", "b", NOW, 0.3),
                    SwitchStep("sleep", "c", NOW, 0.2),
                    SwitchStep("kv-cache", "a", NOW, 0.11),
                ),
                "done",
                took_s=0.98,
            ),
            "switched in 0.98 s: asleep 0.30, KV cache 0.11",
        ),
    ],
)
def test_a_switch_in_one_line(switch: Switch, said: str) -> None:
    assert switched_line(switch) == said


def test_words() -> None:
    server = simulated(sleeps=True).servers[-1]
    assert state_words(replace(server, sleep=Sleep(2, NOW - 200)), NOW) == "asleep · level 2 · 3 min"
    assert state_words(replace(server, sleep=None), NOW) == "asleep"
    assert state_words(replace(server, state=ServerState.FALLING_ASLEEP), NOW) == "falling asleep"
    assert idle_text(Idle(600, NOW), NOW + 601) == "sleeps in 0:00 / 10:00"
    assert held_text([replace(server, host_bytes=0)]) == ""
    assert held_text([replace(server, host_bytes=2 * GIB, state=ServerState.STOPPED)]) == ""
