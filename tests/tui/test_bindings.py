"""Every key of every screen: it has an id, it does something wherever it is offered, and it types nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.command import CommandPalette
from textual.widgets import Input, TextArea

from profiles.store import Store
from tests.tui.walk import Place, Way, opened, walk
from tui.app import PANELS, GpuboxApp
from tui.keymap import all_bindings, default_keys

STATES = ("servers", "failed", "none", "readonly")
GLOBAL = {f"mode.{name}" for name in PANELS} | {"server.previous", "server.next", "app.events", "app.keys", "app.quit"}
SHEETS = {"app.events", "app.keys"}
"""Keys of the app's that open something on the same screen."""

TYPED = "1q?ei[]xdX 7j/ghn"

_sheets: set[str] = set()
"""The sheets that were walked already, by whatever way they were reached."""


def test_every_binding_has_an_id() -> None:
    without = {
        f"{kind.__module__} {kind.__name__}: {binding.key} ({binding.action})"
        for kind, binding in all_bindings(GpuboxApp)
        if binding.id is None
    }
    assert not without, "OFFENDERS without an id:\n" + "\n".join(sorted(without))


def test_every_binding_that_is_shown_says_what_it_does() -> None:
    silent = {
        f"{kind.__name__}: {binding.id}"
        for kind, binding in all_bindings(GpuboxApp)
        if binding.description and not binding.tooltip
    }
    assert not silent, "OFFENDERS without a tooltip:\n" + "\n".join(sorted(silent))


def test_an_id_means_the_same_keys_everywhere_and_is_no_table_of_another() -> None:
    keys = default_keys(GpuboxApp)
    for kind in {kind for kind, _ in all_bindings(GpuboxApp)}:
        own: dict[str, set[str]] = {}
        for other, binding in all_bindings(GpuboxApp):
            if other is kind and binding.id is not None:
                own.setdefault(binding.id, set()).add(binding.key)
        for name, its in own.items():
            assert its == set(keys[name]), f"{kind.__name__}: {name} has {its}, elsewhere {set(keys[name])}"
    for name in keys:
        inside = [other for other in keys if other.startswith(f"{name}.")]
        assert not inside, f"TOML cannot say {name} = … beside {inside}"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("mode", PANELS)
async def test_every_key_that_is_offered_does_something(mode: str, state: str, store: Store, tmp_path: Path) -> None:
    async with opened(state, mode, store, tmp_path) as place:
        idle = await walk(place, _sheets, state)
    assert not idle, "\n".join(idle)


@pytest.mark.parametrize("mode", PANELS)
async def test_no_screen_hides_a_key_that_works_everywhere(mode: str, store: Store, tmp_path: Path) -> None:
    async with opened("servers", mode, store, tmp_path) as place:
        for focus in (None, *place.screen.focus_chain):
            await place.go((), focus)
            if isinstance(place.screen.focused, Input | TextArea):
                continue
            here = {active.binding.id: key for key, active in place.screen.active_bindings.items()}
            missing = GLOBAL - here.keys() - {f"mode.{mode}"}
            assert not missing, f"{mode}: hidden by {focus or place.screen}"
            taken = place.screen.active_bindings.get("i")
            assert taken is None or taken.binding.id == "screen.explain", f"{mode}: i is {taken.binding.id}"


@pytest.mark.parametrize("mode", PANELS)
async def test_typing_in_a_field_changes_that_field_and_nothing_else(mode: str, store: Store, tmp_path: Path) -> None:
    async with opened("servers", mode, store, tmp_path) as place:
        ways: dict[str, Way] = {"": ()}
        for focus in (None, *place.screen.focus_chain):
            await place.go((), focus)
            for key, one in place.offered().items():
                if one.node is not place.app or one.binding.id in SHEETS:
                    ways.setdefault(one.binding.id or key, ((focus, (key,)),))
        done: set[tuple[str, str | None]] = set()
        for way in ways.values():
            await place.go(way)
            if isinstance(place.screen, CommandPalette):
                continue
            for number, field in enumerate(fields(place)):
                mark = (type(place.screen).__name__, field.id)
                if mark in done or not field.focusable:
                    continue
                if number:
                    await place.go(way)
                    if number >= len(fields(place)):
                        break
                    field = fields(place)[number]
                done.add(mark)
                field.focus()
                await place.settle()
                assert place.screen.focused is field
                before, others = told(place), [told_by(one) for one in fields(place) if one is not field]
                await place.press(*(key_of(sign) for sign in TYPED))
                await place.settle()
                assert told(place) == before, f"{mark}: typing did something else"
                assert place.screen.focused is field
                assert [told_by(one) for one in fields(place) if one is not field] == others
                assert any(sign in told_by(field) for sign in TYPED), f"{mark} took nothing of what was typed"


def fields(place: Place) -> list[Input | TextArea]:
    found = place.screen.query("Input, TextArea")
    return [one for one in found if isinstance(one, Input | TextArea) and one.display]


def told_by(field: Input | TextArea) -> str:
    return field.value if isinstance(field, Input) else field.text


def told(place: Place) -> tuple[object, ...]:
    app = place.app
    return tuple(app.screen_stack), app.current_mode, app.selected, len(place.link.asked), app.exits, app.theme


def key_of(sign: str) -> str:
    return {
        "?": "question_mark",
        "[": "left_square_bracket",
        "]": "right_square_bracket",
        " ": "space",
        "/": "slash",
    }.get(sign, sign)
