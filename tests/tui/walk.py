"""Walks a screen's keys: goes to a place, presses a key that is offered there, and looks whether anything happened."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from textual import events
from textual.binding import ActiveBinding
from textual.keys import key_to_character
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, TextArea
from textual.worker import Worker, get_current_worker

from backends.orphans import Reaped
from backends.readonly import ReadOnlyKeeper
from backends.simulation import SimulatedKeeper
from backends.snapshots import Event
from backends.switches import Switch
from profiles.store import Store
from tests.tui.link import NOW, simulated, until
from tui.app import GpuboxApp
from tui.bindings import own_bindings
from tui.widgets.log_view import LogView

SIZE = (80, 24)
PRELUDES = ((), ("down",), ("up",), ("end",), ("home",), ("right",))
"""Where a key does nothing (up, on the first row), it is tried again from elsewhere."""

ROWS = 8
"""So many rows down keys are looked for that are offered on some rows only."""

PATIENCE_S = 3.0
"""How long a key that seems to do nothing is waited for: only a failing test pays this."""

LOG_PATIENCE_S = 30.0
"""How long a log's reader, a process of its own, may look for what it shall jump to."""

FORGOTTEN = ("updates", "history", "orphans", "gpu_series", "server_series", "switch_choices")
"""Questions that screens ask by themselves."""


Way = tuple[tuple[Widget | None, tuple[str, ...]], ...]
"""How sheets are reached: for each one what has the focus (None: what had it first), and the keys to press."""


class NotedLink:
    """A simulated keeper under a clock that stands still; what would change something is noted, and not done."""

    def __init__(self, keeper: SimulatedKeeper) -> None:
        self._keeper = keeper
        self.asked: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._keeper, name)
        if name in FORGOTTEN:
            return real

        async def ask(*given: Any, **options: Any) -> Any:
            self.asked.append((name, given, options))
            match name:
                case "stop" | "restart" | "sleep":
                    return self._keeper._server(given[0])
                case "start":
                    return replace(simulated().servers[0], name="begun")
                case "switch":
                    return Switch("1", given[0].name, NOW)
                case "forget":
                    return None
                case "reap":
                    return Reaped(given[0], "SIGKILL", 0)
            return await real(*given, **options)

        return ask


class WalkedApp(GpuboxApp):
    """The app, except that it stays: leaving it is counted."""

    exits = 0
    bells = 0

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.asking: set[Worker[Any]] = set()
        self.asks = asyncio.Event()

    async def push_screen_wait(self, *given: Any, **options: Any) -> Any:
        """Note which worker waits for what its sheet ends with: it does not end by itself."""
        worker = get_current_worker()
        self.asking.add(worker)
        self.asks.set()
        try:
            return await super().push_screen_wait(*given, **options)
        finally:
            self.asking.discard(worker)

    def exit(self, *_: Any, **__: Any) -> None:
        self.exits += 1

    def bell(self) -> None:
        self.bells += 1


class Place:
    """One mode of one app, and the way to what is looked at: keys that open sheets."""

    def __init__(self, app: WalkedApp, pilot: Pilot[None], link: NotedLink, mode: str) -> None:
        self.app, self.pilot, self.link, self.mode = app, pilot, link, mode
        self.selected = app.selected
        self._first: Widget | None = None
        self._way: Way | None = None
        self._stack: tuple[Screen[Any], ...] = ()
        self._standing: set[Worker[Any]] = {one for one in app.workers if one.name == "keeper"}
        self.pressed: set[str] = set()
        self.tries_app = False
        self.has_servers = bool(app.servers)
        self.is_untouched = False

    @property
    def screen(self) -> Screen[Any]:
        return self.app.screen

    def seen(self) -> tuple[object, ...]:
        """All that a user, or whoever is asked, can notice."""
        app = self.app
        fields = [w.value for w in app.screen.query(Input)] + [w.text for w in app.screen.query(TextArea)]
        return (
            tuple(app.screen_stack),
            app.current_mode,
            app.screen.focused,
            app.selected,
            len(self.link.asked),
            app.clipboard,
            len(app._notifications),
            app.exits,
            app.bells,
            app.theme,
            fields,
            [(widget, widget.scroll_offset) for widget in app.screen.query(Widget) if widget.is_scrollable],
            app.screen._compositor.render_strips(),
        )

    async def rest(self) -> None:
        """Let every message be handled that waits, and what follows from it; far quicker than a pilot's pause."""
        for _ in range(3):
            await self.pilot._wait_for_screen()
            await asyncio.sleep(0)
        self.app.screen._on_timer_update()

    async def settle(self) -> None:
        """Let everything come to rest that was begun: messages, and workers that end by themselves."""
        await self.rest()
        while working := self._working():
            self.app.asks.clear()
            asks = asyncio.create_task(self.app.asks.wait())
            tasks = [one._task for one in working if one._task]
            done, _ = await asyncio.wait([asks, *tasks], timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            asks.cancel()
            await self.rest()
            if not done:
                self._standing |= set(working)
        deadline = time.monotonic() + LOG_PATIENCE_S
        while any(_reads(view) for view in self.screen.query(LogView)) and time.monotonic() < deadline:
            await self.pilot.pause(0.01)
            await self.rest()

    def _working(self) -> list[Worker[Any]]:
        resting = self._standing | self.app.asking
        return [one for one in self.app.workers if not one.is_finished and one not in resting]

    async def press(self, *keys: str) -> None:
        """Press keys, one after another as a person does."""
        for key in keys:
            self.app.post_message(events.Key(key, key_to_character(key)))
            await self.rest()

    async def ensure(self, way: Way, focus: Widget | None) -> None:
        """Go where we are unless we are there already; what a key has moved meanwhile may stay moved."""
        app = self.app
        app.exits = app.bells = 0
        stack = tuple(app.screen_stack)
        if app.current_mode != self.mode or stack != self._stack or way != self._way:
            await self.go(way, focus)
        elif focus is not None and app.screen.focused is not focus and focus.is_attached:
            app.screen.set_focus(focus)
            await self.rest()
        app.clear_notifications()
        app.selected = self.selected

    async def go(self, way: Way, focus: Widget | None = None) -> None:
        """Return to the mode as it was, and then by keys to a sheet."""
        app = self.app
        app.exits = app.bells = 0
        if app.current_mode != self.mode:
            app.switch_mode(self.mode)
            await self.rest()
        await self.settle()  # A worker may be about to open a sheet.
        while len(app.screen_stack) > 1:
            await app.pop_screen()
        app.selected = self.selected
        if not way or self._first is None:
            home = focus if not way and focus is not None else self._first
            if home is not None and home.is_attached and home.focusable:
                app.screen.set_focus(home)
        else:
            app.screen.set_focus(self._first)
        await self.settle()
        for stop, keys in way:
            if stop is not None and stop.is_attached and stop.focusable:
                app.screen.set_focus(stop)
                await self.rest()
            await self.press(*keys)
            await self.settle()
        if way and focus is not None and focus.id is not None and app.screen.query(f"#{focus.id}"):
            app.screen.query_one(f"#{focus.id}").focus()
            await self.settle()
        for field in app.screen.query(Input):
            field.cursor_blink = False
        for area in app.screen.query(TextArea):
            area.cursor_blink = False
        app.clear_notifications()
        await self.rest()
        self._way, self._stack = way, tuple(app.screen_stack)

    def offered(self) -> dict[str, ActiveBinding]:
        """The keys of ours that are offered now; those of the app itself are looked at on the first screen only.

        A key without a description (j, k) is shown nowhere: where there are no rows it may do nothing.
        """
        return {
            key: active
            for key, active in self.screen.active_bindings.items()
            if active.enabled
            and active.binding in own_bindings(type(active.node))
            and (active.node is not self.app or self.tries_app)
            and (active.binding.description or self.has_servers)
        }

    async def try_key(self, key: str, name: str, way: Way, focus: Widget | None, there: tuple[str, ...]) -> str | None:
        """Press a key that is offered `there`, else from other positions; returns the sheet it opened, '' without one.

        None says that it did nothing, wherever it was pressed.
        """
        await self.ensure(way, focus)
        is_first = True
        for prelude in (there, *PRELUDES):
            if not is_first or key not in self.offered():
                await self.go(way, focus)
                await self.press(*prelude)
            is_first = False
            now = self.offered().get(key)
            if now is not None and _named(now) == name:
                self.pressed.add(name)
                if await self._changes(key):
                    return self._sheet()
        if name not in self.pressed:
            return ""
        for prelude in (there, *PRELUDES):
            await self.go(way, focus)
            await self.press(*prelude)
            await self.settle()
            now = self.offered().get(key)
            if now is None or _named(now) != name:
                continue
            before, deadline = self.seen(), time.monotonic() + PATIENCE_S
            await self.press(key)
            while self.seen() == before and time.monotonic() < deadline:
                await self.pilot.pause(0.05)
            if self.seen() != before:
                return self._sheet()
        return None

    def _sheet(self) -> str:
        """The name of the sheet that is open now and was not before."""
        is_new = self.app.current_mode == self.mode and len(self.app.screen_stack) > len(self._stack)
        return type(self.app.screen).__name__ if is_new else ""

    async def _changes(self, key: str) -> bool:
        before = self.seen()
        await self.press(key)
        if self.seen() == before:
            await self.settle()
        return self.seen() != before


@contextlib.asynccontextmanager
async def opened(state: str, mode: str, store: Store, folder: Path) -> AsyncIterator[Place]:
    """Open the app in a state (`servers`, `failed`, `none`, `readonly`) on a mode's screen."""
    spec = "1xH200" if state == "none" else "8xH200"
    link = NotedLink(SimulatedKeeper(spec, clock=lambda: NOW, folder=folder, tick_s=3600.0))
    watched: Any = ReadOnlyKeeper(link) if state == "readonly" else link
    app = WalkedApp(watched, store=store, clock=lambda: NOW)
    app.animation_level = "none"
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        if state == "failed":
            app.selected = "qwen2.5-14b"
        if state != "none":
            app.heard = tuple(
                Event(NOW - 60 + n, name, kind, text)
                for n, (name, kind, text) in enumerate(
                    (("mistral-7b", "started", "started on GPU 3"), ("qwen2.5-7b", "ready", "ready in 61 s"))
                )
            )
        app.switch_mode(mode)
        place = Place(app, pilot, link, mode)
        await place.go(())
        place._first = app.screen.focused
        place.tries_app = mode == "box" and state == "servers"
        yield place


async def walk(place: Place, seen_sheets: set[str], state: str) -> list[str]:
    """Press every key that is offered on a screen and on the sheets it leads to; returns those that did nothing."""
    idle: list[str] = []
    ways: deque[Way] = deque([()])
    while ways:
        way = ways.popleft()
        await place.go(way)
        if len(place.app.screen_stack) != 1 + len(way):
            continue
        title, tried = type(place.screen).__name__, set[tuple[str, str]]()
        stops: list[Widget | None] = [None, *(one for one in place.screen.focus_chain if one.id or not way)]
        for focus in stops:
            for steps in range(1 if way else ROWS):
                there = ("down",) * steps
                if there and place.is_untouched:
                    await place.press("down")
                else:
                    await place.go(way, focus)
                    await place.press(*there)
                if type(place.screen).__name__ != title:
                    break
                new = {(key, _named(active)) for key, active in place.offered().items()} - tried
                if not new and steps and isinstance(place.screen.focused, Input | TextArea | None):
                    break
                place.is_untouched = not new
                for key, name in sorted(new):
                    tried.add((key, name))
                    sheet = await place.try_key(key, name, way, focus, there)
                    if sheet is None:
                        idle.append(f"{state}, {title}{f' on {focus!r}' if focus else ''}: {key} ({name}) does nothing")
                    elif sheet and sheet not in seen_sheets:
                        seen_sheets.add(sheet)
                        ways.append((*way, (None if way else focus, (*there, key))))
    return idle


def _reads(view: LogView) -> bool:
    """Whether a log has not shown yet what it was asked for."""
    return view._jump is not None or (view.path is not None and view._window.ask < view._ask)


def _named(active: ActiveBinding) -> str:
    return active.binding.id or active.binding.action
