"""The one order in which servers stand, wherever they are listed: what runs, then what has failed, then the rest."""

from __future__ import annotations

from collections.abc import Iterable

from backends.snapshots import Server, ServerState

ENDED_BADLY = (ServerState.FAILED, ServerState.LOST)


def in_order(servers: Iterable[Server]) -> tuple[Server, ...]:
    """Return servers in the order in which they are shown, each group by name."""
    return tuple(sorted(servers, key=lambda one: (not one.is_live, one.state not in ENDED_BADLY, one.name)))
