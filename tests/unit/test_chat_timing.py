"""How long an answer took and how fast it was written, told honestly: over real sockets, and for made-up clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from backends.chat import ChatSession
from backends.chat_answer import Answer, Answering
from tests.unit.chat_engine import FakeEngine, Request, Wire, ask, piece, says, usage


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


async def test_timings_leave_out_the_role_piece_and_count_the_tokens_after_the_first(engine: FakeEngine) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece("", role="assistant"))
        await asyncio.sleep(0.3)
        await wire.event(piece("four tokens at once"))
        await asyncio.sleep(0.4)
        await wire.event(piece(" and the rest"))
        await wire.event(piece("", finish="stop"))
        await wire.event(usage(3, 9))
        await wire.done()

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        _, answer = await ask(session, "hi")
    # A loaded machine makes all of it longer, nothing shorter; five of the nine tokens came with the first chunk.
    assert answer.ttft_s is not None
    assert answer.ttft_s >= 0.29
    assert answer.duration_s >= answer.ttft_s + 0.39
    assert answer.tokens_per_s is not None
    assert 0 < answer.tokens_per_s <= 4 / 0.39
    assert not answer.is_overall_rate


async def test_an_answer_in_one_burst_has_no_decode_rate(engine: FakeEngine) -> None:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await asyncio.sleep(0.2)
        for number in range(34):
            await wire.event(piece(f"word{number} "))
        await wire.event(piece("", finish="stop"))
        await wire.event(usage(7, 34))
        await wire.done()

    engine.script = script
    async with ChatSession(engine.connection()) as session:
        _, answer = await ask(session, "hi")
    assert answer.tokens_per_s is not None
    assert answer.tokens_per_s <= 34 / 0.2, "9,100 tok/s would be nonsense: nobody saw it write that fast"
    assert answer.is_overall_rate
    assert answer.tokens_per_s == pytest.approx(34 / answer.duration_s)


async def test_an_answer_in_one_chunk_is_told_over_all(engine: FakeEngine) -> None:
    engine.script = says("all of it", tokens=12)
    async with ChatSession(engine.connection()) as session:
        _, answer = await ask(session, "hi")
    assert answer.is_overall_rate
    assert answer.tokens_per_s == pytest.approx(12 / answer.duration_s)


def heard(clock: list[float], monkeypatch: pytest.MonkeyPatch, *chunks: tuple[float, str, int | None]) -> Answer:
    """Let an answer be written by a made-up clock: each chunk with its time, its text, and the engine's count."""
    monkeypatch.setattr("backends.chat_answer.time.perf_counter", lambda: clock[0])
    answering = Answering()
    for at, text, counted in chunks:
        clock[0] = at
        told = usage(5, counted) if counted is not None else {}
        answering.take((piece(text) if text else {"choices": []}) | {"usage": told.get("usage")})
    return answering.answer()


def test_the_first_chunks_tokens_are_left_out_by_the_engines_count(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = heard([0.0], monkeypatch, (1.0, "ten tokens", 10), (1.5, "x", 11), (3.0, "y", 30), (3.0, "", 30))
    assert (answer.tokens_per_s, answer.is_overall_rate) == (20 / 2.0, False)
    assert (answer.ttft_s, answer.completion_tokens) == (1.0, 30)


def test_without_a_count_for_each_chunk_the_first_has_its_part_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = heard([0.0], monkeypatch, (1.0, "a" * 30, None), (2.0, "b" * 10, None), (2.0, "", 40))
    assert (answer.tokens_per_s, answer.is_overall_rate) == (10.0, False)


def test_tokens_that_all_came_with_the_first_chunk_have_no_decode_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = heard([0.0], monkeypatch, (1.0, "all", 8), (2.0, " ", 8), (2.0, "", 8))
    assert (answer.tokens_per_s, answer.is_overall_rate) == (8 / 2.0, True)


def test_nothing_that_came_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = heard([0.0], monkeypatch, (1.0, "", 0))
    assert (answer.tokens_per_s, answer.is_overall_rate, answer.ttft_s) == (None, False, None)
