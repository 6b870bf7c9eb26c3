"""What happens is told: a toast, the bell where it is wanted, and a sheet of events on `e`."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from backends.settings import ScreenSettings, Settings
from backends.snapshots import Event, EventUpdate
from tests.tui.link import NOW, FakeLink, shown, until
from tui.app import GpuboxApp
from tui.screens.events import EventsScreen

EARLIER = (
    Event(NOW - 120, "llama-3.3-70b", "started", "started on GPU 0-1, port 8000"),
    Event(NOW - 59, "llama-3.3-70b", "ready", "ready in 61 s at http://127.0.0.1:8000"),
)
FAILED = Event(NOW - 5, "qwen2.5-14b", "failed", "failed: CUDA out of memory: 1.02 GiB more were asked for")


class Remembering(FakeLink):
    async def history(self) -> tuple[Event, ...]:
        return EARLIER


def lines(pilot: Pilot[None], *parts: str) -> list[str]:
    return [line for line in shown(pilot).splitlines() if all(part in line for part in parts)]


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_the_sheet_shows_what_was_and_what_comes_the_newest_at_the_bottom(size: tuple[int, int]) -> None:
    link = Remembering()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        await pilot.press("e")
        await until(pilot, lambda: bool(lines(pilot, "●", "llama-3.3-70b", "ready in 61 s")), "what was")
        link.say(EventUpdate(FAILED))
        await until(pilot, lambda: bool(lines(pilot, "✗", "qwen2.5-14b", "failed: CUDA out of")), "what came")
        text = shown(pilot)
        assert text.index("▸  llama") < text.index("●  llama") < text.index("✗  qwen")
        assert "3 events" in text
        await until(pilot, lambda: bool(lines(pilot, "more were")), "the newest in full")


async def test_an_event_that_is_heard_and_remembered_is_shown_once() -> None:
    link = Remembering()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        link.say(EventUpdate(EARLIER[1]))
        await until(pilot, lambda: len(app.heard) == 1, "the event")
        await pilot.press("e")
        await until(pilot, lambda: "2 events" in shown(pilot), "two events")


async def test_the_sheet_shows_one_servers_events_and_goes_to_it() -> None:
    link = Remembering()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        app.heard = (FAILED,)
        app.selected = "qwen2.5-14b"
        await pilot.press("e")
        await until(pilot, lambda: "3 events" in shown(pilot), "all")
        await pilot.press("f")
        await until(
            pilot, lambda: "Events of qwen2.5-14b" in shown(pilot) and "1 event" in shown(pilot), "one server's"
        )
        assert not lines(pilot, "ready in 61 s")
        await pilot.press("f")
        await until(pilot, lambda: "3 events" in shown(pilot), "all again")
        await pilot.press("g", "enter")
        await until(pilot, lambda: app.current_mode == "servers", "the servers")
        assert app.selected == "llama-3.3-70b"
        assert not isinstance(app.screen, EventsScreen)


async def test_an_empty_sheet_says_what_to_do() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        await pilot.press("e")
        await until(pilot, lambda: "Nothing has happened yet. Esc, then 2" in shown(pilot), "the advice")
        await pilot.press("escape")
        assert not isinstance(app.screen, EventsScreen)


async def test_e_is_a_letter_while_one_types() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        await pilot.press("ctrl+p", "e")
        assert app.screen.query_one(Input).value == "e"
        assert not isinstance(app.screen, EventsScreen)


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_bell_rings_for_ready_failed_and_lost_where_it_is_wanted(wanted: bool) -> None:
    rung: list[None] = []

    class Ringing(GpuboxApp):
        def bell(self) -> None:
            rung.append(None)

    link = FakeLink()
    app = Ringing(link, clock=lambda: NOW, settings=Settings(ScreenSettings(bell=wanted)))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        for kind in ("started", "ready", "stopped", "failed", "lost"):
            link.say(EventUpdate(Event(NOW, "mistral-7b", kind, kind)))
        await until(pilot, lambda: len(app.heard) == 5, "all events")
    assert len(rung) == (3 if wanted else 0)
