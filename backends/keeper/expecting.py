"""What a switch to each server would do now, and how long it may take by the switches and starts of the past."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING

from backends.errors import GpuboxError
from backends.keeper.planning import CPU as ON_CPU
from backends.records import CPU
from backends.snapshots import Missing, ServerState, SwitchRequest
from backends.switch_records import Past
from backends.switches import NOT_KNOWN, SwitchChoice, Way, Yield
from profiles.errors import InvalidProfileError
from profiles.schema import parse_profile

if TYPE_CHECKING:
    from backends.keeper.standing import Plan, Standing
    from backends.keeper.supervisor import Supervisor
    from backends.records import Records
    from backends.snapshots import Box

COMING = (ServerState.QUEUED, ServerState.STARTING, ServerState.WAKING)


class Expecting:
    """Looks ahead once, on a box as it stands."""

    def __init__(self, records: Records, standing: Standing, box: Box) -> None:
        self._records = records
        self._standing = standing
        self._box = box

    async def choices(self, supervisors: Mapping[str, Supervisor], busy: Mapping[str, str]) -> tuple[SwitchChoice, ...]:
        """Return what a switch to each of the servers would do, by name; `busy` do not give way now, and why."""
        past = await asyncio.to_thread(Past, self._records)
        return tuple([await self._choice(supervisors[name], busy, past) for name in sorted(supervisors)])

    async def _choice(self, supervisor: Supervisor, busy: Mapping[str, str], past: Past) -> SwitchChoice:
        name = supervisor.record.name
        weights = await asyncio.to_thread(self._standing.weights, supervisor)
        size: int | Missing = NOT_KNOWN if weights is None else weights
        others = {one: why for one, why in busy.items() if one != name}
        try:
            plan = await self._standing.plan(SwitchRequest(name), others)
        except GpuboxError as problem:
            return SwitchChoice(name, Way.CANNOT, size_bytes=size, note=problem.message)
        expected_s = await asyncio.to_thread(self._expected_s, supervisor, plan, past)
        return SwitchChoice(name, plan.way, plan.giving, expected_s, size, self._note(supervisor, plan))

    def _expected_s(self, supervisor: Supervisor, plan: Plan, past: Past) -> float | None:
        name = supervisor.record.name
        if plan.way is Way.AWAKE:
            return 0.0
        taking_s = past.taking_s(name, plan.way)
        if plan.way is Way.START:
            taking_s = self._start_s(supervisor, plan) or taking_s
        giving = [past.giving_s(giver.server, giver.how) for giver in plan.giving]
        if taking_s is None or (None in giving and plan.way is not Way.START):
            return None
        return taking_s + max((took_s for took_s in giving if took_s is not None), default=0.0)

    def _start_s(self, supervisor: Supervisor, plan: Plan) -> float | None:
        """Return the median of starts alike: those that took compiled code from the cache, where there are such."""
        try:
            profile = parse_profile(supervisor.record.profile, "the profile")
        except InvalidProfileError:
            return None
        kinds = {gpu.name for gpu in self._box.gpus if gpu.uuid in plan.places}
        kind = CPU if ON_CPU in plan.places else ", ".join(sorted(kinds))
        count = profile.gpus if isinstance(profile.gpus, int) and kind != CPU else 0
        earlier = self._records.earlier(profile, kind, count)
        cached = [one for one in earlier if one.compile_cached]
        took = [one.start_s for one in cached or earlier if one.start_s is not None]
        return median(took) if took else None

    def _note(self, supervisor: Supervisor, plan: Plan) -> str:
        if supervisor.server.state in COMING:
            return f"it is {supervisor.server.state} already"
        pinning = [one.server for one in plan.giving if one.how is Yield.SLEEP_1 and not self._has_pinned(one.server)]
        return f"the first sleep of {', '.join(pinning)} takes some seconds: it pins host memory" if pinning else ""

    def _has_pinned(self, name: str) -> bool:
        return self._standing.named(name).server.host_bytes > 0
