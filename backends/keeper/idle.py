"""Since when a server has had no work: nothing runs or waits, and no counter has moved."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backends.snapshots import Metrics, Missing
from backends.switches import Idle

if TYPE_CHECKING:
    from backends.front.link import FrontState
    from backends.keeper.subject import Subject


class Idleness:
    """Follows one server's figures, and shows its `idle` where its profile says when it is put to sleep for that."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._counters: tuple[int, ...] | None = None
        self._since: float | None = None

    def see(self, metrics: Metrics | Missing, front: FrontState | None) -> None:
        """Take in a reading; one that failed tells nothing, and what cannot be seen may be work."""
        now, counters, subject = time.time(), _counters(metrics), self._subject
        is_first = self._counters is None
        works = _at_work(metrics, front) or not (is_first or counters == self._counters)
        if counters is not None and works:
            subject.last_used_at = now
        if front is not None and front.last_request_at is not None:
            subject.last_used_at = max(subject.last_used_at, front.last_request_at)
        if counters is None or works:
            self._since = None
        elif self._since is None:
            # A keeper before this one may have seen it idle already: its front tells when it had its last request.
            self._since = subject.last_used_at if is_first else now
        self._counters = counters or self._counters
        self._show()

    def begin_anew(self) -> None:
        """Count from now on: it was woken, or could not be put to sleep."""
        self._since = None
        self._show()

    @property
    def is_over(self) -> bool:
        """Whether it has been idle for as long as its profile says."""
        ttl_s = self._ttl_s
        return ttl_s is not None and self._since is not None and time.time() - self._since >= ttl_s

    @property
    def _ttl_s(self) -> float | None:
        minutes = self._subject.profile.ttl
        return None if minutes is None else minutes * 60

    def _show(self) -> None:
        ttl_s = self._ttl_s
        idle = Idle(ttl_s, self._since) if ttl_s is not None and self._subject.server.sleep is None else None
        if idle != self._subject.server.idle:
            self._subject.show(idle=idle)


def _counters(metrics: Metrics | Missing) -> tuple[int, ...] | None:
    """Return what grows with each request; None where the engine tells none of it."""
    if isinstance(metrics, Missing):
        return None
    told = (metrics.requests_total, metrics.prompt_tokens_total, metrics.generation_tokens_total)
    known = tuple(one for one in told if not isinstance(one, Missing))
    return known or None


def _at_work(metrics: Metrics | Missing, front: FrontState | None) -> bool:
    if front is not None and front.in_flight + front.held > 0:
        return True
    if isinstance(metrics, Missing):
        return False
    return any(not isinstance(one, Missing) and one > 0 for one in (metrics.running, metrics.waiting))
