"""The keeper's broadcast: states coalesce for a slow listener, events never get lost, mere figures wait a moment."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from backends.snapshots import BoxUpdate, Event, EventUpdate, Server, ServerRemoved, ServerUpdate, Update

FIGURES_S = 1.1
"""Servers' figures wait so long for the box's reading, which is taken each second: one message tells them all."""


class Subscription:
    """What one listener has not read yet: at most one box and one state per server, and every event."""

    def __init__(self) -> None:
        self._states: dict[str, Update] = {}
        self._events: deque[Update] = deque()
        self._told: dict[str, tuple[object, ...]] = {}
        self._anything = asyncio.Event()
        self._news = asyncio.Event()

    def put(self, update: Update) -> None:
        """Keep an update for the listener; a newer state takes the place of an older one."""
        match update:
            case BoxUpdate():
                self._states["box"] = update
            case ServerUpdate(server=server):
                self._states[f"server {server.name}"] = update
            case ServerRemoved(name=name):
                self._states[f"server {name}"] = update
            case _:
                self._events.append(update)
        self._anything.set()
        if not self._is_figures(update):
            self._news.set()

    def _is_figures(self, update: Update) -> bool:
        """Tell whether an update says of a server nothing that cannot wait a second."""
        if isinstance(update, ServerRemoved):
            self._told.pop(update.name, None)
        if not isinstance(update, ServerUpdate):
            return False
        told, self._told[update.server.name] = self._told.get(update.server.name), _news(update.server)
        return told == self._told[update.server.name]

    async def batches(self) -> AsyncIterator[list[Update]]:
        """Yield what is new, waiting where nothing is: states first, so that an event never runs ahead of them."""
        while True:
            await self._anything.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(FIGURES_S):
                    await self._news.wait()
            self._anything.clear()
            self._news.clear()
            batch = [*self._states.values(), *self._events]
            self._states.clear()
            self._events.clear()
            yield batch


def _news(server: Server) -> tuple[object, ...]:
    stage = server.stage.name if server.stage is not None else None
    return server.state, stage, server.cause, server.card, server.launched_at, server.pid, server.attempt


class Hub:
    """Sends updates to all subscriptions, and remembers the newest events."""

    def __init__(self, remember: int = 500) -> None:
        self._subscriptions: set[Subscription] = set()
        self._history: deque[Event] = deque(maxlen=remember)

    @property
    def listeners(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    @property
    def history(self) -> tuple[Event, ...]:
        """The newest events, oldest first."""
        return tuple(self._history)

    def publish(self, update: Update) -> None:
        """Give an update to every listener; never waits."""
        if isinstance(update, EventUpdate):
            self._history.append(update.event)
        for subscription in self._subscriptions:
            subscription.put(update)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Listen for as long as the context lasts."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
