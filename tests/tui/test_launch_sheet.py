"""Starting a server by keys: what the sheet shows is what the keeper is asked for."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest
from textual.pilot import Pilot
from textual.widgets import Footer
from textual.worker import WorkerState

from backends.errors import GpuBusyError
from backends.simulation import SimulatedKeeper
from backends.snapshots import BoxUpdate, Grant, ServerState, ServerUpdate, StartRequest
from profiles.store import Store
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import GpuboxApp
from tui.launching import LaunchIntent, read_launchable
from tui.screens.launch import LaunchScreen
from tui.widgets.fit_bar import FitBar
from tui.widgets.launch_lines import why_not


async def open_sheet(pilot: Pilot[None], name: str) -> None:
    await pilot.press("2")
    await until(pilot, lambda: name in shown(pilot), "the profiles")
    await pilot.press("tab", *["down"] * ["demo", "pair", "single", "wrong"].index(name), "enter")
    await until(pilot, lambda: isinstance(pilot.app.screen, LaunchScreen), "the sheet")
    await pilot.pause()


def started(link: FakeLink) -> StartRequest:
    (what, request), *others = link.requests()
    assert what == "start"
    assert others == []
    assert isinstance(request, StartRequest)
    return request


def row(pilot: Pilot[None], index: int) -> str:
    return next(line for line in shown(pilot).splitlines() if f" {index}  H200" in line)


async def test_space_ticks_gpus_and_enter_starts_on_them(store: Store) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_sheet(pilot, "pair")
        assert "needs 2 GPUs" in shown(pilot)
        assert "auto: gpubox takes the 2 freest GPUs" in shown(pilot)
        await pilot.press("space")
        assert "the profile takes 2, 1 ticked" in shown(pilot)
        await pilot.press("down", "space")
        assert "[x]" in row(pilot, 4)
        assert "[x]" in row(pilot, 5)
        assert "[ ]" in row(pilot, 7)
        assert "GPU 4-5" in shown(pilot)
        assert "CUDA_VISIBLE_DEVICES=4,5 vllm serve" in shown(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() != [], "the request")
        request = started(link)
        assert request.gpus == ("4", "5")
        assert request.port is None
        assert request.profile["model"] == "Qwen/Qwen2.5-14B-Instruct"
        assert request.environ["PATH"]


async def test_the_started_server_is_selected_once_the_keeper_tells_of_it(store: Store) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_sheet(pilot, "single")
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() != [], "the request")
        link.show(*link.state.servers)
        await pilot.pause()
        link.say(ServerUpdate(replace(link.state.servers[0], name="single", state=ServerState.QUEUED)))
        await until(pilot, lambda: app.selected == "single", "the selection")
        await until(pilot, lambda: "x Stop" in shown(pilot).splitlines()[-1], "the focus on the servers")


async def test_port_and_settings_reach_the_request_and_the_command(store: Store) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        await open_sheet(pilot, "single")
        await pilot.press("tab", *"9001", "tab", *"max_model_len=4096 enforce_eager=true")
        await until(pilot, lambda: "--max-model-len 4096" in shown(pilot), "the command")
        assert "--port 9001" in shown(pilot)
        assert "--enforce-eager" in shown(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() != [], "the request")
        request = started(link)
        assert request.port == 9001
        assert request.profile["args"] == {"max_model_len": 4096, "enforce_eager": True}
        assert request.gpus == ("auto",)


@pytest.mark.parametrize(
    ("port", "sets", "problem"),
    [
        ("99999", "", "'99999' is not a port"),
        ("x", "", "'x' is not a port"),
        ("", "max_model_len", "is not KEY=VALUE"),
        ("", "a='", "the settings cannot be read"),
        ("", "tensor_parallel_size=0", ""),
    ],
)
async def test_what_cannot_be_read_is_said_and_nothing_is_started(
    store: Store, port: str, sets: str, problem: str
) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await open_sheet(pilot, "single")
        await pilot.press("tab", *port, "tab", *sets)
        await until(pilot, lambda: problem in shown(pilot), "the problem")
        if problem:
            await pilot.press("enter")
            await pilot.pause()
            assert link.requests() == []
            assert isinstance(app.screen, LaunchScreen)


async def test_more_gpus_by_a_setting_are_asked_for(store: Store) -> None:
    app = GpuboxApp(FakeLink(), store=store, clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        await open_sheet(pilot, "single")
        await pilot.press("tab", "tab", *"tensor_parallel_size=4")
        await until(pilot, lambda: "takes the 4 freest GPUs" in shown(pilot), "the need")


async def test_a_gpu_that_is_held_says_by_whom_and_is_not_ticked(store: Store) -> None:
    app = GpuboxApp(FakeLink(), store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await open_sheet(pilot, "single")
        assert "held by llama-3.3-70b" in row(pilot, 0)
        assert "python train.py of alice" in row(pilot, 6)
        await pilot.press("up", "space")
        await until(pilot, lambda: "GPU 3 cannot be taken" in shown(pilot), "the refusal")
        assert "[x]" not in shown(pilot)


async def test_a_and_c_choose_auto_and_the_cpu(store: Store) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_sheet(pilot, "single")
        await pilot.press("space")
        assert "[x]" in shown(pilot)
        await pilot.press("c")
        assert "[x]" not in shown(pilot)
        assert "on the CPU" in shown(pilot)
        await pilot.press("a")
        assert "auto: gpubox takes the freest GPU" in shown(pilot)
        await pilot.press("c", "enter")
        await until(pilot, lambda: link.requests() != [], "the request")
        assert started(link).gpus == ("cpu",)


async def test_escape_starts_nothing(store: Store) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_sheet(pilot, "demo")
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(app.screen, LaunchScreen)
        assert link.requests() == []


async def test_without_gpus_the_sheet_offers_the_cpu(store: Store) -> None:
    link = FakeLink(simulated("0"))
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "single" in shown(pilot), "the profiles")
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: "on the CPU: this box has no GPU" in shown(pilot), "the sheet")
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() != [], "the request")
        assert started(link).gpus == ("cpu",)


async def test_s_has_a_profile_serve_as_it_says_and_a_refusal_is_a_toast(store: Store) -> None:
    link = FakeLink()
    link.refusal = GpuBusyError("GPU 0 is held by llama-3.3-70b", "gpubox stop llama-3.3-70b")
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "pair" in shown(pilot), "the profiles")
        await pilot.press("tab", "down", "s")
        await until(pilot, lambda: "GPU 0 is held by llama-3.3-70b" in shown(pilot), "the refusal")
        (request,) = link.switch_requests
        assert request.name == "pair"
        assert request.start is not None
        assert request.start.gpus is None
        await pilot.press("down", "down", "s")
        await until(pilot, lambda: "did you mean engine?" in shown(pilot), "the broken profile's problem")


async def test_a_launch_from_the_command_line_begins_by_itself(store: Store) -> None:
    link = FakeLink()
    intent = LaunchIntent("single", gpus=("6", "7"), port=8005, sets=("max_model_len=1024",), envs=("A=b",), name="x")
    app = GpuboxApp(link, store=store, launch=intent, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: link.requests() != [], "the request")
        assert app.current_mode == "servers"
        request = started(link)
        assert (request.gpus, request.port, request.name) == (("6", "7"), 8005, "x")
        assert request.profile["args"] == {"max_model_len": 1024}
        assert request.profile["env"] == {"A": "b"}
        link.show(*link.state.servers)
        await pilot.pause()
        assert len(link.requests()) == 1


async def test_a_launch_of_an_unknown_profile_is_a_toast(store: Store) -> None:
    app = GpuboxApp(FakeLink(), store=store, launch=LaunchIntent("singel"), clock=lambda: NOW)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(pilot, lambda: "did you mean single?" in shown(pilot), "the problem")


async def test_a_simulated_server_starts_gets_ready_and_stops(store: Store) -> None:
    now = NOW
    keeper = SimulatedKeeper(clock=lambda: now, tick_s=0.02)
    app = GpuboxApp(keeper, store=store, clock=lambda: now)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await open_sheet(pilot, "single")
        await pilot.press("down", "space", "enter")
        await until(pilot, lambda: app.selected == "single", "the server")
        await until(pilot, lambda: "◐ config" in shown(pilot), "its first stage")
        now = NOW + 20
        await until(pilot, lambda: "◐ weights" in shown(pilot), "its weights")
        now = NOW + 62
        await until(pilot, lambda: "single ready" in shown(pilot).splitlines()[0], "its readiness")
        await until(pilot, lambda: "ready in 61 s" in shown(pilot), "the toast")
        await pilot.press("X")
        await pilot.press("y")
        now = NOW + 70
        await until(pilot, lambda: "single stopped" in shown(pilot).splitlines()[0], "its end")


def test_a_gpu_of_servers_that_share_can_be_had_by_one_that_shares() -> None:
    free = next(gpu for gpu in simulated().box.gpus if gpu.holder is None)
    shared = replace(free, grants=(Grant("a", "me", 1 << 30), Grant("b", "you", 1 << 30, ours=False)))
    assert why_not(free) is None
    assert why_not(shared) == "held by a, b of you"
    assert why_not(shared, share=True) is None
    assert why_not(replace(shared, grants=(Grant("a", "me"),)), share=True) == "held by a"


async def test_a_gpu_that_somebody_takes_meanwhile_is_ticked_no_more(store: Store) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_sheet(pilot, "single")
        await pilot.press("space")
        assert "[x]" in row(pilot, 4)
        box = link.state.box
        taken = tuple(
            replace(one, grants=(Grant("a", "you", ours=False),)) if one.index == 4 else one for one in box.gpus
        )
        link.say(BoxUpdate(replace(box, at=box.at + 1, gpus=taken)))
        await until(pilot, lambda: "held by a of you" in row(pilot, 4), "its new holder")
        assert "auto: gpubox takes the freest GPU" in shown(pilot)


async def test_a_key_that_is_pressed_twice_opens_one_sheet(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    read = read_launchable

    def slow(*given: Store | str) -> object:
        gate.wait(30)
        return read(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("tui.actions.read_launchable", slow)
    app = GpuboxApp(FakeLink(), store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "demo" in shown(pilot), "the profiles")
        await pilot.press("tab", "enter", "enter")
        gate.set()
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen), "the sheet")
        await until(pilot, lambda: all(one.is_finished for one in app.workers if one.group == "requests"), "both")
        assert len([one for one in app.screen_stack if isinstance(one, LaunchScreen)]) == 1


async def test_a_sheet_that_is_left_while_it_reckons_harms_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def slow(*given: object) -> str:
        gate.wait(30)
        return "reckoned too late"

    async def last_part_goes(footer: Footer) -> None:
        """Hold the sheet back, half gone, until it is reckoned."""
        sheet = footer.screen
        deadline = time.monotonic() + 30
        while sheet.query(FitBar) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        fits = [one for one in app.workers if one.group == "fit"]
        gate.set()
        while not all(one.is_finished for one in fits) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        ended.append([one.state for one in fits])

    ended: list[list[WorkerState]] = []
    monkeypatch.setattr("tui.screens.launch.fit_of", slow)
    monkeypatch.setattr(Footer, "on_unmount", last_part_goes, raising=False)
    app = GpuboxApp(FakeLink(), store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_sheet(pilot, "single")
        await pilot.press("escape")
        await until(pilot, lambda: ended != [], "its end")
        assert ended == [[WorkerState.SUCCESS]]
        assert app.is_running
