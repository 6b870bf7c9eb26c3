"""The way from the keeper's stream to the app: nothing but old states is dropped, and a loss is survived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from textual.message import Message

from backends.errors import KeeperError
from backends.snapshots import (
    BoxUpdate,
    Event,
    EventUpdate,
    ServerRemoved,
    ServerUpdate,
    SnapshotUpdate,
    Update,
)
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import GpuboxApp
from tui.bridge import applied, follow
from tui.messages import Happened, KeeperLost, SnapshotChanged


def test_updates_are_applied_to_new_values() -> None:
    before = simulated()
    servers = before.servers
    newer = replace(servers[1], port=9999)
    after = applied(before, ServerUpdate(newer))
    assert after is not None
    assert after.servers == (servers[0], newer, *servers[2:])
    assert before.servers == servers
    added = applied(after, ServerUpdate(replace(newer, name="new")))
    assert added is not None
    assert [server.name for server in added.servers][-1] == "new"
    removed = applied(added, ServerRemoved(servers[0].name))
    assert removed is not None
    assert servers[0].name not in [server.name for server in removed.servers]
    box = replace(before.box, at=NOW + 5)
    boxed = applied(before, BoxUpdate(box))
    assert boxed is not None
    assert boxed.box is box
    assert applied(None, BoxUpdate(box)) is None
    assert applied(before, ServerRemoved("nobody")) == before


def test_a_newer_state_replaces_a_waiting_one_and_an_event_replaces_nothing() -> None:
    state, event = SnapshotChanged(simulated()), Happened(Event(NOW, "a", "ready", "ready"))
    assert state.can_replace(SnapshotChanged(simulated()))
    assert not state.can_replace(event)
    assert not event.can_replace(event)
    assert not event.can_replace(state)


async def test_a_thousand_events_among_states_all_arrive_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    told: list[str] = []

    def note(message: str, **_: object) -> None:
        told.append(message)

    monkeypatch.setattr(app, "notify", note)
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        for number in range(1000):
            link.say(SnapshotUpdate(link.state))
            link.say(EventUpdate(Event(NOW, "a", "ready", str(number))))
        await until(pilot, lambda: len(told) == 1000, "all events")
        assert told == [str(number) for number in range(1000)]


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_a_lost_keeper_is_said_with_the_age_of_what_is_shown_until_it_is_back(size: tuple[int, int]) -> None:
    now = NOW
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: now)
    async with app.run_test(size=size) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "mistral-7b" in shown(pilot), "the servers")
        link.refuse_streams = KeeperError("the keeper does not answer", "see keeper.log")
        link.die(KeeperError("the keeper closed its event stream"))
        await until(pilot, lambda: "keeper lost" in shown(pilot), "the loss")
        now = NOW + 75
        await until(pilot, lambda: "data 1:15 old" in shown(pilot), "the age")
        await until(pilot, lambda: "the keeper does not answer" in shown(pilot), "the newer reason")
        assert "mistral-7b" in shown(pilot)
        await pilot.press("down")
        assert app.selected == "mistral-7b"
        link.refuse_streams = None
        await until(pilot, lambda: "keeper lost" not in shown(pilot), "the keeper")
        assert app.selected == "mistral-7b"


async def test_a_keeper_that_never_was_is_said_too() -> None:
    link = FakeLink()
    link.refuse_streams = KeeperError("the keeper could not be started: it ended with code 1", "see keeper.log")
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "no keeper" in shown(pilot), "the problem")
        assert "could not be started" in shown(pilot)
        for key in ("f1", "f2", "f3", "f4", "f5"):
            await pilot.press(key)
            await pilot.pause()
            assert "no keeper" in shown(pilot)


class Script:
    """A link whose streams do one thing after the other."""

    def __init__(self, *streams: BaseException | tuple[Update, ...]) -> None:
        self.streams = list(streams)
        self.asked_at: list[float] = []

    async def updates(self) -> AsyncIterator[Update]:
        self.asked_at.append(asyncio.get_running_loop().time())
        if not self.streams:
            await asyncio.Event().wait()
        stream = self.streams.pop(0)
        if isinstance(stream, BaseException):
            raise stream
        for update in stream:
            yield update


async def posted_by(link: Script, number: int) -> list[Message]:
    messages: list[Message] = []
    enough = asyncio.Event()

    def post(message: Message) -> None:
        messages.append(message)
        if len(messages) == number:
            enough.set()

    task = asyncio.create_task(follow(link, post, lambda: NOW, first_pause_s=0.02))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        await enough.wait()
    task.cancel()
    return messages


async def test_pauses_grow_until_the_keeper_is_heard_again() -> None:
    state = SnapshotUpdate(simulated())
    link = Script(OSError("no socket"), KeeperError("gone"), KeeperError("gone"), (state,), KeeperError("gone"))
    messages = await posted_by(link, 6)
    retries = [round(one.trouble.retry_at - NOW, 3) for one in messages if isinstance(one, KeeperLost)]
    assert retries == [0.02, 0.04, 0.08, 0.02, 0.04]
    gaps = [later - earlier for earlier, later in zip(link.asked_at, link.asked_at[1:], strict=False)]
    assert gaps[0] >= 0.02
    assert gaps[2] >= 0.08


async def test_a_burst_of_updates_is_posted_a_few_times_and_the_newest_is_the_last() -> None:
    start = simulated()
    states = [replace(start.servers[0], port=number) for number in range(1000)]
    messages: list[Message] = []
    newest = asyncio.Event()

    def post(message: Message) -> None:
        messages.append(message)
        if isinstance(message, SnapshotChanged) and message.snapshot.servers[0].port == 999:
            newest.set()

    class Burst(Script):
        async def updates(self) -> AsyncIterator[Update]:
            yield SnapshotUpdate(start)
            for server in states:
                yield ServerUpdate(server)
            await asyncio.Event().wait()

    task = asyncio.create_task(follow(Burst(), post, lambda: NOW))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        await newest.wait()
    task.cancel()
    assert len(messages) == 1


async def test_updates_before_the_first_snapshot_are_no_state() -> None:
    box = simulated().box
    (lost,) = await posted_by(Script((BoxUpdate(box),)), 1)
    assert isinstance(lost, KeeperLost)
