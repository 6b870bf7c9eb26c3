"""Keys can be remapped in config.toml: footer, help and the screens obey, what cannot be had is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.command import CommandPalette
from textual.widgets import Input

from backends.settings import Settings, read_settings
from profiles.store import Store
from tests.tui.link import NOW, FakeLink, shown, until
from tui.app import GpuboxApp
from tui.keymap import default_keys, key_of, normalized, remapped


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("x", "x"),
        ("X", "X"),
        ("?", "question_mark"),
        ("[", "left_square_bracket"),
        (",", "comma"),
        ("Ctrl+x", "ctrl+x"),
        ("shift+x", "X"),
        ("F9", "f9"),
        ("Escape", "escape"),
        ("shift+ctrl+up", "ctrl+shift+up"),
        ("cntrl+x", None),
        ("ctrl+", None),
        ("entr", None),
    ],
)
def test_keys_are_named_as_people_write_them(said: str, meant: str | None) -> None:
    assert normalized(said) == meant


def test_a_free_key_is_given_and_two_keys_may_be_exchanged() -> None:
    found = remapped(GpuboxApp, {"server.stop": ("r",), "server.restart": ("x", "ctrl+r")})
    assert found.refused == ()
    assert found.keymap == {"server.stop": "r", "server.restart": "x,ctrl+r"}


@pytest.mark.parametrize(
    ("wanted", "name", "wrong", "hint"),
    [
        ({"srver.stop": ("y",)}, "srver.stop", "no such key binding", "did you mean server.stop?"),
        ({"server.stop": ("cntrl+x",)}, "server.stop", "'cntrl+x' is no key", "did you mean ctrl?"),
        ({"server.stop": ("r",)}, "server.stop", "r is server.restart on Servers already", "choose another key"),
        ({"server.stop": ("q",)}, "server.stop", "q is app.quit on", "choose another key"),
        ({"app.quit": ("l",)}, "app.quit", "l is ", "choose another key"),
        ({"server.stop": ("y",), "server.restart": ("y",)}, "server.restart", "y is server.stop", "choose another key"),
    ],
)
def test_what_cannot_be_had_is_told_and_keeps_its_key(
    wanted: dict[str, tuple[str, ...]], name: str, wrong: str, hint: str
) -> None:
    found = remapped(GpuboxApp, wanted)
    assert [one[0] for one in found.refused] == [name]
    assert wrong in found.refused[0][1]
    assert hint in found.refused[0][2]
    assert name not in found.keymap


def test_nothing_asked_is_nothing_changed() -> None:
    assert remapped(GpuboxApp, {}).keymap == {}
    assert default_keys(GpuboxApp)["app.quit"] == ("q",)


async def test_a_remapped_key_works_and_its_old_one_does_not() -> None:
    link = FakeLink()
    app = GpuboxApp(
        link, clock=lambda: NOW, settings=Settings(keys={"server.restart": ("ctrl+r",), "app.keys": ("f12",)})
    )
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        app.selected = "qwen2.5-14b"
        await pilot.press("2", "down", "down", "down")
        await until(pilot, lambda: "^r Restart" in shown(pilot).splitlines()[-1], "the new key in the footer")
        await pilot.press("r")
        await pilot.pause()
        assert link.requests() == []
        await pilot.press("ctrl+r")
        await until(pilot, lambda: link.requests() == [("restart", "qwen2.5-14b")], "the request")
        await pilot.press("f12")
        await until(pilot, lambda: "╭─ Keys" in shown(pilot), "the help")
        assert "^r " in next(line for line in shown(pilot).splitlines() if "start it as it was started" in line)


async def test_bindings_that_shared_a_key_with_a_remapped_one_keep_it() -> None:
    keys = default_keys(GpuboxApp)
    found = remapped(GpuboxApp, {"chat.stop": ("ctrl+x",)})
    assert found.keymap["chat.stop"] == "ctrl+x"
    if set(keys["chat.leave"]) & set(keys["chat.stop"]):
        assert found.keymap["chat.leave"].split(",") == list(keys["chat.leave"])


async def test_a_broken_config_opens_the_app_with_one_notice(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[screen]\nbel = true\n[keys]\nserver.stop = "q"\nserver.restrat = "y"\n')
    app = GpuboxApp(FakeLink(), clock=lambda: NOW, settings=read_settings(path))
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await until(pilot, lambda: "3 settings not used" in shown(pilot), "the notice")
        (notice,) = app._notifications
        assert "config.toml:2: screen.bel: no such key; did you mean bell?" in notice.message
        assert "config.toml:5: keys.server.restrat: no such key binding; did you mean server.restart?" in notice.message
        assert "config.toml:4: keys.server.stop: q is app.quit on" in notice.message


async def test_the_palette_has_what_the_screen_can_do_now_and_nothing_else(store: Store) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(120, 50)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        await pilot.press("2")
        for selected, offered, hidden in (
            ("llama-3.3-70b", "Servers: Stop", "Servers: Forget"),
            ("qwen2.5-14b", "Servers: Forget", "Servers: Stop"),
        ):
            app.selected = selected
            await pilot.pause()
            await pilot.press("ctrl+p")
            assert isinstance(app.screen, CommandPalette)
            app.screen.query_one(Input).value = "Servers:"
            await until(pilot, lambda offered=offered: offered in shown(pilot), offered)  # type: ignore[misc]
            assert hidden not in shown(pilot)
            await pilot.press("escape")
        await pilot.press("ctrl+p")
        app.screen.query_one(Input).value = "Servers: Forget"
        await until(
            pilot, lambda: "Servers: Forget" in shown(pilot).split("Search")[0] or "· key d" in shown(pilot), "it"
        )
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() == [("forget", "qwen2.5-14b")], "the request")


async def test_a_text_names_the_keys_that_work() -> None:
    settings = Settings(keys={"chat.thoughts": ("f10", "x"), "logs.end_search": ("ctrl+e",), "log.follow": ("-",)})
    usual, changed = GpuboxApp(FakeLink()), GpuboxApp(FakeLink(), settings=settings)
    async with changed.run_test():
        for name, by_default, by_choice in [
            ("logs.end_search", "Esc", "Ctrl+E"),
            ("log.follow", "G", "-"),
            ("chat.thoughts", "t", "F10"),
            ("chat.write", "Enter", "Enter"),
            ("launch.start", "Enter", "Enter"),
            ("mode.servers", "2", "2"),
        ]:
            assert (key_of(usual, name), key_of(changed, name)) == (by_default, by_choice)
    assert key_of(usual, "chat.thoughts", typing=True) == "Ctrl+T", "t would be written"
    assert key_of(changed, "log.follow", typing=True) == "-", "there is no other"
    with pytest.raises(KeyError):
        key_of(usual, "chat.thouhgts")
