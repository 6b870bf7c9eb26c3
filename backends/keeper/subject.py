"""One server's record and newest state, and the only ways to change them: each is written down or told at once."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from backends.engines.base import Engine
from backends.keeper.fronts import Front
from backends.keeper.record import Record, first_state, save, server_of
from backends.keeper.states import check
from backends.keeper.surroundings import Surroundings
from backends.processes.facts import ProcessFacts, read_facts
from backends.snapshots import Event, EventUpdate, Missing, ServerState, ServerUpdate

if TYPE_CHECKING:
    from profiles.schema import Profile

log = logging.getLogger(__name__)


class Subject:
    """What a server's supervisor and those who follow its engine share; `server` is what clients see.

    `doomed` says that a process has died which the engine cannot do without: whatever it answers, it is not well.
    `front` is there where the engine listens on a socket; `last_used_at` is when it last had work, as far as is known.
    """

    def __init__(
        self, record: Record, profile: Profile, engine: Engine, around: Surroundings, state: ServerState
    ) -> None:
        self.record = record
        self.profile = profile
        self.engine = engine
        self.around = around
        self.doomed = False
        self.server = server_of(record, profile, engine, state)
        self.last_used_at = record.last_used_at or record.ready_at or record.launched_at
        self.front = Front(self) if record.uds is not None else None

    @property
    def name(self) -> str:
        """The server's name."""
        return self.record.name

    @property
    def state(self) -> ServerState:
        """Where the server is in its life."""
        return self.server.state

    def become(self, state: ServerState, **changes: object) -> None:
        """Go to another state, by a legal transition."""
        check(self.server.state, state)
        self.show(state=state, state_since=time.time(), **changes)

    def begin_again(self) -> None:
        """Go to the first state of a launch that has just been put on record."""
        state = first_state(self.record)
        check(self.server.state, state)
        self.doomed = False
        self.server = server_of(self.record, self.profile, self.engine, state)
        self.around.hub.publish(ServerUpdate(self.server))

    def show(self, **changes: object) -> None:
        """Change what clients see."""
        self.server = replace(self.server, **changes)  # type: ignore[arg-type]
        self.around.hub.publish(ServerUpdate(self.server))

    def keep(self, *, durable: bool = True, **changes: object) -> None:
        """Change the record, on disk too; what is not `durable` a power cut may undo."""
        self.record = replace(self.record, **changes)  # type: ignore[arg-type]
        try:
            save(self.record, durable=durable)
        except OSError as problem:
            log.warning("the record of %s cannot be written: %s", self.name, problem)

    def tell(self, kind: str, text: str) -> None:
        """Publish an event of this server."""
        self.around.hub.publish(EventUpdate(Event(time.time(), self.name, kind, text)))

    def facts(self) -> ProcessFacts | None:
        """Return what the newest launch's shim wrote down, once it has."""
        facts = read_facts(self.record.facts_path)
        return None if isinstance(facts, Missing) else facts

    def running_requests(self) -> int:
        """Return how many requests the engine works on or has waiting, as far as it tells."""
        metrics, seen = self.server.metrics, self.front.seen if self.front is not None else None
        passed = seen.in_flight if seen is not None else 0
        if isinstance(metrics, Missing) or isinstance(metrics.running, Missing):
            return passed
        return max(passed, metrics.running + (0 if isinstance(metrics.waiting, Missing) else metrics.waiting))

    def api_key(self) -> str | None:
        """Return the key that the engine asks for, from where the profile says it is."""
        from profiles.secrets import resolve_secrets

        return resolve_secrets(self.profile, self.record.environ).get("VLLM_API_KEY")
