"""Compare: one question to two servers at once, each on its own engine; one that fails does not stop the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.snapshots import ModelKind, ServerState
from tests.tui.chat_stage import Chat, Gate, a_server, chatting, end, greet, say
from tests.tui.link import shown
from tests.unit.chat_engine import FakeEngine, Request, Wire
from tui.screens.chat import ChatScreen
from tui.screens.chooser import ChooserScreen
from tui.screens.compare import CompareScreen
from tui.widgets.chat_exchange import ExchangeView


@pytest.fixture
def second() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        engine.script = greet
        yield engine


def feet(chat: Chat) -> list[str]:
    return [
        chat.app.screen.query_one(side).query(ExchangeView).last().foot.plain
        if chat.app.screen.query_one(side).query(ExchangeView)
        else ""
        for side in ("#left", "#right")
    ]


async def comparing(chat: Chat) -> None:
    await chat.press("escape", "c")
    await chat.until(lambda: isinstance(chat.app.screen, CompareScreen), "the comparison")
    await chat.until(lambda: chat.app.focused is not None, "the field")


async def test_both_stream_at_once_with_their_figures(second: FakeEngine) -> None:
    gate = Gate()

    async def slowly(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, "slowly ")
        await gate.wait()
        await say(wire, "done")
        await end(wire, 9)

    async with chatting(slowly, a_server("a"), a_server("b"), engines={"b": second}) as chat:
        await comparing(chat)
        await chat.ask("who?")
        await chat.until(lambda: "TTFT" in feet(chat)[1], "the second server's answer")
        assert "writing" in feet(chat)[0], "the first one has not ended"
        gate.open()
        await chat.until(lambda: "9 tokens" in feet(chat)[0], "the first server's answer")
        await chat.until(lambda: "TTFT s" in chat.said("#result"), "the figures")
        rows = chat.said("#result").splitlines()
        assert rows[1].split()[0] == "a"
        assert "9" in rows[1].split()
        assert rows[2].split()[0] == "b"
        assert "5" in rows[2].split()
        await chat.press("escape", "r")
        await chat.until(lambda: len(second.requests) == 2, "the question again")
        assert second.requests[-1].body["messages"][-1]["content"] == "who?"
        await chat.until(lambda: all("TTFT" in foot for foot in feet(chat)), "both answers again")
        await chat.until(lambda: "esc Back" in shown(chat.pilot), "the way back")
        await chat.press("escape")
        assert isinstance(chat.app.screen, ChatScreen)


async def test_one_that_fails_does_not_stop_the_other(second: FakeEngine) -> None:
    async def die(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, "Half")
        wire.die()

    async with chatting(die, a_server("a"), a_server("b"), engines={"b": second}) as chat:
        await comparing(chat)
        await chat.ask("x")
        await chat.until(lambda: "✗" in feet(chat)[0], "the failure")
        await chat.until(lambda: "5 tokens" in feet(chat)[1], "the other's answer")


async def test_the_second_server_is_chosen_and_the_first_is_the_selected_one(second: FakeEngine) -> None:
    servers = [a_server("a"), a_server("b"), a_server("c"), a_server("e", kind=ModelKind.EMBEDDING)]
    async with chatting(greet, *servers, engines={"c": second}) as chat:
        await chat.press("escape", "c")
        await chat.until(lambda: isinstance(chat.app.screen, ChooserScreen), "the choice")
        assert "e  ready" not in shown(chat.pilot)
        await chat.press("j", "enter")
        await chat.until(lambda: isinstance(chat.app.screen, CompareScreen), "the comparison")
        await chat.until(lambda: chat.app.screen.query_one("#right").border_title == "c", "the second server")
        await chat.ask("x")
        await chat.until(lambda: len(second.requests) == 1 and len(chat.engine.requests) == 1, "both asked")
        await chat.until(lambda: all("TTFT" in foot for foot in feet(chat)), "both answers")
        await chat.press("escape", "right_square_bracket")
        await chat.until(
            lambda: chat.app.screen.query_one("#left").border_title == "b", "the selected server on the left"
        )
        chat.keeper.tell(*servers[:2], a_server("c", state=ServerState.STOPPED))
        await chat.until(lambda: "press 2 to start it" in shown(chat.pilot), "why it cannot be asked")
        await chat.press("enter", "y", "enter")
        await chat.until(lambda: chat.noticed("c cannot be asked now"), "the refusal")
        assert chat.field.text == "y"


async def test_one_server_alone_is_not_compared() -> None:
    async with chatting(greet) as chat:
        await chat.press("escape", "c")
        assert isinstance(chat.app.screen, ChatScreen)
