"""The switcher: what could serve, by number; who gives way is asked for only where requests run; steps as they go."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from textual.pilot import Pilot

from backends.errors import GpuBusyError
from backends.readonly import ReadOnlyKeeper
from backends.records import Launch
from backends.simulated_lives import ASLEEP
from backends.snapshots import Metrics, Server, ServerState, SwitchUpdate
from backends.switches import GivingWay, Sleep, Switch, SwitchChoice, SwitchStep, Way, Yield
from profiles.store import Store
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import GpuboxApp
from tui.screens.confirm import ConfirmScreen
from tui.screens.explain import ExplainScreen
from tui.screens.switcher import SwitcherScreen

AWAKE = "qwen2.5-7b"
GIB = 1 << 30


def quiet(server: Server) -> Server:
    """Return a server on which no request runs."""
    if not isinstance(server.metrics, Metrics):
        return server
    return replace(server, metrics=replace(server.metrics, running=0))


def link_of(*, busy: bool = False) -> FakeLink:
    """Return a link to a box with a server that sleeps beside one that is awake, `busy` or not."""
    state = simulated(sleeps=True)
    link = FakeLink(state if busy else replace(state, servers=tuple(quiet(one) for one in state.servers)))
    yields = (GivingWay(AWAKE, Yield.SLEEP_1, ""),)
    others = [one.name for one in state.servers if one.name not in (AWAKE, ASLEEP)]
    link.choices = (
        *(SwitchChoice(name, Way.AWAKE, size_bytes=14 * GIB) for name in others[:1]),
        SwitchChoice(others[1], Way.START, (), 61.0),
        SwitchChoice(others[2], Way.CANNOT, note="GPU 5 is in use by alice"),
        SwitchChoice(AWAKE, Way.AWAKE, expected_s=0.0, size_bytes=13 * GIB),
        SwitchChoice(ASLEEP, Way.WAKE_1, yields, 0.94, 13 * GIB, "careful: it pins host memory"),
    )
    return link


def app_of(link: FakeLink, store: Store | None = None) -> GpuboxApp:
    return GpuboxApp(link, store=store, clock=lambda: NOW)


async def opened(pilot: Pilot[None], what: str = "~0.9 s") -> None:
    await until(pilot, lambda: pilot.app.snapshot is not None, "the first state")  # type: ignore[attr-defined]
    await pilot.press("S")
    await until(pilot, lambda: isinstance(pilot.app.screen, SwitcherScreen) and what in shown(pilot), "the switcher")


def line(pilot: Pilot[None], text: str) -> str:
    return next(one for one in shown(pilot).splitlines() if text in one)


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_it_lists_what_could_serve_and_begins_on_what_fell_asleep_last(
    size: tuple[int, int], store: Store
) -> None:
    app = app_of(link_of(), store)
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "· profile" in shown(pilot), "the profiles")
        row = line(pilot, "z asleep · ")
        assert f" 5  {ASLEEP}" in row
        assert "13.0 GiB" in row
        assert "now" in line(pilot, f" 4  {AWAKE} ")
        assert "cannot" in line(pilot, "✗ failed")
        await until(pilot, lambda: "wakes from level 1 on GPU 2 · ~0.9 s" in shown(pilot), "the way")
        assert f"{AWAKE} (GPU 2) sleeps, level 1" in shown(pilot)
        assert "careful: it pins host memory" in shown(pilot)
        assert "wrong" not in [word for one in shown(pilot).splitlines() for word in one.split()]


async def test_a_number_switches_at_once_and_its_steps_are_told_as_they_go() -> None:
    link = link_of()
    app = app_of(link)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("5")
        await until(pilot, lambda: link.requests() == [("switch", ASLEEP)], "the request")
        assert link.switch_requests[0].start is None
        assert app.selected == ASLEEP
        sleep = SwitchStep("sleep", AWAKE, NOW - 0.5)
        running = Switch("1", ASLEEP, NOW - 0.5, (sleep,))
        link.say(SwitchUpdate(running))
        await until(pilot, lambda: "▸ sleep" in shown(pilot), "the step")
        await until(pilot, lambda: f"to {ASLEEP} · 0.50 s" in shown(pilot), "the time until now")
        wake = SwitchStep("wake", ASLEEP, NOW - 0.2)
        link.say(SwitchUpdate(replace(running, steps=(replace(sleep, took_s=0.3), wake))))
        await until(pilot, lambda: "▸ wake" in shown(pilot), "the next step")
        assert "0.30 s" in line(pilot, "✓ sleep")
        over = (replace(sleep, took_s=0.3), replace(wake, took_s=0.61))
        link.say(SwitchUpdate(replace(running, steps=over, outcome="done", took_s=0.98)))
        await until(pilot, lambda: f"✓ {ASLEEP} serves after 0.98 s" in shown(pilot), "the end")
        assert app.snapshot is not None
        assert app.snapshot.switches == ()
        await pilot.press("up")
        await until(pilot, lambda: "serves after" not in shown(pilot), "the row under the cursor")


async def test_a_switch_that_failed_says_why() -> None:
    link = link_of()
    app = app_of(link)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() == [("switch", ASLEEP)], "the request")
        link.say(SwitchUpdate(Switch("1", ASLEEP, NOW, (), "restored", "out of memory at wake")))
        said = f"✗ {ASLEEP}: not switched, what served before serves again: out of memory at wake"
        await until(pilot, lambda: said in " ".join(shown(pilot).replace("│", " ").split()), "why")


async def test_requests_that_run_on_who_gives_way_are_asked_for_first() -> None:
    link = link_of(busy=True)
    app = app_of(link)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        await until(pilot, lambda: f"{AWAKE} falls asleep" in shown(pilot), "who gives way")
        assert "running requests" in shown(pilot)
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, SwitcherScreen), "the switcher again")
        assert link.requests() == []
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question again")
        await pilot.press("y")
        await until(pilot, lambda: link.requests() == [("switch", ASLEEP)], "the request")


async def test_what_cannot_serve_says_why_and_who_serves_is_only_selected() -> None:
    link = link_of()
    app = app_of(link)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await opened(pilot)
        number = line(pilot, "✗ failed").split()[1]
        await pilot.press(number)
        await until(pilot, lambda: "GPU 5 is in use by alice" in shown(pilot), "why not")
        await pilot.press(line(pilot, f" {AWAKE} ").split()[1])
        await until(pilot, lambda: not isinstance(app.screen, SwitcherScreen), "the end")
        assert app.selected == AWAKE
        assert link.requests() == []


async def test_a_profile_is_started_and_a_refusal_is_told(store: Store) -> None:
    link = link_of()
    link.refusal = GpuBusyError("no GPU can be had for pair", "gpubox stop llama-3.3-70b")
    app = app_of(link, store)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "· profile" in shown(pilot), "the profiles")
        await pilot.press(line(pilot, " pair ").split()[1])
        await until(pilot, lambda: "no GPU can be had for pair" in shown(pilot), "the refusal")
        start = link.switch_requests[0].start
        assert start is not None
        assert start.profile["model"] == "Qwen/Qwen2.5-14B-Instruct"
        assert app.awaited is None


async def test_a_profile_tells_what_its_starts_took(store: Store) -> None:
    link = link_of()
    past = Launch("1", "x", "pair", "", "vllm", None, "H200", 1, NOW - 500, NOW - 421, NOW - 100, "stopped")
    link.on_record = (past, replace(past, ready_at=None), replace(past, ready_at=NOW - 440))
    app = app_of(link, store)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        pair = re.compile(r" pair .*~70 s")
        await until(pilot, lambda: pair.search(shown(pilot)) is not None, "the time")


async def test_z_puts_to_sleep_who_serves_and_can() -> None:
    link = link_of()
    app = app_of(link)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        assert "z Sleep" not in shown(pilot).splitlines()[-1]
        await pilot.press("up")
        await until(pilot, lambda: "z Sleep" in shown(pilot).splitlines()[-1], "the key")
        await pilot.press("z")
        await until(pilot, lambda: link.requests() == [("sleep", AWAKE, None)], "the request")
        await pilot.press("i")
        await until(pilot, lambda: isinstance(app.screen, ExplainScreen), "what sleep is")


async def test_before_the_keeper_answers_the_states_tell_the_way() -> None:
    state = simulated(sleeps=True)
    asleep = replace(state.servers[-1], sleep=Sleep(2, NOW - 60))
    link = FakeLink(replace(state, servers=(*state.servers[:-1], asleep)))
    app = app_of(link)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, "wakes from level 2")
        assert "asleep · L2 · 1 min" in line(pilot, f" {ASLEEP} ")


async def test_without_anything_it_says_what_to_press() -> None:
    link = FakeLink(replace(simulated(), servers=()))
    app = app_of(link)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, "7 shows the profiles")


async def test_a_read_only_switcher_only_looks(store: Store) -> None:
    link = link_of()
    app = GpuboxApp(ReadOnlyKeeper(link), store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        assert "Switch" not in shown(pilot).splitlines()[-1]
        await pilot.press("5", "enter", "z")
        await pilot.pause()
        assert link.requests() == []


async def test_it_opens_from_the_chat_by_f8_while_typing() -> None:
    app = app_of(link_of())
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        await pilot.press("4", "f8")
        await until(pilot, lambda: isinstance(app.screen, SwitcherScreen), "the switcher")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, SwitcherScreen), "the chat again")
        assert app.snapshot is not None
        assert ServerState.SLEEPING in [one.state for one in app.servers]
