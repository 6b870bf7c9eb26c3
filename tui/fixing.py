"""From a failed server to its cure: what each remedy would change, and the change made; used by the screen."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.errors import ProfileError
from backends.link import KeeperLink
from backends.snapshots import Server
from backends.starts import Remedy
from tui.launching import profile_error

if TYPE_CHECKING:
    from backends.diagnosis.fix import Fix
    from profiles.store import Store


@dataclass(frozen=True, slots=True)
class Choice:
    """A remedy of a card, and what it would change; `why_not` says why it is nothing that can be applied."""

    remedy: Remedy
    fix: Fix | None
    why_not: str = ""


def choices(store: Store | None, server: Server, content: Mapping[str, Any]) -> tuple[Choice, ...]:
    """Return the remedies of a server's card with their changes; reads the profile's file."""
    return tuple(_choice(store, server, content, remedy) for remedy in (server.card.remedies if server.card else ()))


def _choice(store: Store | None, server: Server, content: Mapping[str, Any], remedy: Remedy) -> Choice:
    from backends.diagnosis.fix import plan
    from profiles.errors import InvalidProfileError

    if not remedy.set:
        return Choice(remedy, None, "This is not in the profile: it is for you to do.")
    if store is None:
        return Choice(remedy, None, "There are no profiles here.")
    try:
        return Choice(remedy, plan(store, server, content, remedy))
    except InvalidProfileError as wrong:
        return Choice(remedy, None, f"The profile would not be valid: {profile_error(wrong).message}")


async def carry_out(link: KeeperLink, store: Store, server: Server, fix: Fix) -> Server:
    """Write the profile's file, and start the server again with the change; raises GpuboxError."""
    from backends.diagnosis.fix import start_request, write

    try:
        await asyncio.to_thread(write, store, fix)
    except OSError as problem:
        raise ProfileError(f"{fix.path} cannot be written: {problem.strerror}") from None
    request = await asyncio.to_thread(start_request, fix, server, os.environ)
    return await (link.restart(server.name, fix.content) if request is None else link.start(request))
