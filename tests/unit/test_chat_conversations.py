"""Conversations as such, without a screen: asked, stopped, branched, asked again, forgotten, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from backends.chat_conversations import Conversation, Conversations
from backends.chat_settings import Sampling
from backends.errors import NoSuchServerError
from backends.snapshots import Connection, ModelKind
from tests.unit.chat_engine import FakeEngine, Request, Wire, piece, says


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


class Kept(Conversations):
    """Conversations whose jobs are plain tasks."""

    def __init__(self, engine: FakeEngine) -> None:
        async def connection(server: str) -> Connection:
            if server == "gone":
                raise NoSuchServerError("there is no server gone", "gpubox status")
            return engine.connection()

        super().__init__(self._task, connection, lambda: 1.0)
        self.tasks: list[asyncio.Task[None]] = []

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work, name=name))
        return self.tasks[-1]

    async def answered(self, conversation: Conversation, prompt: str) -> None:
        self.ask(conversation, prompt, ModelKind.CHAT)
        await self.tasks[-1]


def told(engine: FakeEngine) -> list[str]:
    return [message["content"] for message in engine.requests[-1].body["messages"]]


async def test_a_branch_leaves_the_conversation_as_it_was(engine: FakeEngine) -> None:
    kept = Kept(engine)
    first = kept.current("demo")
    first.system, first.sampling = "Be brief.", Sampling(seed=3)
    for prompt in ("one", "two", "three"):
        await kept.answered(first, prompt)
    branch = kept.branch(first, 1)
    await kept.answered(branch, "other")
    assert told(engine) == ["Be brief.", "one", "hello", "other"]
    assert engine.requests[-1].body["seed"] == 3
    assert [one.prompt for one in first.exchanges] == ["one", "two", "three"]
    assert kept.current("demo") is branch
    assert kept.all("demo") == (branch, first)
    assert (first.name, branch.name) == ("one", "one (branch)")
    await kept.answered(first, "four")
    assert told(engine) == ["Be brief.", "one", "hello", "two", "hello", "three", "hello", "four"]


async def test_asking_again_keeps_both_answers_and_goes_on_from_the_one_that_is_shown(engine: FakeEngine) -> None:
    kept = Kept(engine)
    talk = kept.current("demo")
    assert kept.ask_again(talk) is None
    engine.script = says("first")
    await kept.answered(talk, "one")
    engine.script = says("second")
    assert kept.ask_again(talk) is not None
    await kept.tasks[-1]
    assert told(engine) == ["one"]
    assert [one.text for one in talk.exchanges] == ["second"]
    assert not kept.turn_over(talk, 1)
    assert kept.turn_over(talk, -1)
    assert not kept.turn_over(talk, -1)
    await kept.answered(talk, "two")
    assert told(engine) == ["one", "first", "two"]


async def test_a_new_one_inherits_how_it_is_asked_and_an_empty_one_is_taken_again(engine: FakeEngine) -> None:
    kept = Kept(engine)
    first = kept.current("demo")
    assert kept.new("demo") is first
    first.sampling = Sampling(temperature=0.0)
    await kept.answered(first, "one")
    second = kept.new("demo")
    assert second is not first
    assert second.sampling == first.sampling
    assert second.name == "New chat"
    kept.show(first)
    assert kept.new("demo") is second
    assert kept.new("other").sampling == Sampling()


async def test_one_that_is_deleted_stops_its_answer(engine: FakeEngine) -> None:
    async def endless(request: Request, wire: Wire) -> None:
        await wire.begin()
        while True:
            await wire.event(piece("more "))
            await asyncio.sleep(0.01)

    engine.script = endless
    kept = Kept(engine)
    first = kept.current("demo")
    exchange = kept.ask(first, "go", ModelKind.CHAT)
    while not exchange.text:
        await asyncio.sleep(0.01)
    kept.delete(first)
    await asyncio.gather(*kept.tasks, return_exceptions=True)
    assert await asyncio.to_thread(engine.gone.wait, 20)
    assert not exchange.is_open
    assert exchange.was_stopped
    assert exchange.answer is not None
    assert exchange.answer.cut
    assert first not in kept.all("demo")


async def test_one_that_is_stopped_before_its_job_has_begun_is_closed(engine: FakeEngine) -> None:
    kept = Kept(engine)
    talk = kept.current("demo")
    exchange = kept.ask(talk, "go", ModelKind.CHAT)
    kept.stop(talk)
    await asyncio.gather(*kept.tasks, return_exceptions=True)
    assert (exchange.is_open, exchange.was_stopped, exchange.answer) == (False, True, None)
    assert engine.requests == []


async def test_a_server_that_is_gone_is_a_problem_of_that_question_alone(engine: FakeEngine) -> None:
    kept = Kept(engine)
    talk = kept.current("gone")
    await kept.answered(talk, "hi")
    problem = talk.exchanges[0].problem
    assert problem is not None
    assert problem.message == "there is no server gone"
    assert not talk.is_answering


async def test_the_context_is_what_the_engine_counted_last(engine: FakeEngine) -> None:
    kept = Kept(engine)
    talk = kept.current("demo")
    assert (talk.context_tokens, talk.written_tokens) == (0, 0)
    engine.script = says("a", tokens=5)
    await kept.answered(talk, "one")
    await kept.answered(talk, "two")
    assert (talk.context_tokens, talk.written_tokens) == (12, 10)
