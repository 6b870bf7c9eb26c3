"""The product's own key bindings as a catalogue, and the user's `[keys]` laid over them.

Every binding has an id; an id means the same keys wherever it is used. A change that would put two actions of one
screen on one key, or hide a key that works everywhere, is refused, told, and that binding keeps its own keys.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import combinations
from typing import TYPE_CHECKING, Any, cast

from textual.app import App
from textual.binding import Binding
from textual.dom import DOMNode
from textual.keys import KEY_TO_UNICODE_NAME, Keys, format_key, key_to_character
from textual.screen import ModalScreen, Screen

import tui.screens
import tui.widgets
from profiles.errors import did_you_mean
from tui.bindings import own_bindings

if TYPE_CHECKING:
    from tui.app import GpuboxApp

MODIFIERS = ("ctrl", "alt", "shift", "super", "hyper", "meta")

KeyNames = Callable[[str], str]
"""Names the key of the binding with an id, for a text: `key_of` of an app."""

KeysOf = Mapping[str, tuple[str, ...]]
"""By a binding's id: its keys as Textual names them."""


@dataclass(frozen=True, slots=True)
class Remapped:
    """What `set_keymap` is given, and which of the user's wishes were refused: id, what is wrong, what helps."""

    keymap: Mapping[str, str]
    refused: tuple[tuple[str, str, str], ...]


@cache
def screens() -> tuple[type[Screen[object]], ...]:
    """Return every screen and sheet of the product; imports all of them."""
    return tuple(kind for kind in _kinds() if issubclass(kind, Screen))


@cache
def _kinds() -> tuple[type[DOMNode], ...]:
    """Return every class of nodes that the product defines, the app's not among them."""
    found: dict[type[DOMNode], None] = {}
    for package in (tui.widgets, tui.screens):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for kind in vars(import_module(module.name)).values():
                if isinstance(kind, type) and issubclass(kind, DOMNode) and kind.__module__ == module.name:
                    found[kind] = None
    return tuple(found)


def all_bindings(app: type[App[None]]) -> Iterator[tuple[type[DOMNode], Binding]]:
    """Go through every binding of the app, its screens and their widgets."""
    for kind in (app, *_kinds()):
        for binding in own_bindings(kind):
            yield kind, binding


def key_of(app: App[Any], name: str, *, typing: bool = False) -> str:
    """Return the key of the binding with this id as a text names it ('Esc', 'Ctrl+T', 'G'), as it is mapped now.

    Of several the first one; with `typing` the first that works in a text field, too, where there is one. Raises
    KeyError where no binding has that id.
    """
    keys = live_keys(app, name)
    if typing:
        return spoken(next((key for key in keys if not _is_typed(key)), keys[0]))
    display = _bindings_named(name)[0].key_display
    return spoken(display if display and name not in cast("GpuboxApp", app).keymap else keys[0])


def live_keys(app: App[Any], name: str) -> tuple[str, ...]:
    """Return the keys of the binding with this id as Textual names them, as they are mapped now; raises KeyError."""
    given = cast("GpuboxApp", app).keymap.get(name)
    return tuple(one.key for one in _bindings_named(name)) if given is None else tuple(given.split(","))


def _is_typed(key: str) -> bool:
    """Say whether a key, as Textual names it, writes a character where there is a field for it."""
    character = key_to_character(key)
    return character is not None and character.isprintable()


def spoken(key: str) -> str:
    """Return a key as a text names it."""
    *modifiers, last = [key] if len(key) == 1 else key.split("+")
    shown = "enter" if last == "enter" else format_key(last)
    if modifiers or len(shown) > 1:
        shown = shown.capitalize()
    return "+".join([*(one.capitalize() for one in modifiers), shown])


@cache
def _bindings_named(name: str) -> tuple[Binding, ...]:
    """Return the bindings of an id, one a key, of the first class that has some; imports screens only to find it."""
    for kinds in (_loaded, _kinds):
        for kind in kinds():
            if found := tuple(one for one in own_bindings(kind) if one.id == name):
                return found
    raise KeyError(name)


def _loaded(base: type[DOMNode] = DOMNode) -> Iterator[type[DOMNode]]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("tui."):
            yield kind
        yield from _loaded(kind)


def default_keys(app: type[App[None]]) -> dict[str, tuple[str, ...]]:
    """Return each id's keys as they are without a config.toml."""
    found: dict[str, tuple[str, ...]] = {}
    for _, binding in all_bindings(app):
        if binding.id is not None and binding.key not in found.get(binding.id, ()):
            found[binding.id] = (*found.get(binding.id, ()), binding.key)
    return found


def remapped(app: type[App[None]], wanted: KeysOf) -> Remapped:
    """Lay the user's keys over the product's; what is refused keeps its own keys."""
    defaults = default_keys(app)
    refused: list[tuple[str, str, str]] = []
    kept: dict[str, tuple[str, ...]] = {}
    for name, keys in wanted.items():
        if name not in defaults:
            refused.append((name, "no such key binding", did_you_mean(name, defaults, "? lists them with their ids")))
            continue
        normal = tuple(normalized(key) for key in keys)
        if None in normal:
            wrong = keys[normal.index(None)]
            refused.append((name, f"{wrong!r} is no key", _meant(wrong)))
            continue
        kept[name] = tuple(key for key in normal if key is not None)
    groups = tuple(_groups(app))
    usual = _meetings(groups, defaults)
    while clash := _clash(groups, defaults, kept, usual):
        name, other, key, place = clash
        del kept[name]
        refused.append(
            (name, f"{key} is {other} on {place} already", "choose another key, or give that one another, too")
        )
    return Remapped(_complete(app, kept, defaults), tuple(refused))


def normalized(key: str) -> str | None:
    """Return a key's name as Textual has it ('?' is 'question_mark', 'Ctrl+X' is 'ctrl+x'); None where it is no key."""
    *modifiers, last = [key] if len(key) == 1 else key.split("+")
    modifiers = [one.lower() for one in modifiers]
    if last == ",":
        last = "comma"
    elif len(last) > 1:
        last = last.lower()
    if not last or any(one not in MODIFIERS for one in modifiers):
        return None
    if len(last) == 1:
        if modifiers == ["shift"] and last.isalpha():
            return last.upper()
        last = next(iter(Binding.make_bindings([Binding(last, "")]))).key
    elif last not in _names() and key_to_character(last) is None:
        return None
    return "+".join([*(one for one in MODIFIERS if one in modifiers), last])


def _names() -> set[str]:
    return {key.value for key in Keys} | set(KEY_TO_UNICODE_NAME)


def _meant(key: str) -> str:
    known = {*_names(), *(f"{modifier}+" for modifier in MODIFIERS)}
    *modifiers, last = key.lower().split("+")
    wrong = next((one for one in modifiers if one not in MODIFIERS), None)
    return did_you_mean(wrong, MODIFIERS) if wrong else did_you_mean(last, known, "such as x, X, ctrl+x, f9, space")


def _groups(app: type[App[None]]) -> Iterator[tuple[str, tuple[type[DOMNode], ...]]]:
    """Go through what can have the keyboard at once: a widget, its screen and, unless that is a sheet, the app.

    Which widgets a screen is made of is read off its module's imports.
    """
    for screen in screens():
        title = screen.__name__.removesuffix("Screen")
        above: tuple[type[DOMNode], ...] = (screen,) if issubclass(screen, ModalScreen) else (screen, app)
        yield title, above
        for widget in _parts(screen.__module__):
            yield title, (widget, *above)


def _parts(module: str, seen: frozenset[str] = frozenset()) -> set[type[DOMNode]]:
    found: set[type[DOMNode]] = set()
    for kind in vars(import_module(module)).values():
        if isinstance(kind, type) and issubclass(kind, DOMNode) and kind.__module__.startswith("tui."):
            if kind.__module__ == module and not issubclass(kind, Screen):
                found.add(kind)
            elif kind.__module__.startswith("tui.widgets.") and kind.__module__ not in seen | {module}:
                found |= {kind} | _parts(kind.__module__, seen | {module})
    return found


Meetings = dict[frozenset[str], tuple[str, str]]


def _meetings(groups: tuple[tuple[str, tuple[type[DOMNode], ...]], ...], keys: KeysOf) -> Meetings:
    """Return which ids share a key on one screen: the pair, with that key and the screen's name."""
    found: Meetings = {}
    for title, kinds in groups:
        at: dict[str, set[str]] = {}
        for name in {one.id for kind in kinds for one in own_bindings(kind) if one.id is not None}:
            for key in keys[name]:
                at.setdefault(key, set()).add(name)
        for key, names in at.items():
            for one, other in combinations(sorted(names), 2):
                found.setdefault(frozenset((one, other)), (key, title))
    return found


def _clash(
    groups: tuple[tuple[str, tuple[type[DOMNode], ...]], ...], defaults: KeysOf, kept: KeysOf, usual: Meetings
) -> tuple[str, str, str, str] | None:
    """Return the last wish that gets in another binding's way: its id, the other's, their key and where."""
    new = {pair: at for pair, at in _meetings(groups, {**defaults, **kept}).items() if pair not in usual}
    for name in reversed(list(kept)):
        for pair, (key, place) in new.items():
            if name in pair:
                return name, next(iter(pair - {name})), key, place
    return None


def _complete(app: type[App[None]], kept: KeysOf, defaults: KeysOf) -> dict[str, str]:
    """Name also what shares a key with a remapped binding: Textual drops all bindings of a key that one leaves."""
    named = dict(kept)
    for kind in (app, *_kinds()):
        ids = {one.id for one in own_bindings(kind) if one.id is not None}
        touched = {key for name in ids & kept.keys() for key in (*defaults[name], *kept[name])}
        named |= {name: defaults[name] for name in ids - kept.keys() if touched.intersection(defaults[name])}
    return {name: ",".join(keys) for name, keys in named.items()}
