"""Carrying a remedy out: the change of the profile's file, visible as a diff, and the profile to start with again."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.diagnosis.masking import masked
from backends.snapshots import Server, StartRequest
from backends.starts import Card, Remedy

if TYPE_CHECKING:
    from profiles.store import Store

_IN_NO_COMMAND = ("name", "description")
"""Keys that change nothing of a start."""


@dataclass(frozen=True, slots=True)
class Fix:
    """What a remedy comes to: the text of the profile's file before and after, and the content to start with.

    `path` is where the file will be, None where no file of the profile's name is there to change: then only the start
    does. `overrides` are settings of the last start that the file does not have; they are kept for the next one.
    """

    server: str
    profile: str
    remedy: Remedy
    before: str
    after: str
    path: Path | None
    is_copy: bool
    content: dict[str, Any]
    overrides: dict[str, Any]

    @property
    def diff(self) -> str:
        """The change as a unified diff; empty where the file says so already."""
        name = f"{self.profile}.toml"
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), f"{name} (now)", f"{name} (fixed)", lineterm="", n=2
        )
        return masked("\n".join(lines))

    @property
    def notes(self) -> list[str]:
        """What a person should know before applying it."""
        said = []
        if self.path is None:
            said.append(f"there is no file of a profile {self.profile}: only the start is changed")
        elif self.is_copy:
            said.append(f"{self.profile} is shipped with gpubox: your own copy will be {self.path}")
        if self.path is not None and not self.diff:
            said.append("the file says so already; the server was started with something else")
        if self.overrides:
            told = sorted(self.overrides.items())
            shown = ", ".join(f"no {key}" if value is None else f"{key} = {value}" for key, value in told)
            said.append(masked(f"it was started with other than the file says, which this start keeps: {shown}"))
        return said


def applicable(card: Card, content: Mapping[str, Any]) -> tuple[Remedy, ...]:
    """Return a card's remedies that change the profile, and leave it a valid one."""
    from profiles.changes import changed
    from profiles.errors import InvalidProfileError
    from profiles.schema import parse_profile

    found = []
    for remedy in card.remedies:
        if remedy.set:
            try:
                after = changed(content, remedy.set)
                parse_profile(after, "")
            except InvalidProfileError:
                continue
            if after != content:
                found.append(remedy)
    return tuple(found)


def plan(store: Store, server: Server, content: Mapping[str, Any], remedy: Remedy) -> Fix:
    """Work out what a remedy changes; `content` is the profile that the server was started with, overrides merged.

    Raises InvalidProfileError where the result would be no profile.
    """
    from profiles.changes import changed, changed_text, differences
    from profiles.errors import InvalidProfileError
    from profiles.schema import parse_profile
    from profiles.store import parse_text

    after = changed(content, remedy.set)
    parse_profile(after, server.profile)
    try:
        loaded = store.load(server.profile)
    except InvalidProfileError:
        import tomli_w

        before = tomli_w.dumps(dict(content))
        text = changed_text(before, remedy.set)
        return Fix(server.name, server.profile, remedy, before, text, None, False, after, {})
    text = changed_text(loaded.text, remedy.set)
    is_copy = loaded.origin == "library"
    path = loaded.path
    if is_copy:
        path = next(place.folder for place in store.places if place.origin != "library") / loaded.path.name
    parse_text(text, path)
    told_apart = differences(loaded.data, content).items()
    overrides = {key: value for key, value in told_apart if key not in remedy.set and key not in _IN_NO_COMMAND}
    return Fix(server.name, server.profile, remedy, loaded.text, text, path, is_copy, after, overrides)


def write(store: Store, fix: Fix) -> None:
    """Write the file as the diff shows it, whole or not at all; raises InvalidProfileError, OSError."""
    if fix.path is not None and fix.diff:
        store.write_text(fix.profile, fix.after, overwrite=True)


def start_request(fix: Fix, server: Server, environ: Mapping[str, str]) -> StartRequest | None:
    """Return how to start the server anew; None where it can be restarted as it was, with the fix's content.

    Another number of GPUs lets the keeper choose them; a key is taken from `environ`, since the last start had none.
    """
    from profiles.schema import parse_profile

    profile = parse_profile(fix.content, server.profile)
    needed = 0 if profile.gpus == "cpu" else profile.gpus
    is_other = needed != len(server.gpus) or "port" in fix.remedy.set
    if not is_other and not any(key.startswith("secrets.") for key in fix.remedy.set):
        return None
    gpus = (server.gpus or ("cpu",)) if needed == len(server.gpus) else ("auto",) if needed else ("cpu",)
    port = None
    if "port" not in fix.remedy.set and profile.port not in ("auto", server.port):
        port = server.port
    return StartRequest(fix.content, dict(environ), server.name, gpus, port)
