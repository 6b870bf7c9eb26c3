"""The legal transitions of a server, in one table."""

from __future__ import annotations

from backends.snapshots import ServerState as S

ANYWHERE = frozenset({S.FAILED, S.LOST})
"""A launch can fail, or its shim vanish, in every state that has a process."""

TRANSITIONS: dict[S, frozenset[S]] = {
    S.STOPPED: frozenset({S.QUEUED, S.STARTING}),
    S.QUEUED: frozenset({S.STARTING, S.STOPPING, S.STOPPED, S.BACKOFF}) | ANYWHERE,
    S.STARTING: frozenset({S.READY, S.STOPPING, S.BACKOFF}) | ANYWHERE,
    S.READY: frozenset({S.UNRESPONSIVE, S.DRAINING, S.STOPPING, S.FALLING_ASLEEP, S.SLEEPING, S.BACKOFF}) | ANYWHERE,
    S.UNRESPONSIVE: frozenset({S.READY, S.SLEEPING, S.DRAINING, S.STOPPING, S.BACKOFF}) | ANYWHERE,
    S.DRAINING: frozenset({S.STOPPING, S.STOPPED}) | ANYWHERE,
    S.STOPPING: frozenset({S.STOPPED}) | ANYWHERE,
    S.BACKOFF: frozenset({S.STARTING, S.QUEUED, S.STOPPED}) | ANYWHERE,
    S.FALLING_ASLEEP: frozenset({S.SLEEPING, S.READY, S.STOPPING, S.BACKOFF}) | ANYWHERE,
    S.SLEEPING: frozenset({S.WAKING, S.READY, S.UNRESPONSIVE, S.STOPPING, S.BACKOFF}) | ANYWHERE,
    S.WAKING: frozenset({S.READY, S.SLEEPING, S.STOPPING, S.BACKOFF}) | ANYWHERE,
    S.FAILED: frozenset({S.QUEUED, S.STARTING, S.STOPPED}),
    S.LOST: frozenset({S.QUEUED, S.STARTING, S.STOPPED}),
}


def check(source: S, target: S) -> None:
    """Assert that a server may go from `source` to `target`; an AssertionError here is a bug of ours."""
    assert target in TRANSITIONS[source], f"illegal transition {source} → {target}"
