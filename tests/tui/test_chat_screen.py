"""The chat panel by its keys, against a real HTTP server that streams, breaks off and refuses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from textual import events

from backends.snapshots import ModelKind, ServerState
from backends.starts import Stage
from tests.tui.chat_stage import NOW, Gate, a_server, asked, chatting, end, greet, on_and_on, say
from tests.tui.link import shown
from tests.unit.chat_engine import Request, Wire, usage


async def test_an_answer_streams_with_its_figures_and_the_next_question_knows_it() -> None:
    async with chatting(greet) as chat:
        assert chat.app.focused is chat.field
        await chat.ask("hi")
        await chat.until(lambda: "TTFT" in chat.foot, "the timings")
        assert chat.answer == "You said **hi**, and I say *hello*."
        assert chat.field.text == ""
        for part in ("TTFT 0.", "tok/s", "5 tokens (7 in the prompt)"):
            assert part in chat.foot
        assert "context 12 of" in chat.said("#head")
        await chat.ask("again 1")
        await chat.until(lambda: len(chat.views) == 2 and "TTFT" in chat.foot, "the second answer")
        assert [message["content"] for message in chat.engine.requests[-1].body["messages"]] == [
            "hi",
            "You said **hi**, and I say *hello*.",
            "again 1",
        ]


async def test_escape_stops_the_engine_and_keeps_what_it_wrote() -> None:
    async with chatting(on_and_on) as chat:
        await chat.ask("tell me")
        await chat.until(lambda: chat.answer.count("on ") > 3, "some text")
        assert "Esc stops it" in chat.foot
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.foot.endswith("stopped"), "the stop")
        assert await asyncio.to_thread(chat.engine.gone.wait, 20), "the engine notices"
        assert chat.answer.startswith("It goes on on on")
        assert chat.app.focused is chat.field
        chat.engine.script = greet
        await chat.ask("go on")
        await chat.until(lambda: "TTFT" in chat.foot and len(chat.views) == 2, "the next answer")
        assert chat.engine.requests[-1].body["messages"][1]["content"].startswith("It goes on")


async def test_escape_before_the_first_token() -> None:
    async def never(request: Request, wire: Wire) -> None:
        await wire.begin()
        await asyncio.sleep(30)

    async with chatting(never) as chat:
        await chat.ask("well?")
        await chat.until(lambda: "waiting for the first token" in chat.foot, "the waiting")
        await chat.until(lambda: bool(chat.engine.requests), "the request")
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.foot == "stopped before it began", "the stop")


async def test_an_engine_that_dies_in_mid_answer_leaves_what_it_wrote_and_a_line() -> None:
    async def die(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, "Half an ", "answer")
        await asyncio.sleep(0.1)
        wire.die()

    async with chatting(die) as chat:
        await chat.ask("so?")
        await chat.until(lambda: "✗" in chat.foot, "the error")
        assert chat.answer == "Half an answer"
        assert "Ctrl+R asks again" in chat.foot
        assert "the engine went away in the middle of its answer" in chat.foot
        assert "TTFT" in chat.foot
        assert "Traceback" not in chat.foot


async def test_refusals_get_one_clear_line_and_the_question_comes_back() -> None:
    async def refuse(request: Request, wire: Wire) -> None:
        told = "This model's maximum context length is 2048 tokens. However, you asked for 9000."
        await wire.reply(400, {"error": {"message": told}})

    async with chatting(refuse) as chat:
        await chat.ask("long")
        await chat.until(lambda: "✗" in chat.foot, "the error")
        assert chat.foot.startswith("✗ this does not fit into the model's context of 2048 tokens · ")
        assert "\n" not in chat.foot
        await chat.pilot.press("up")
        assert chat.field.text == "long"


async def test_answers_go_on_while_another_screen_is_shown() -> None:
    proceed = Gate()

    async def slowly(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, "one ")
        await proceed.wait()
        await say(wire, "two ", "three")
        await end(wire, 3)

    async with chatting(slowly) as chat:
        await chat.ask("count")
        await chat.until(lambda: chat.answer.strip() == "one", "the beginning")
        await chat.pilot.press("f1")
        assert chat.app.current_mode == "box"
        proceed.open()
        await chat.pilot.pause(0.2)
        await chat.pilot.press("4")
        await chat.until(lambda: "TTFT" in chat.foot, "the end")
        assert chat.answer == "one two three"


async def test_each_server_has_its_own_conversation_and_draft() -> None:
    async with chatting(greet, a_server("a"), a_server("b")) as chat:
        await chat.ask("to a")
        await chat.until(lambda: "TTFT" in chat.foot, "a's answer")
        await chat.pilot.press(*"half", "escape", "right_square_bracket")
        await chat.until(lambda: chat.app.selected == "b" and not chat.views, "b's empty conversation")
        assert chat.field.text == ""
        assert chat.app.screen.query_one("#empty").display
        await chat.pilot.press("enter")
        await chat.ask("to b")
        await chat.until(lambda: "TTFT" in chat.foot, "b's answer")
        assert len(chat.engine.requests[-1].body["messages"]) == 1
        await chat.pilot.press("escape", "left_square_bracket")
        await chat.until(lambda: "to a" in chat.answer, "a's conversation")
        assert chat.field.text == "half"


async def test_no_key_does_something_else_than_it_says() -> None:
    async with chatting(greet, a_server("a"), a_server("b")) as chat:
        await chat.pilot.press(*"1q[]?i2")
        assert chat.field.text == "1q[]?i2"
        assert (chat.app.current_mode, chat.app.selected) == ("chat", "a")
        assert "Esc leaves" in str(chat.field.placeholder)
        await chat.pilot.press("escape")
        assert chat.app.focused is not chat.field
        assert "Enter to write" in str(chat.field.placeholder)
        await chat.pilot.press("3")
        assert chat.app.current_mode == "logs"
        await chat.pilot.press("4")
        await chat.until(lambda: chat.app.focused is chat.field, "the field")
        await chat.pilot.press("escape", "question_mark", "escape", "1", "4")
        assert chat.app.focused is chat.field
        await chat.pilot.press("escape", "question_mark", "escape")
        assert chat.app.focused is not chat.field
        await chat.pilot.press("enter")
        assert chat.app.focused is chat.field
        await chat.pilot.press("escape", "a", "x")
        assert chat.field.text == "1q[]?i2x"
        await chat.pilot.press("escape", "slash")
        assert chat.app.focused is chat.field
        assert chat.field.text == "1q[]?i2x"


async def test_a_server_that_is_not_ready_says_so_until_it_is() -> None:
    starting = replace(a_server(state=ServerState.STARTING), stage=Stage("weights", NOW, 0.5))
    async with chatting(greet, starting) as chat:
        await chat.until(lambda: "weights 50%" in chat.said("#state"), "the stage")
        assert chat.field.disabled
        await chat.pilot.press("a", "enter")
        assert chat.app.focused is not chat.field
        chat.keeper.tell(a_server())
        await chat.until(lambda: not chat.field.disabled, "the field")
        assert not chat.app.screen.query_one("#state").has_class("-shown")
        await chat.pilot.press("a", *"abc")
        # What is being written stays a text, also when the server goes while one writes.
        chat.keeper.tell(replace(a_server(state=ServerState.FAILED), cause="CUDA out of memory"))
        await chat.until(lambda: "CUDA out of memory" in chat.said("#state"), "the cause")
        await chat.pilot.press("q", "1", "enter")
        assert chat.field.text == "abcq1"
        assert chat.app.current_mode == "chat"
        assert not chat.engine.requests
        await chat.pilot.press("escape")
        assert chat.field.disabled


async def test_a_base_model_continues_the_text() -> None:
    async def go_on(request: Request, wire: Wire) -> None:
        await wire.begin()
        for text, finish in ((" upon a time", None), (" *there* was", "length")):
            choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
            await wire.event({"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})
        await wire.event(usage(2, 9))
        await wire.done()

    async with chatting(go_on, a_server(kind=ModelKind.COMPLETION)) as chat:
        assert "completions only: your text is continued as it is" in chat.said("#head")
        await chat.ask("Once")
        await chat.until(lambda: "TTFT" in chat.foot, "the continuation")
        await chat.until(lambda: "Once upon a time *there* was" in shown(chat.pilot), "the text as it is")
        assert "ended by the token limit" in chat.foot
        assert chat.engine.requests[-1].path == "/v1/completions"
        assert chat.engine.requests[-1].body["prompt"] == "Once"


async def test_an_embedding_model_shows_its_vector() -> None:
    async def embed(request: Request, wire: Wire) -> None:
        data = [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8, 0.0]}]
        counts = {"prompt_tokens": 4, "total_tokens": 4}
        await wire.reply(200, {"object": "list", "data": data, "model": "m", "usage": counts})

    async with chatting(embed, a_server(kind=ModelKind.EMBEDDING)) as chat:
        assert "embeddings only" in chat.said("#head")
        await chat.ask("some text")
        await chat.until(lambda: "dimensions" in chat.foot, "the vector")
        assert "3 dimensions · norm 1.0000" in chat.foot
        assert "0.6000, 0.8000, 0.0000" in chat.foot


async def test_thoughts_are_folded_once_it_writes_and_shown_when_asked_for() -> None:
    proceed = Gate()

    async def think(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, "First I ", "wonder.", reasoning=True)
        await proceed.wait()
        await say(wire, "Yes.")
        await end(wire, 4)

    async with chatting(think) as chat:

        def thoughts() -> str:
            return chat.views[-1].thoughts if chat.views else ""

        await chat.ask("really?")
        await chat.until(lambda: thoughts() == "First I wonder.", "the thoughts")
        proceed.open()
        await chat.until(lambda: "TTFT" in chat.foot, "the answer")
        assert "it thought in 3 words" in thoughts()
        assert chat.answer == "Yes."
        await chat.pilot.press("ctrl+t")
        assert thoughts() == "First I wonder."


async def test_several_lines_are_written_pasted_and_brought_back() -> None:
    async with chatting(greet) as chat:
        await chat.pilot.press(*"one", "ctrl+j", *"two")
        assert chat.field.text == "one\ntwo"
        chat.app.post_message(events.Paste("\nthree\nfour"))
        await chat.until(lambda: chat.field.text == "one\ntwo\nthree\nfour", "the pasted lines")
        await chat.pilot.press("enter")
        await chat.until(lambda: "TTFT" in chat.foot, "the answer")
        assert chat.engine.requests[-1].body["messages"][-1]["content"] == "one\ntwo\nthree\nfour"
        await chat.ask("five")
        await chat.until(lambda: len(chat.views) == 2 and "TTFT" in chat.foot, "the second answer")
        await chat.pilot.press("up")
        assert chat.field.text == "five"
        await chat.pilot.press("up")
        assert chat.field.text.startswith("one")
        await chat.pilot.press("down", "down")
        assert chat.field.text == ""


async def test_nothing_is_lost_of_what_is_typed_right_after_sending() -> None:
    proceed = Gate()

    async def slowly(request: Request, wire: Wire) -> None:
        await proceed.wait()
        await greet(request, wire)

    async with chatting(slowly) as chat:
        # All at once, as over a slow line.
        for key in ("a", "ctrl+j", "A", "enter", "b", "enter", "c", "enter", "d"):
            pressed = events.Key(key, key if len(key) == 1 else "\r")
            pressed.set_sender(chat.app)
            chat.app.post_message(pressed)
        await chat.until(lambda: chat.field.text == "bcd", "what was typed while the answer is awaited")
        assert len(chat.views) <= 1
        proceed.open()
        await chat.until(lambda: "TTFT" in chat.foot, "the answer")
        assert [asked(request) for request in chat.engine.requests] == ["a\nA"]


async def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    async def attack(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, "a\x1b[2Jb\x07", "\x9b31mc\n", "d")
        await end(wire, 2)

    async with chatting(attack) as chat:
        await chat.ask("go")
        await chat.until(lambda: "TTFT" in chat.foot, "the answer")
        assert chat.answer == "a[2Jb31mc\nd"


@pytest.mark.parametrize("module", ["openai", "httpx"])
def test_opening_the_screen_does_not_import_the_client(module: str) -> None:
    code = f"import sys, tui.screens.chat; sys.exit({module!r} in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(("key", "mode"), [("f1", "box"), ("f6", "runs"), ("f7", "profiles")])
async def test_f_keys_show_modes_while_a_question_is_written(key: str, mode: str) -> None:
    async with chatting(greet) as chat:
        await chat.press(*"half", key)
        await chat.until(lambda: chat.app.current_mode == mode, mode)
        await chat.press("f4")
        await chat.until(lambda: chat.app.focused is chat.field, "the field")
        assert chat.field.text == "half"


async def test_what_was_asked_before_comes_back_and_what_is_half_written_is_kept() -> None:
    async with chatting(greet) as chat:
        await chat.answered("one", 1)
        await chat.answered("two", 2)
        await chat.press(*"half", "up", "up")
        assert chat.field.text == "one"
        await chat.press("down", "down")
        assert chat.field.text == "half"
        await chat.press("up", "up", "ctrl+n")
        await chat.until(lambda: not chat.views, "a new chat")
        await chat.press("down", "up")
        assert chat.field.text == "", "nothing was asked in this one"


async def test_keys_of_the_field_can_be_remapped_and_texts_name_them() -> None:
    keys = {"question.send": ("ctrl+s",), "question.line": ("f9",), "mode.servers": ("0",)}
    async with chatting(greet, a_server(), keys=keys) as chat:
        assert "Ctrl+S sends · F9 new line" in str(chat.field.placeholder)
        await chat.press(*"one", "enter", *"two", "f9", *"three")
        assert (chat.field.text, chat.views) == ("one\ntwo\nthree", [])
        await chat.press("ctrl+s")
        await chat.until(lambda: len(chat.views) == 1 and "TTFT" in chat.foot, "the answer")
        assert chat.messages() == ["one\ntwo\nthree"]
        chat.keeper.tell(a_server(state=ServerState.STOPPED))
        await chat.until(lambda: "press 0 to start it" in chat.said("#state"), "the key that was given")
