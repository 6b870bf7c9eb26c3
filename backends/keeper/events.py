"""The keeper's broadcast: states coalesce for a slow listener, events never get lost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from backends.snapshots import BoxUpdate, Event, EventUpdate, ServerRemoved, ServerUpdate, Update


class Subscription:
    """What one listener has not read yet: at most one box and one state per server, and every event."""

    def __init__(self) -> None:
        self._states: dict[str, Update] = {}
        self._events: deque[Update] = deque()
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
        self._news.set()

    async def batches(self) -> AsyncIterator[list[Update]]:
        """Yield what is new, waiting where nothing is: states first, so that an event never runs ahead of them."""
        while True:
            await self._news.wait()
            self._news.clear()
            batch = [*self._states.values(), *self._events]
            self._states.clear()
            self._events.clear()
            yield batch


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
