"""`gpubox fix`: what a remedy changes in the profile of a failed server, as a diff; with --apply, done and started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.client import ensure_keeper
from backends.errors import ConflictError, GpuboxError, NoSuchServerError, ProfileError, UsageError
from backends.snapshots import Server, ServerState
from backends.starts import Card, Remedy
from tui.headless.launch import Wishes, attend_start
from tui.headless.output import say
from tui.launching import profile_error

if TYPE_CHECKING:
    from backends.diagnosis.fix import Fix
    from profiles.store import Store


def fix(store: Store, name: str, *, apply: bool, number: int | None, wishes: Wishes) -> int:
    """Show the change that a remedy makes; with `apply`, write it and start the server again, and attend that.

    `number` counts the card's remedies from 1; without it the first that changes the profile is taken. Raises
    NoSuchServerError, ConflictError where the server has not failed, GpuboxError where there is nothing to change.
    """
    client = ensure_keeper()
    servers = client.snapshot().servers
    server = next((one for one in servers if one.name == name), None)
    if server is None:
        known = ", ".join(sorted(one.name for one in servers)) or "none yet"
        raise NoSuchServerError(f"there is no server {name}", f"known: {known}")
    if server.state not in (ServerState.FAILED, ServerState.BACKOFF):
        raise ConflictError(f"{name} is {server.state}: there is no failure to fix", "gpubox diagnose reads its log")
    content = client.profile(name)
    card = server.card or _read_card(server, content)
    say(f"{name}: {card.summary}")
    planned = _planned(store, server, card, content, number)
    say(f"{_number_of(card, planned.remedy)}. {planned.remedy.text}")
    for note in planned.notes:
        say(f"  {note}")
    if planned.diff:
        print(planned.diff)
    if not apply:
        which = f" --remedy {number}" if number else ""
        say(f"gpubox fix {name}{which} --apply makes this change, and starts {name} again")
        return 0
    from backends.diagnosis.fix import start_request, write

    if server.state is ServerState.BACKOFF:
        raise ConflictError(f"{name} is about to be tried again as it is", f"gpubox stop {name}, then fix it")
    try:
        write(store, planned)
    except OSError as problem:
        raise ProfileError(f"{planned.path} cannot be written: {problem.strerror}") from None
    if planned.path is not None and planned.diff:
        say(f"wrote {planned.path}")
    request = start_request(planned, server, os.environ)
    started = client.restart(name, planned.content) if request is None else client.start(request)
    return attend_start(started, wishes)


def _read_card(server: Server, content: Mapping[str, Any]) -> Card:
    """Read the card out of the log, where the keeper has none."""
    from backends.diagnosis.card import diagnose

    try:
        return diagnose(Path(server.log_path or ""), server.exit, content, port=server.port)
    except OSError as problem:
        raise GpuboxError(f"the log of {server.name} cannot be read: {problem.strerror}") from None


def _planned(store: Store, server: Server, card: Card, content: Mapping[str, Any], number: int | None) -> Fix:
    from backends.diagnosis.fix import applicable, plan
    from profiles.errors import InvalidProfileError

    if number is None:
        can = applicable(card, content)
        if not can:
            do = "; ".join(remedy.text for remedy in card.remedies) or f"gpubox logs {server.name}"
            raise GpuboxError("no change of the profile cures this", do)
        remedy = can[0]
    else:
        if not 0 < number <= len(card.remedies):
            raise UsageError(
                f"there is no remedy {number}", f"gpubox diagnose {server.name} shows {len(card.remedies)}"
            )
        remedy = card.remedies[number - 1]
        if not remedy.set:
            raise UsageError(f"remedy {number} is no change of the profile", remedy.text)
    try:
        return plan(store, server, content, remedy)
    except InvalidProfileError as wrong:
        raise profile_error(wrong) from None


def _number_of(card: Card, remedy: Remedy) -> int:
    return card.remedies.index(remedy) + 1
