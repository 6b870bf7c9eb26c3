"""The launch sheet's fields: what is typed is judged at once, and what is taken already is passed over."""

from __future__ import annotations

from dataclasses import replace

from textual.widgets import Input

from profiles.store import Store, digest_of
from tests.tui.conftest import PROFILES
from tests.tui.link import NOW, FakeLink, shown, until
from tests.tui.test_launch_sheet import open_sheet, started
from tui.app import GpuboxApp
from tui.screens.launch import SettingSuggester


async def test_a_setting_that_is_no_argument_is_told_and_capitals_are_environment(store: Store) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(100, 32)) as pilot:
        await open_sheet(pilot, "single")
        sets = app.screen.query_one("#sets", Input)
        sets.value = "max_modle_len=4096"
        await until(pilot, lambda: "did you mean max_model_len?" in shown(pilot), "the suggestion")
        sets.value = "max_model_len=4096 NCCL_DEBUG=INFO"
        await until(pilot, lambda: "NCCL_DEBUG=INFO vllm serve" in shown(pilot), "the command")
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() != [], "the request")
        request = started(link)
        assert request.profile["env"] == {"NCCL_DEBUG": "INFO"}
        assert request.profile["args"] == {"max_model_len": 4096}
        assert request.profile_digest == digest_of(PROFILES["single"])


async def test_a_second_server_gets_a_name_and_a_port_of_its_own(store: Store) -> None:
    link = FakeLink()
    one = replace(link.state.servers[0], name="single", profile="single", port=8123)
    link.state = replace(link.state, servers=(one,))
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(100, 32)) as pilot:
        await open_sheet(pilot, "single")
        assert "auto (8123 is single's)" in shown(pilot)
        assert "single-2" in shown(pilot)
        app.screen.query_one("#port", Input).value = "8123"
        await until(pilot, lambda: "port 8123 is taken by single" in shown(pilot), "the refusal")
        app.screen.query_one("#port", Input).value = ""
        app.screen.query_one("#name", Input).value = "single"
        await until(pilot, lambda: "single is there already: ready" in shown(pilot), "the refusal")
        app.screen.query_one("#name", Input).value = ""
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() != [], "the request")
        request = started(link)
        assert (request.name, request.port) == ("single-2", 0)


async def test_names_of_arguments_are_completed() -> None:
    suggester = SettingSuggester("vllm")
    assert await suggester.get_suggestion("seed=1 max_model") == "seed=1 max_model_len="
    assert await suggester.get_suggestion("max_model_len=") is None
    assert await suggester.get_suggestion("zzz") is None
