"""The sheet of lines to copy: each key copies one, and only what there is can be copied."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from backends.errors import KeeperError
from backends.handover import launch_line
from backends.snapshots import Foreign
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import GpuboxApp
from tui.screens.use import UseScreen


class WithProfile(FakeLink):
    async def profile(self, name: str) -> dict[str, Any]:
        args = {"tensor_parallel_size": 2, "max_model_len": 8192}
        return {"name": name, "model": "org/model", "args": args, "secrets": {"api_key": "env:THE_KEY"}}


async def opened(pilot: Pilot[None]) -> None:
    await pilot.press("2")
    await until(pilot, lambda: "u Use" in shown(pilot), "the servers")
    await pilot.press("u")
    await until(pilot, lambda: isinstance(pilot.app.screen, UseScreen), "the sheet")


@pytest.mark.parametrize(
    ("key", "begins"),
    [
        ("c", "curl http://127.0.0.1:8000/v1/chat/completions"),
        ("s", "ssh -N -L 8000:127.0.0.1:8000 "),
        ("b", "export OPENAI_BASE_URL=http://127.0.0.1:8000/v1"),
        ("l", "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1"),
    ],
)
async def test_each_key_copies_its_line(key: str, begins: str) -> None:
    app = GpuboxApp(WithProfile(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await opened(pilot)
        await pilot.press(key)
        await until(pilot, lambda: not isinstance(app.screen, UseScreen), "its end")
        assert app.clipboard.startswith(begins)
        assert "\n" not in app.clipboard
        await until(pilot, lambda: "copied: " in shown(pilot), "the toast")


async def test_leaving_copies_nothing() -> None:
    app = GpuboxApp(WithProfile(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        for key in ("escape", "u", "q"):
            await opened(pilot)
            await pilot.press(key)
            await until(pilot, lambda: not isinstance(app.screen, UseScreen), "its end")
        assert app.clipboard == ""
        assert app.is_running


async def test_a_launch_line_that_cannot_be_had_says_why_and_its_key_does_nothing() -> None:
    class Refusing(FakeLink):
        async def profile(self, name: str) -> dict[str, Any]:
            raise KeeperError("the keeper went away")

    app = GpuboxApp(Refusing(), clock=lambda: NOW)
    async with app.run_test(size=(100, 30)) as pilot:
        await opened(pilot)
        assert "no launch line: the keeper went away" in shown(pilot)
        await pilot.press("l")
        await pilot.pause()
        assert isinstance(app.screen, UseScreen)
        assert app.clipboard == ""


async def test_a_server_started_by_hand_has_the_line_of_its_process() -> None:
    link = FakeLink()
    command = "vllm serve org/model --port 8000"
    by_hand = replace(link.state.servers[0], foreign=Foreign(4711, 1, "alice", command))
    link.state = replace(link.state, servers=(by_hand,))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("l")
        await until(pilot, lambda: app.clipboard == command, "the line")


def test_the_launch_line_is_one_command_for_these_gpus_and_this_port() -> None:
    server = simulated().servers[0]
    line = launch_line(server, {"name": "x", "model": "org/my model", "port": 9, "args": {"max_model_len": 2048}})
    words = shlex.split(line)
    assert words[:2] == ["CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=0,1"]
    assert words[2:5] == ["vllm", "serve", "org/my model"]
    assert words[words.index("--port") + 1] == str(server.port)
    assert words[words.index("--max-model-len") + 1] == "2048"


async def test_the_palette_opens_the_same_sheet_for_the_server_that_it_names() -> None:
    app = GpuboxApp(WithProfile(), clock=lambda: NOW)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        await pilot.press("ctrl+p")
        app.screen.query_one(Input).value = "use mistral-7b"
        await until(pilot, lambda: "Use mistral-7b" in shown(pilot), "the command")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, UseScreen) and "Use mistral-7b:" in shown(pilot), "the sheet")
        assert app.clipboard == ""
        await pilot.press("c")
        await until(pilot, lambda: app.clipboard.startswith("curl "), "the line")
