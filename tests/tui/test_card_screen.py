"""The crash card by its keys: what it shows, what each remedy changes, what is written and asked for."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from backends.diagnosis.card import diagnose
from backends.snapshots import Server, ServerState, StartRequest
from profiles.store import Store
from tests.tui.link import NOW, FakeLink, shown, until
from tui.app import GpuboxApp
from tui.screens.card import CardScreen

LOGS = Path(__file__).parent.parent / "data" / "logs"
CONTENT = {"name": "single", "model": "Qwen/Qwen2.5-7B", "port": 8123, "args": {"max_model_len": 2048}}


class Link(FakeLink):
    content: dict[str, Any] = CONTENT

    async def profile(self, name: str) -> dict[str, Any]:
        return self.content


def link_of(log: str, content: dict[str, Any] = CONTENT) -> Link:
    """A box with one server that was started with a profile's content, and failed as a log tells."""
    link = Link()
    link.content = content
    some = next(server for server in link.state.servers if server.state is ServerState.FAILED)
    card = diagnose(LOGS / f"{log}.log", profile=content)
    server = replace(some, name="fallen", profile="single", cause=card.summary, card=card, gpus=some.gpus[:1])
    link.state = replace(link.state, servers=(server,))
    return link


async def opened(pilot: Pilot[None]) -> Server:
    app = pilot.app
    assert isinstance(app, GpuboxApp)
    await pilot.press("2")
    await until(pilot, lambda: "f Fix" in shown(pilot), "the server")
    await pilot.press("f")
    await until(pilot, lambda: isinstance(app.screen, CardScreen), "the card")
    return app.servers[0]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_card_tells_cause_evidence_remedies_and_change(size: tuple[int, int], store: Store) -> None:
    app = GpuboxApp(link_of("h200-0.26-kv-cache-too-small"), store=store, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "+max_model_len = 6496" in shown(pilot), "the change")
        screen = shown(pilot)
        for text in (
            "fallen: kv-cache-too-small",
            "max_model_len 32768 needs 1.75 GiB of KV cache",
            "line 64",
            "kv_cache_utils.py:778",
            "1. Lower max_model_len to 6,496",
            "-max_model_len = 2048",
        ):
            assert text in screen


async def test_numbers_and_arrows_choose_and_the_change_follows(store: Store) -> None:
    link = link_of("h200-0.26-kv-cache-too-small")
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("2")
        await until(pilot, lambda: "+gpu_memory_utilization" in shown(pilot), "the second")
        await pilot.press("down")
        await until(pilot, lambda: '+kv_cache_dtype = "fp8"' in shown(pilot), "the third")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, CardScreen), "the card to go")
        assert link.requests() == []
        assert "max_model_len = 2048" in store.load("single").text


async def test_enter_writes_the_change_and_starts_again(store: Store) -> None:
    link = link_of("h200-0.26-kv-cache-too-small")
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() != [], "the restart")
        assert link.requests() == [("restart", "fallen")]
        assert tomllib.loads(store.load("single").text)["args"] == {"max_model_len": 6496}


async def test_another_port_is_a_new_start(store: Store) -> None:
    link = link_of("cpu-0.32-port-in-use")
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() != [], "the start")
        request = link.requests()[0][1]
        assert isinstance(request, StartRequest)
        assert request.name == "fallen"
        assert request.profile["port"] == "auto"
        assert request.port is None
        assert request.gpus == link.state.servers[0].gpus


async def test_what_is_for_a_person_to_do_is_not_applied(store: Store) -> None:
    link = link_of("cpu-0.32-weights-damaged")
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "it is for you to do" in shown(pilot), "why not")
        assert "Apply and start" not in shown(pilot)
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, CardScreen)
        assert link.requests() == []


async def test_the_details_tell_of_the_card(store: Store) -> None:
    app = GpuboxApp(link_of("h200-0.26-kv-cache-too-small"), store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "→ Lower max_model_len to 6,496" in shown(pilot), "the remedy")
        assert "line 64" in shown(pilot)


async def test_a_server_without_a_card_has_nothing_to_fix(store: Store) -> None:
    app = GpuboxApp(FakeLink(), store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "x Stop" in shown(pilot), "the servers")
        assert "f Fix" not in shown(pilot)
        await pilot.press("f")
        await pilot.pause()
        assert not isinstance(app.screen, CardScreen)
