"""The product's own key bindings, apart from those that Textual brings along: which there are here, and doing them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from textual.actions import parse
from textual.binding import Binding
from textual.dom import DOMNode
from textual.screen import Screen

if TYPE_CHECKING:
    from tui.app import GpuboxApp


@cache
def own_bindings(kind: type[DOMNode]) -> tuple[Binding, ...]:
    """Return the bindings that this product gives to a class of nodes, one for each key; Textual's own are left out."""
    keys: dict[str, tuple[bool, list[Binding]]] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, DOMNode):
            ours: dict[str, tuple[bool, list[Binding]]] = {}
            for binding in Binding.make_bindings(base.__dict__.get("BINDINGS", ())):
                ours.setdefault(binding.key, (base.__module__.startswith("tui."), []))[1].append(binding)
            keys |= ours
    return tuple(one for is_ours, found in keys.values() if is_ours for one in found)


def bindings_here(app: GpuboxApp, screen: Screen[object]) -> Iterator[tuple[DOMNode, Binding, bool]]:
    """Go through the product's bindings of the focused part, its screen and the app: each id once, offered or not."""
    nodes: list[DOMNode] = [screen, app] if screen.focused is None else list(screen.focused.ancestors_with_self)
    seen: set[str] = set()
    for node in nodes:
        for binding in own_bindings(type(node)):
            if (name := binding.id or binding.action) not in seen:
                seen.add(name)
                yield node, binding, _is_offered(app, screen, node, binding)
        if node.is_modal:
            return


def shown_as(app: GpuboxApp, binding: Binding) -> Binding:
    """Return a binding with the first of the keys that the user has given it."""
    keys = app.keymap.get(binding.id or "")
    return binding if keys is None else binding.with_key(keys.partition(",")[0])


def _target(app: GpuboxApp, screen: Screen[object], node: DOMNode, destination: str) -> DOMNode:
    return {"app": app, "screen": screen}.get(destination, node)


def _is_offered(app: GpuboxApp, screen: Screen[object], node: DOMNode, binding: Binding) -> bool:
    destination, name, parameters = parse(binding.action)
    return bool(_target(app, screen, node, destination).check_action(name, parameters))


async def run_binding(app: GpuboxApp, screen: Screen[object], node: DOMNode, binding: Binding) -> None:
    """Do what a binding's key would have done on its screen."""
    destination, name, parameters = parse(binding.action)
    await app.run_action(("", name, parameters), _target(app, screen, node, destination))


def keys_shown(app: GpuboxApp, node: DOMNode, binding: Binding) -> str:
    """Return all keys of a binding as people read them, those that the user has given it where there are any."""
    if (remapped := app.keymap.get(binding.id or "")) is not None:
        return " ".join(app.get_key_display(binding.with_key(key)) for key in remapped.split(","))
    every = [one for one in own_bindings(type(node)) if one.id == binding.id and one.action == binding.action]
    return " ".join(app.get_key_display(one) for one in every)
