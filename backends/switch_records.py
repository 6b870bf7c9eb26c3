"""The switches on record, beside the launches; and how long one may take, by those of the past.

As with `backends.records`: what cannot be read is empty, and `Records.problem` says why.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from backends.switches import GivingWay, Switch, Way, Yield

if TYPE_CHECKING:
    from backends.records import Records

LEARNT_FROM = 200
"""So many of the newest switches are looked through for what one takes."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step of a switch that is over, and how long it took of which server."""

    name: str
    server: str
    took_s: float


@dataclass(frozen=True, slots=True)
class SwitchRecord:
    """A switch to `server` that is over; `way` is how it came to serve, `gave_way` who made room for it, and how.

    `at` is Unix seconds, when it was asked for; `outcome` is `done`, `restored` or `failed`.
    """

    id: str
    server: str
    gave_way: tuple[GivingWay, ...]
    way: Way
    at: float
    outcome: str
    error: str | None
    took_s: float | None
    steps: tuple[StepTime, ...]


def record_of(switch: Switch, way: Way, gave_way: Sequence[GivingWay]) -> SwitchRecord:
    """Return what is put on record of a switch that is over."""
    steps = tuple(StepTime(one.name, one.server, one.took_s) for one in switch.steps if one.took_s is not None)
    return SwitchRecord(
        switch.id,
        switch.to,
        tuple(gave_way),
        way,
        switch.began_at,
        switch.outcome,
        switch.error,
        switch.took_s,
        steps,
    )


def add(records: Records, switch: SwitchRecord) -> bool:
    """Write a switch down, over what is there of it by its id; returns whether that could be done."""
    row = (
        switch.id,
        switch.server,
        json.dumps([[one.server, one.how, one.why] for one in switch.gave_way]),
        switch.way,
        switch.at,
        switch.outcome,
        switch.error,
        switch.took_s,
        json.dumps([[one.name, one.server, one.took_s] for one in switch.steps]),
    )
    return records.change(
        lambda db: db.execute("INSERT OR REPLACE INTO switches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    )


def switches(records: Records, name: str | None = None, limit: int = 50) -> tuple[SwitchRecord, ...]:
    """Return the newest switches to the server `name`, or in which it gave way, or all; newest first."""

    def read(db: sqlite3.Connection) -> tuple[SwitchRecord, ...]:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'switches'").fetchone():
            return ()  # no newer keeper has written yet
        rows = (_switch(row) for row in db.execute("SELECT * FROM switches ORDER BY at DESC, id DESC"))
        found = []
        for one in rows:
            if name is None or name in (one.server, *(giver.server for giver in one.gave_way)):
                found.append(one)
            if len(found) == limit:
                break
        return tuple(found)

    return records.read(read, ())


class Past:
    """What earlier switches took; every figure is a median in seconds, None where there was none."""

    def __init__(self, records: Records) -> None:
        self._switches = [one for one in switches(records, limit=LEARNT_FROM) if one.outcome == "done"]

    def giving_s(self, server: str, how: Yield) -> float | None:
        """Return how long a server takes to give way in this manner, drain included."""
        took = [
            sum(step.took_s for step in one.steps if step.server == server)
            for one in self._switches
            if any((giver.server, giver.how) == (server, how) for giver in one.gave_way)
        ]
        return median(took) if took else None

    def taking_s(self, server: str, way: Way) -> float | None:
        """Return how long a server takes, once there is room, from its wake-up or start to its first token."""
        took = [
            sum(step.took_s for step in one.steps if step.server == server)
            for one in self._switches
            if (one.server, one.way) == (server, way)
        ]
        return median(took) if took else None


def _switch(row: sqlite3.Row) -> SwitchRecord:
    return SwitchRecord(
        row["id"],
        row["server"],
        tuple(GivingWay(server, Yield(how), why) for server, how, why in json.loads(row["gave_way"])),
        Way(row["way"]),
        row["at"],
        row["outcome"],
        row["error"],
        row["took_s"],
        tuple(StepTime(*step) for step in json.loads(row["steps"])),
    )
