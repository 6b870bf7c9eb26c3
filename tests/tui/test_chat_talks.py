"""Several conversations a server: branches, answers asked for again, settings, commands, pictures, files; by keys."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import Input, TextArea

from backends import paths
from backends.snapshots import ModelKind, ServerState
from tests.tui.chat_stage import Gate, a_server, asked, chatting, end, greet, on_and_on, say
from tests.tui.link import shown
from tests.unit.chat_engine import Request, Wire
from tui.screens.chat_settings import ChatSettingsScreen
from tui.screens.chat_sheets import ConversationsScreen, LineScreen
from tui.screens.confirm import ConfirmScreen
from tui.widgets.chat_list import ConversationList

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 4096


async def test_a_new_chat_leaves_the_old_one_in_the_list_and_its_answer_going() -> None:
    async with chatting(on_and_on) as chat:
        await chat.ask("old")
        await chat.until(lambda: "on " in chat.answer, "some text")
        await chat.press("ctrl+n")
        await chat.until(lambda: not chat.views, "an empty conversation")
        chat.engine.script = greet
        await chat.answered("new", 1)
        assert chat.messages() == ["new"]
        assert "2 chats" in chat.said("#head")
        assert not chat.engine.gone.is_set()
        await chat.press("escape", "l")
        assert isinstance(chat.app.screen, ConversationsScreen)
        assert [line for line in ("● new", "… old") if line in shown(chat.pilot)] == ["● new", "… old"]
        await chat.press("j", "enter")
        await chat.until(lambda: "on on" in chat.answer, "the old conversation")
        await chat.press("escape")
        assert await asyncio.to_thread(chat.engine.gone.wait, 20), "the engine notices"


async def test_a_conversation_is_renamed_and_deleted_after_a_question() -> None:
    async with chatting(greet) as chat:
        await chat.answered("one", 1)
        await chat.press("ctrl+o", "r")
        assert isinstance(chat.app.screen, LineScreen)
        chat.app.screen.query_one(Input).value = "My chat"
        await chat.press("enter")
        await chat.press("ctrl+o")
        assert "● My chat · 1 question" in shown(chat.pilot)
        await chat.press("d")
        assert isinstance(chat.app.screen, ConfirmScreen)
        await chat.press("n")
        assert len(chat.views) == 1
        await chat.press("ctrl+o", "d")
        await chat.press("y")
        await chat.until(lambda: not chat.views and bool(chat.app.screen.query_one("#empty").display), "nothing left")
        await chat.answered("two", 1)
        assert chat.messages() == ["two"]


async def test_wide_screens_have_the_list_at_the_side() -> None:
    async with chatting(greet, size=(170, 40)) as chat:
        listed = chat.app.screen.query_one(ConversationList)
        assert listed.display
        await chat.answered("one", 1)
        await chat.press("ctrl+n")
        await chat.answered("two", 1)
        await chat.press("escape", "l")
        assert chat.app.focused is listed
        await chat.press("down", "enter")
        await chat.until(lambda: "one" in chat.answer, "the first conversation")
        chat.pilot.app.screen.set_focus(None)
        await chat.press("a")
        await chat.answered("more", 2)
        assert chat.messages()[0] == "one"


async def test_an_earlier_question_is_edited_and_branches_off() -> None:
    async with chatting(greet) as chat:
        for number, question in enumerate(("a", "b", "c"), start=1):
            await chat.answered(question, number)
        await chat.press("escape", "p", "p")
        assert [view.is_marked for view in chat.views] == [False, True, False]
        assert "Enter edits question 2" in str(chat.field.placeholder)
        await chat.press("enter")
        assert chat.field.text == "b"
        assert "question 2 anew" in chat.said("#attached")
        await chat.press("escape")
        assert chat.field.text == ""
        await chat.press("escape", "enter", "x")
        await chat.ask("")
        await chat.until(lambda: len(chat.views) == 2 and "bx" in chat.answer, "the branch")
        await chat.until(lambda: "TTFT" in chat.foot, "its answer")
        assert chat.messages() == ["a", "You said **a**, and I say *hello*.", "bx"]
        kept = chat.app.screen.conversations.all("demo")  # type: ignore[attr-defined]
        assert [(one.name, len(one.exchanges)) for one in kept] == [("a (branch)", 2), ("a", 3)]


async def test_the_last_question_is_asked_again_and_both_answers_stay() -> None:
    count = 0

    async def counting(request: Request, wire: Wire) -> None:
        nonlocal count
        count += 1
        await wire.begin()
        await say(wire, f"answer {count}")
        await end(wire, 2)

    async with chatting(counting) as chat:
        await chat.answered("a", 1)
        await chat.press("ctrl+r")
        await chat.until(lambda: "answer 2 of 2" in chat.foot, "the second answer")
        assert chat.answer == "answer 2"
        assert chat.messages() == ["a"]
        await chat.press("escape", "less_than_sign")
        await chat.until(lambda: chat.answer == "answer 1", "the first answer")
        await chat.press("greater_than_sign")
        await chat.until(lambda: chat.answer == "answer 2", "the second answer again")
        await chat.press("a")
        await chat.answered("b", 2)
        assert chat.messages() == ["a", "answer 2", "b"]
        await chat.press("escape", "p", "p", "r")
        await chat.until(lambda: len(chat.views) == 1 and "TTFT" in chat.foot, "the first question in a branch")
        assert chat.messages() == ["a"]


async def test_a_server_that_died_in_mid_answer_is_asked_again_once_it_is_back() -> None:
    async def die(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, "Half an answer")
        await asyncio.sleep(0.1)
        wire.die()

    async with chatting(die) as chat:
        await chat.ask("a")
        await chat.until(lambda: "✗" in chat.foot, "the error")
        assert chat.answer == "Half an answer"
        chat.keeper.tell(replace(a_server(state=ServerState.FAILED), cause="killed"))
        await chat.until(lambda: "killed" in chat.said("#state"), "the failure")
        await chat.press("ctrl+r")
        assert len(chat.engine.requests) == 1
        chat.engine.script = greet
        chat.keeper.tell(a_server())
        await chat.until(lambda: not chat.app.screen.query_one("#state").display, "the server")
        await chat.press("ctrl+r")
        await chat.until(lambda: "TTFT" in chat.foot and "✗" not in chat.foot, "the whole answer")
        assert "answer 2 of 2" in chat.foot


async def test_commands_set_what_the_engine_is_asked_with() -> None:
    async with chatting(greet) as chat:
        await chat.press(*"/set temp", "tab")
        await chat.until(lambda: chat.field.text == "/set temperature=", "the completion")
        await chat.press("9")
        await chat.until(lambda: "cannot be '9'" in chat.said("#hint"), "what is wrong")
        await chat.press("enter")
        assert chat.field.text == "/set temperature=9", "what is wrong stays to be mended"
        await chat.press("backspace", *"0.5", "enter")
        assert chat.field.text == ""
        chat.field.write("/system Be brief.")
        await chat.press("enter")
        await chat.until(lambda: "system prompt temperature=0.5" in chat.said("#head"), "both in the head")
        await chat.answered("hi", 1)
        assert chat.messages()[0] == "Be brief."
        assert chat.engine.requests[-1].body["temperature"] == 0.5
        await chat.press(*"/hel", "enter")
        await chat.until(lambda: "/image PATH" in chat.said("#hint"), "the commands")
        chat.field.write("/nonsense")
        await chat.press("enter")
        await chat.until(lambda: chat.noticed("there is no command /nonsense"), "the refusal")
        chat.field.write("")
        await chat.press(*"/new", "enter")
        await chat.until(lambda: not chat.views, "a new conversation")
        assert "temperature=0.5" in chat.said("#head")


async def test_the_sheet_of_settings_takes_only_what_makes_sense() -> None:
    async with chatting(greet) as chat:
        await chat.press("escape", "o")
        sheet = chat.app.screen
        assert isinstance(sheet, ChatSettingsScreen)
        await chat.press(*"3")
        await chat.until(lambda: "temperature cannot be '3'" in shown(chat.pilot), "what is wrong")
        await chat.press("enter")
        assert chat.app.screen is sheet
        await chat.press("backspace", *"0.7", "tab", *"0.9")
        sheet.query_one(TextArea).text = "Be kind."
        await chat.press("ctrl+s")
        await chat.until(lambda: "system prompt temperature=0.7 top_p=0.9" in chat.said("#head"), "them in the head")
        await chat.press("ctrl+g", "escape")
        assert "temperature=0.7" in chat.said("#head")


async def test_a_picture_goes_with_the_question(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)

    async def refuse(request: Request, wire: Wire) -> None:
        await wire.reply(400, {"error": {"message": "m is not a multimodal model"}})

    async def look(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, "a cat")
        await end(wire, 2)

    async with chatting(look) as chat:
        chat.field.write(f"/image {tmp_path}/no.png")
        await chat.press("enter")
        await chat.until(lambda: chat.noticed("cannot be read"), "the refusal")
        chat.field.write(f"/image {tmp_path}/cat.png")
        await chat.press("enter")
        await chat.until(lambda: "cat.png (4 KiB) goes with it" in chat.said("#attached"), "the picture")
        await chat.until(lambda: chat.field.text == "", "the empty field")
        await chat.answered("what?", 1)
        content = chat.engine.requests[-1].body["messages"][0]["content"]
        assert [part["type"] for part in content] == ["image_url", "text"]
        assert not chat.app.screen.query_one("#attached").display
        await chat.until(lambda: "▣ cat.png (4 KiB)" in shown(chat.pilot), "the picture with its question")
        chat.engine.script = refuse
        await chat.press("ctrl+r")
        await chat.until(lambda: "m takes no pictures" in chat.foot, "the clear line")


async def test_a_model_that_continues_text_is_not_even_asked_about_a_picture(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    async with chatting(greet, a_server(kind=ModelKind.COMPLETION)) as chat:
        chat.field.write(f"/image {tmp_path}/cat.png")
        await chat.press("enter")
        await chat.until(lambda: chat.noticed("demo takes no pictures"), "the refusal")
        assert chat.engine.requests == []


async def test_a_conversation_is_saved_by_key_and_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))
    async with chatting(greet) as chat:
        await chat.answered("hi", 1)
        await chat.press(*"/save jsonl", "enter")
        await chat.until(lambda: len(list(paths.chat_dir().glob("*.jsonl"))) == 1, "the JSON lines")
        await chat.press("escape", "s", "s")
        await chat.until(lambda: len(list(paths.chat_dir().glob("*.md"))) == 2, "two files: nothing is overwritten")
        await chat.until(lambda: chat.noticed("saved as Markdown"), "where it is")
        (line,) = [json.loads(path.read_text()) for path in paths.chat_dir().glob("*.jsonl")]
        assert [one["role"] for one in line["messages"]] == ["user", "assistant"]
        # Read-only, nothing is written, by whatever way.
        monkeypatch.setattr(chat.app, "readonly", True)
        await chat.press("s")
        await chat.press("a", *"/save", "enter")
        await chat.until(lambda: chat.noticed("--readonly"), "the refusal")
        assert len(list(paths.chat_dir().iterdir())) == 3


async def test_a_context_that_is_nearly_full_is_said() -> None:
    async def long(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, "long")
        await end(wire, 80)

    async with chatting(long, replace(a_server(), max_model_len=100)) as chat:
        await chat.answered("hi", 1)
        await chat.until(lambda: "! context 87 of 100, 87% full · 80 written" in chat.said("#head"), "the warning")


async def test_an_answer_is_copied_and_scrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lines(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, f"{asked(request)}\n\n" * 60)
        await end(wire, 80)

    copied: list[str] = []
    async with chatting(lines) as chat:
        monkeypatch.setattr(chat.app, "copy_to_clipboard", copied.append)
        await chat.answered("up", 1)
        await chat.press("escape")
        talk = chat.views[-1].parent
        await chat.until(lambda: talk is not None and talk.is_vertical_scroll_end, "the end")  # type: ignore[attr-defined]
        await chat.press("k", "k")
        assert not talk.is_vertical_scroll_end  # type: ignore[union-attr]
        await chat.press("y")
        assert copied == ["up\n\n" * 60]


async def test_typing_goes_on_while_a_command_reads_the_disk(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    gate = Gate()

    async def slowly(request: Request, wire: Wire) -> None:
        await gate.wait()
        await greet(request, wire)

    async with chatting(slowly) as chat:
        await chat.ask("first")
        chat.field.write(f"/image {tmp_path}/cat.png")
        await chat.press("enter")
        await chat.until(lambda: "goes with it" in chat.said("#attached"), "the picture, while an answer is awaited")
        gate.open()
        await chat.until(lambda: "TTFT" in chat.foot, "the answer")
        await chat.press(*"/image", "enter")
        await chat.until(lambda: not chat.app.screen.query_one("#attached").display, "no picture")
