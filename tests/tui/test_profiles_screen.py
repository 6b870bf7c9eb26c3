"""Editing profiles by keys: checked as they are typed, saved whole, and nothing of anybody's is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from backends.readonly import ReadOnlyKeeper
from profiles.store import LIBRARY, Place, Store
from tests.tui.conftest import PROFILES
from tests.tui.link import NOW, FakeLink, shown, until
from tui.app import GpuboxApp
from tui.screens.confirm import ConfirmScreen
from tui.screens.launch import LaunchScreen
from tui.screens.profile_choice import ChoiceScreen
from tui.screens.profile_diff import DiffScreen
from tui.screens.profile_import import ImportScreen
from tui.screens.profile_name import NameScreen
from tui.screens.profiles import ProfilesScreen


@pytest.fixture
def own(tmp_path: Path) -> Store:
    """Four profiles of the user's own, and the library."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, text in PROFILES.items():
        (folder / f"{name}.toml").write_text(text)
    return Store([Place("user", folder), Place("library", LIBRARY)])


def file_of(store: Store, name: str) -> Path:
    return store.places[0].folder / f"{name}.toml"


def screen_of(pilot: Pilot[None]) -> ProfilesScreen:
    return next(screen for screen in pilot.app.screen_stack if isinstance(screen, ProfilesScreen))


def field(pilot: Pilot[None]) -> TextArea:
    return screen_of(pilot).editor


async def show_profiles(pilot: Pilot[None], *downs: str) -> None:
    await pilot.press("7")
    await until(pilot, lambda: "single" in shown(pilot), "the profiles")
    await pilot.press(*downs)


async def edit(pilot: Pilot[None], name: str) -> None:
    await show_profiles(pilot, *["down"] * list(PROFILES).index(name), "o")
    await until(pilot, lambda: screen_of(pilot).draft is not None and field(pilot).has_focus, "the editor")


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_what_is_typed_is_checked_and_saved(own: Store, size: tuple[int, int]) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=size, notifications=True) as pilot:
        await edit(pilot, "single")
        await until(pilot, lambda: "✓ valid" in shown(pilot), "the verdict")
        await pilot.press("ctrl+end", *"max_nmu_seqs = 7q1", "backspace", "backspace")
        await until(pilot, lambda: "max_num_seqs?" in shown(pilot), "the suggestion")
        assert "line 6 args.max_nmu_seqs" in shown(pilot)
        await pilot.press("ctrl+home", *"x = 1", "enter")
        await until(pilot, lambda: "✗ line 1 x no such key" in shown(pilot), "the problem")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "not saved: line 1 x no such key" in shown(pilot), "the refusal")
        assert file_of(own, "single").read_text() == PROFILES["single"]
        await pilot.press("ctrl+home", "ctrl+k", "delete")
        await until(pilot, lambda: "--max-nmu-seqs 7" in shown(pilot), "the command")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: file_of(own, "single").read_text() != PROFILES["single"], "the file")
        assert file_of(own, "single").read_text() == PROFILES["single"] + "max_nmu_seqs = 7"
        assert file_of(own, "single").stat().st_mode & 0o777 == 0o600
        await until(pilot, lambda: not screen_of(pilot).is_unsaved, "the saved state")
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(pilot).draft is None, "the list")


async def test_a_file_that_somebody_else_changed_is_not_written_over_unseen(own: Store) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(100, 30)) as pilot:
        await edit(pilot, "single")
        await pilot.press(*"# mine", "enter")
        theirs = PROFILES["single"] + "seed = 5\n"
        file_of(own, "single").write_text(theirs)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, ChoiceScreen), "the question")
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, DiffScreen) and "-seed = 5" in shown(pilot), "the difference")
        assert "+# mine" in shown(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ChoiceScreen), "the question again")
        await pilot.press("k")
        await until(pilot, lambda: isinstance(app.screen, ProfilesScreen), "the editor")
        assert file_of(own, "single").read_text() == theirs
        assert field(pilot).text.startswith("# mine")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, ChoiceScreen), "the question")
        await pilot.press("o")
        await until(pilot, lambda: file_of(own, "single").read_text().startswith("# mine"), "the file")
        file_of(own, "single").write_text(theirs)
        await until(pilot, lambda: isinstance(app.screen, ProfilesScreen) and not screen_of(pilot).is_unsaved, "saved")
        await pilot.press("x", "ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, ChoiceScreen), "the question")
        await pilot.press("r")
        await until(pilot, lambda: field(pilot).text == theirs, "their text")
        assert not screen_of(pilot).is_unsaved


async def test_a_library_profile_becomes_ones_own_once_saved(own: Store) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await show_profiles(pilot, *["down"] * 4, "o")
        await until(pilot, lambda: screen_of(pilot).draft is not None, "the editor")
        assert not file_of(own, "bge-m3").exists()
        await pilot.press("ctrl+home", *"# my own", "enter", "ctrl+s")
        await until(pilot, lambda: file_of(own, "bge-m3").exists(), "the copy")
        assert file_of(own, "bge-m3").read_text() == "# my own\n" + (LIBRARY / "bge-m3.toml").read_text()


async def test_leaving_with_changes_asks(own: Store) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await edit(pilot, "single")
        await pilot.press(*"q17?i", "escape")
        await until(pilot, lambda: isinstance(app.screen, ChoiceScreen), "the question")
        await pilot.press("k")
        await until(pilot, lambda: isinstance(app.screen, ProfilesScreen), "the editor")
        assert field(pilot).text.startswith("q17?i")
        await pilot.press("f2", "f7")
        assert field(pilot).text.startswith("q17?i")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ChoiceScreen), "the question")
        await pilot.press("d")
        await until(
            pilot, lambda: isinstance(app.screen, ProfilesScreen) and screen_of(pilot).draft is None, "the list"
        )
        assert file_of(own, "single").read_text() == PROFILES["single"]


async def test_a_folder_that_cannot_be_written_keeps_the_text(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "single.toml")

    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await edit(pilot, "single")
        await pilot.press("#")
        monkeypatch.setattr("os.fsync", full)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "No space left on device" in shown(pilot), "the refusal")
        assert screen_of(pilot).is_unsaved
        assert file_of(own, "single").read_text() == PROFILES["single"]
        assert sorted(path.name for path in file_of(own, "x").parent.iterdir()) == [f"{n}.toml" for n in PROFILES]


async def test_a_new_one_from_a_template_and_a_blank_one(own: Store) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await show_profiles(pilot, "down", "n")
        await until(pilot, lambda: isinstance(app.screen, NameScreen) and "pair-2" in shown(pilot), "the question")
        await pilot.press("enter", "enter")
        await until(pilot, lambda: screen_of(pilot).draft is not None, "the editor")
        assert not file_of(own, "pair-2").exists()
        await pilot.press("ctrl+s")
        await until(pilot, lambda: file_of(own, "pair-2").exists(), "the file")
        assert file_of(own, "pair-2").read_text() == PROFILES["pair"]
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(pilot).draft is None, "the list")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, NameScreen), "the question")
        await pilot.press("home", "enter")
        app.screen.query_one(Input).value = "Not A Name"
        await until(pilot, lambda: "use a-z" in shown(pilot), "the problem")
        app.screen.query_one(Input).value = "mine"
        await pilot.press("enter")
        await until(pilot, lambda: 'model = ""' in field(pilot).text, "the blank one")


async def test_a_command_line_is_understood_before_it_is_saved(own: Store) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(100, 30)) as pilot:
        await show_profiles(pilot, "p")
        await until(pilot, lambda: isinstance(app.screen, ImportScreen), "the sheet")
        app.screen.query_one(TextArea).text = "nonsense"
        await until(pilot, lambda: "✗" in shown(pilot), "the refusal")
        app.screen.query_one(TextArea).text = "vllm serve a/model-b --max-model-len 4096"
        await until(pilot, lambda: "max_model_len = 4096" in shown(pilot), "what was understood")
        assert "it names no port" in shown(pilot)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, NameScreen), "the name")
        await pilot.press("enter")
        await until(pilot, lambda: screen_of(pilot).draft is not None, "the editor")
        assert not file_of(own, "model-b").exists()
        await pilot.press("ctrl+s")
        await until(pilot, lambda: file_of(own, "model-b").exists(), "the file")
        assert own.load("model-b").data["args"] == {"max_model_len": 4096}


async def test_rename_and_delete(own: Store) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await show_profiles(pilot, "down", "r")
        await until(pilot, lambda: isinstance(app.screen, NameScreen), "the name")
        app.screen.query_one(Input).value = "single"
        await pilot.press("enter")
        assert "single is there already" in shown(pilot)
        app.screen.query_one(Input).value = "couple"
        await pilot.press("enter")
        await until(pilot, lambda: file_of(own, "couple").exists() and "couple" in shown(pilot), "the new name")
        assert not file_of(own, "pair").exists()
        row = screen_of(pilot)
        await until(pilot, lambda: row.row is not None and row.row.name == "couple", "the cursor on it")
        await pilot.press("d")
        await until(pilot, lambda: "Delete couple?" in shown(pilot), "the question")
        await pilot.press("n")
        await pilot.press("d")
        assert file_of(own, "couple").exists()
        await until(pilot, lambda: "Delete couple?" in shown(pilot), "the question")
        await pilot.press("y")
        await until(pilot, lambda: not file_of(own, "couple").exists(), "the end")


async def test_differences_to_what_a_server_was_started_with(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    link = FakeLink()
    from dataclasses import replace

    started = {"name": "single", "model": "Qwen/Qwen2.5-7B", "port": 8123, "args": {"max_model_len": 1024}}

    async def profile(name: str) -> dict[str, object]:
        return started | {"description": "One GPU."}

    monkeypatch.setattr(link, "profile", profile)
    link.state = replace(link.state, servers=(replace(link.state.servers[0], name="one", profile="single"),))
    app = GpuboxApp(link, store=own, clock=lambda: NOW)
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await show_profiles(pilot, "v")
        await until(pilot, lambda: "nothing to compare demo with" in shown(pilot) or _is_diff(app), "an answer")
        if _is_diff(app):
            await pilot.press("escape")
        await pilot.press("down", "down")
        await until(pilot, lambda: screen_of(pilot).look is not None and "8123" in shown(pilot), "the profile")
        await pilot.press("v")
        await until(pilot, lambda: "what one was started with" in shown(pilot), "the difference")
        assert "-max_model_len = 1024" in shown(pilot)
        assert "+max_model_len = 2048" in shown(pilot)


def _is_diff(app: GpuboxApp) -> bool:
    return isinstance(app.screen, DiffScreen)


async def test_enter_opens_the_picker_and_a_broken_one_its_editor(own: Store) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await show_profiles(pilot, "enter")
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen), "the picker")
        await pilot.press("escape", "down", "down", "down", "enter")
        await until(pilot, lambda: screen_of(pilot).draft is not None, "the editor")
        await until(pilot, lambda: "did you mean engine?" in shown(pilot), "the problem")


async def test_read_only_writes_nothing(own: Store) -> None:
    app = GpuboxApp(ReadOnlyKeeper(FakeLink()), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await show_profiles(pilot, "o")
        await until(pilot, lambda: "read-only" in shown(pilot), "the refusal")
        await pilot.press("d", "n", "p", "r")
        await pilot.pause()
        assert isinstance(app.screen, ProfilesScreen)
        assert screen_of(pilot).draft is None


async def test_without_profiles_it_says_which_key_makes_one(tmp_path: Path) -> None:
    app = GpuboxApp(FakeLink(), store=Store([Place("user", tmp_path / "none")]), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("7")
        await until(pilot, lambda: "n makes one from a template" in shown(pilot), "the way on")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, NameScreen), "the question")


@pytest.mark.parametrize("key", ["q", "ctrl+q"])
async def test_leaving_the_app_asks_before_what_is_not_saved_is_lost(own: Store, key: str) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await edit(pilot, "single")
        await pilot.press("x", "f1")
        for answer, leaves in (("n", False), ("y", True)):
            await pilot.press(key)
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
            await until(pilot, lambda: "single.toml has changes that no file has yet" in shown(pilot), "what is lost")
            await pilot.press("ctrl+q")
            assert len(app.screen_stack) == 2
            assert app._exit is False
            await pilot.press(answer)
            await until(pilot, lambda: app._exit or len(app.screen_stack) == 1, "the end of the question")
            assert app._exit is leaves
            assert app.current_mode == "box"


async def test_leaving_the_app_while_nothing_is_unsaved_asks_nothing(own: Store) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await edit(pilot, "single")
        await pilot.press("ctrl+q")
        await until(pilot, lambda: app._exit, "the end")


@pytest.mark.parametrize(("typed", "expected"), [("new", NameScreen), ("import", ImportScreen)])
async def test_the_palette_offers_what_the_list_can_do(own: Store, typed: str, expected: type[object]) -> None:
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await show_profiles(pilot)
        await pilot.press("ctrl+p")
        app.screen.query_one(Input).value = f"profiles: {typed}"
        await until(pilot, lambda: f"Profiles: {typed.capitalize()}" in shown(pilot), "the command")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, expected), "its sheet")


async def test_the_verdict_of_another_profile_never_comes_in_late(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, asked = threading.Event(), threading.Event()

    def slow(*given: object) -> str:
        asked.set()
        gate.wait(30)
        return "the verdict of a valid profile"

    monkeypatch.setattr("tui.screens.profiles.fit_of", slow)
    app = GpuboxApp(FakeLink(), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 40)) as pilot:
        await show_profiles(pilot, *["down"] * list(PROFILES).index("single"))
        await until(pilot, asked.is_set, "the reckoning")
        await pilot.press("down")
        await until(pilot, lambda: "unknown key" in shown(pilot) or "enigne" in shown(pilot), "the broken one")
        gate.set()
        fits = [one for one in app.workers if one.group == "fit"]
        await until(pilot, lambda: all(one.is_finished for one in fits), "the verdict")
        assert "the verdict of a valid profile" not in shown(pilot)


@pytest.mark.parametrize("mode", ["2", "7"])
async def test_a_click_starts_nothing_where_nothing_may_be_started(own: Store, mode: str) -> None:
    app = GpuboxApp(ReadOnlyKeeper(FakeLink()), store=own, clock=lambda: NOW)
    async with app.run_test(size=(80, 40)) as pilot:
        await pilot.press(mode)
        await until(pilot, lambda: "single" in shown(pilot), "the profiles")
        line = next(n for n, text in enumerate(shown(pilot).splitlines()) if text.startswith(" demo"))
        for _ in range(2):
            await pilot.click(offset=(3, line))
            await pilot.pause()
        await until(pilot, lambda: all(one.is_finished for one in app.workers if one.group == "requests"), "rest")
        assert not isinstance(app.screen, LaunchScreen)
