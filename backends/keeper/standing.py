"""How things stand before a switch: from servers, box and host memory to a plan, or to why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from backends.errors import ConflictError, GpuBusyError, NoSuchServerError, ProfileError, UsageError
from backends.gpus.selection import find
from backends.gpus.visibility import bound_by_environment
from backends.keeper.allocation import choose_gpus, fixed_need, reserved
from backends.keeper.levels import Choice, Dozer, HostRoom, Sleeper, choose
from backends.keeper.measure import model_folder, weights_bytes
from backends.keeper.planning import CPU, Ceding, Place, Tenant, best_group, cede, place_of
from backends.keeper.rooms import LEFT_ASLEEP_BYTES
from backends.settings import read_settings
from backends.snapshots import Box, Grant, Missing, ServerState, StartRequest, SwitchRequest
from backends.switches import GivingWay, Level, Way, Yield
from profiles.errors import InvalidProfileError
from profiles.schema import parse_profile

if TYPE_CHECKING:
    from backends.keeper.boxwatch import BoxWatch
    from backends.keeper.supervisor import Supervisor
    from backends.records import Records
    from backends.snapshots import Gpu, Server
    from profiles.schema import Profile

STALE_BYTES = 256 << 20
"""Who takes or gives back so much of a GPU is looked for anew."""

GOING = (ServerState.STOPPING, ServerState.DRAINING)
ASLEEP = (ServerState.SLEEPING, ServerState.FALLING_ASLEEP)


class Books(Protocol):
    """What switching asks of the keeper's servers."""

    def supervisors(self) -> Mapping[str, Supervisor]:
        """Return all servers, by name."""
        ...

    async def start(self, request: StartRequest) -> Server:
        """Start a server."""
        ...

    async def restart(self, name: str) -> Server:
        """Start a server that has ended, as it was."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a switch is to do: how the server comes to serve, who gives way, who of them serves now, and all places."""

    way: Way
    giving: tuple[GivingWay, ...]
    served: tuple[str, ...]
    places: tuple[str, ...]
    start: StartRequest | None = None


class Standing:
    """Looks at how things stand, for each decision anew."""

    def __init__(self, books: Books, box: BoxWatch, records: Records) -> None:
        self._books = books
        self._box = box
        self._records = records

    def named(self, name: str) -> Supervisor:
        """Return a server's supervisor; raises NoSuchServerError."""
        supervisors = self._books.supervisors()
        if name not in supervisors:
            known = ", ".join(sorted(supervisors)) or "none yet"
            raise NoSuchServerError(f"there is no server {name}", f"known: {known}")
        return supervisors[name]

    async def plan(self, request: SwitchRequest, busy: Mapping[str, str]) -> Plan:
        """Decide a switch; `busy` are servers that do not give way now, and why.

        Raises GpuBusyError, and what a start raises; ConflictError where the server is in no state to serve.
        """
        supervisor = self._books.supervisors().get(request.name)
        box = await self._seen()
        if supervisor is not None and supervisor.server.is_live and supervisor.server.state not in GOING:
            state = supervisor.server.state
            if state in (ServerState.UNRESPONSIVE, ServerState.BACKOFF):
                raise ConflictError(f"server {request.name} is {state}", "stop or restart it first")
            needs = supervisor.needs or {CPU: None}
            ceding: tuple[Ceding, ...] = ()
            if state is not ServerState.READY:
                ceding = cede(request.name, needs, self._places(box), self._tenants(box, busy))
            return await self._decided(request, way_of(supervisor), box, ceding, tuple(needs), None)
        start = self._start_of(request)
        profile = _profile_of(start)
        places, ceding = await self._placed(start, profile, box, busy)
        at = start.gpus if CPU in places else places
        return await self._decided(request, Way.START, box, ceding, places, replace(start, gpus=at))

    async def level(self, name: str, asked: Level | None, busy: Collection[str]) -> Choice:
        """Return how one server sleeps now, and who stops for the host memory of that."""
        box = await self._box.box()
        return (await self._levels([self.named(name)], asked, box, {name, *busy}))[0]

    def weights(self, supervisor: Supervisor) -> int | None:
        """Return the size of a server's weights over all its GPUs, in bytes; None where not known. Reads a folder."""
        server = supervisor.server
        if server.figures is not None and server.figures.weights_bytes is not None:
            return server.figures.weights_bytes * max(1, len(server.gpus))
        folder = _weights_folder(supervisor.record.profile, supervisor.record.environ)
        return weights_bytes(folder) if folder is not None else None

    async def _seen(self) -> Box:
        """Return the newest reading of the box, or a new one where GPUs' memory has changed since."""
        box = await self._box.box()
        now = await self._box.memory_now(tuple(gpu.uuid for gpu in box.gpus))
        for gpu in box.gpus:
            memory = now[gpu.uuid]
            if isinstance(memory, Missing) or isinstance(gpu.memory_used_bytes, Missing):
                continue
            if abs(memory.used_bytes - gpu.memory_used_bytes) > STALE_BYTES:
                return await self._box.fresh()
        return box

    async def _decided(
        self,
        request: SwitchRequest,
        way: Way,
        box: Box,
        ceding: Iterable[Ceding],
        places: tuple[str, ...],
        start: StartRequest | None,
    ) -> Plan:
        supervisors = self._books.supervisors()
        asleep = [one.server for one in ceding if one.asleep]
        kept_from = {request.name, *(one.server for one in ceding)}
        choices = await self._levels([supervisors[name] for name in asleep], request.level, box, kept_from)
        how = dict(zip(asleep, choices, strict=True))
        giving, touched = [], set(places)
        for one in ceding:
            choice = how.get(one.server)
            if choice is None:
                giving.append(GivingWay(one.server, Yield.STOP, one.why or _cannot_sleep(supervisors[one.server])))
                continue
            why = f"{one.server} takes the host memory that it has pinned"
            giving += [GivingWay(stopped, Yield.STOP, why) for stopped in choice.stops]
            giving.append(GivingWay(one.server, choice.how, choice.why))
        for giver in giving:
            touched |= set(supervisors[giver.server].record.gpus)
        ready = [one.server for one in giving if supervisors[one.server].server.state is ServerState.READY]
        return Plan(way, tuple(giving), tuple(ready), tuple(sorted(touched)), start)

    async def _levels(
        self, dozers: list[Supervisor], asked: Level | None, box: Box, kept_from: Collection[str]
    ) -> list[Choice]:
        if not dozers:
            return []
        others = self._books.supervisors().values()
        pinned = sum(one.server.host_bytes for one in others if one.server.is_live)
        sleepers = [
            Sleeper(one.record.name, one.server.host_bytes, one.last_used_at)
            for one in others
            if one.server.state is ServerState.SLEEPING and one.record.name not in kept_from
        ]
        weights, most = await asyncio.to_thread(self._sizes, dozers, box.host.memory_total_bytes)
        room = HostRoom(box.host.memory_available_bytes, pinned, most)
        choices: list[Choice] = []
        for supervisor, size in zip(dozers, weights, strict=True):
            server, name = supervisor.server, supervisor.record.name
            lora = bool(supervisor.record.profile.get("args", {}).get("enable_lora"))
            cannot = "" if server.can_sleep else _cannot_sleep(supervisor)
            choice = choose(Dozer(name, size, server.host_bytes, lora, cannot), room, sleepers, asked)
            room, sleepers = choice.room, [one for one in sleepers if one.server not in choice.stops]
            choices.append(choice)
        return choices

    def _sizes(self, dozers: list[Supervisor], host_bytes: int) -> tuple[list[int | None], int]:
        return [self.weights(one) for one in dozers], read_settings().max_sleeping_host_bytes(host_bytes)

    async def _placed(
        self, start: StartRequest, profile: Profile, box: Box, busy: Mapping[str, str]
    ) -> tuple[tuple[str, ...], tuple[Ceding, ...]]:
        """Return where a server is started, and who gives way there: nobody, where `auto` finds what is free."""
        name, tenants = start.name or profile.name, self._tenants(box, busy)
        fixed_bytes = await asyncio.to_thread(fixed_need, profile, start.environ, box, self._records)
        box = _without(box, name)
        try:
            chosen = choose_gpus(profile, start, box, fixed_bytes).gpus
        except GpuBusyError:
            chosen = ()
        else:
            if not chosen:
                return (CPU,), cede(name, {CPU: None}, self._places(box), tenants)
            if not busy.keys() & {grant.server for gpu in chosen for grant in gpu.grants if grant.ours}:
                return tuple(gpu.uuid for gpu in chosen), ()
        places = [place_of(gpu) for gpu in box.gpus]
        asked = start.gpus or ("auto",)
        if asked != ("auto",):
            named = tuple(find(box.gpus, one) for one in asked)
            needs = reserved(profile, named, fixed_bytes)
            return tuple(gpu.uuid for gpu in named), cede(name, needs, places, tenants)
        count = profile.gpus
        if not isinstance(count, int):
            raise UsageError(f"profile {profile.name} is for the CPU", "say --gpus cpu")
        bound = bound_by_environment(box.gpus, start.environ.get("CUDA_VISIBLE_DEVICES"))
        able = tuple(gpu for gpu in bound if not gpu.refusal)
        needs = reserved(profile, able, fixed_bytes)
        return best_group(name, count, needs, [one for one in places if one.id in needs], tenants)

    def _start_of(self, request: SwitchRequest) -> StartRequest:
        if request.start is not None:
            return replace(request.start, name=request.name, asleep=False)
        record = self.named(request.name).record
        gpus = record.gpus or (CPU,)
        return StartRequest(record.profile, record.environ, record.name, gpus, record.asked_port, record.profile_digest)

    def _places(self, box: Box) -> list[Place]:
        on_cpu = [
            one.record for one in self._books.supervisors().values() if one.server.is_live and not one.record.gpus
        ]
        cpu = Place(CPU, "the CPU", None, tuple(Grant(record.name, "") for record in on_cpu))
        return [*(place_of(gpu) for gpu in box.gpus), cpu]

    def _tenants(self, box: Box, busy: Mapping[str, str]) -> list[Tenant]:
        tenants = []
        for name, supervisor in self._books.supervisors().items():
            server = supervisor.server
            if not server.is_live:
                continue
            has = _granted(box.gpus, name) if server.gpus else {CPU: None}
            keeps = None
            if server.can_sleep and server.state is ServerState.READY:
                keeps = dict.fromkeys(has, LEFT_ASLEEP_BYTES) | supervisor.record.asleep_bytes
            sleeps = server.state in ASLEEP
            tenants.append(Tenant(name, has, supervisor.last_used_at, keeps, sleeps, busy.get(name, "")))
        return tenants


def way_of(supervisor: Supervisor) -> Way:
    """Return how a server that lives comes to serve; one that is half awake is started again."""
    server = supervisor.server
    if server.state is ServerState.READY:
        return Way.AWAKE
    if supervisor.half_awake:
        return Way.START
    if server.state in ASLEEP or server.state is ServerState.WAKING:
        return Way.WAKE_2 if server.sleep is not None and server.sleep.level == 2 else Way.WAKE_1
    return Way.START


def weights_files(profile: Mapping[str, Any], environ: Mapping[str, str]) -> list[Path]:
    """Return the files of a model's weights on this machine, where they can be found; reads a folder."""
    folder = _weights_folder(profile, environ)
    return sorted(folder.glob("*.safetensors")) if folder is not None else []


def _weights_folder(content: Mapping[str, Any], environ: Mapping[str, str]) -> Path | None:
    try:
        profile = parse_profile(content, "the profile")
        folder = model_folder(profile, {**environ, **profile.env})
        snapshots = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime) if folder else []
    except (InvalidProfileError, OSError):
        return None
    return snapshots[-1] if snapshots else folder


def _profile_of(start: StartRequest) -> Profile:
    try:
        return parse_profile(start.profile, "the profile")
    except InvalidProfileError as problem:
        raise ProfileError(str(problem)) from problem


def _granted(gpus: Iterable[Gpu], name: str) -> dict[str, int | None]:
    granted = ((gpu.uuid, grant) for gpu in gpus for grant in gpu.grants)
    return {uuid: grant.memory_bytes for uuid, grant in granted if grant.ours and grant.server == name}


def _without(box: Box, name: str) -> Box:
    """Return the box as it is once an earlier launch of a server has let go."""
    return replace(
        box,
        gpus=tuple(
            replace(gpu, grants=tuple(one for one in gpu.grants if not (one.ours and one.server == name)))
            for gpu in box.gpus
        ),
    )


def _cannot_sleep(supervisor: Supervisor) -> str:
    server = supervisor.server
    if server.state in ASLEEP:
        return ""
    if not server.can_sleep:
        return "its profile does not say sleep = true" if server.gpus else "a server on the CPU cannot sleep"
    return f"it is {server.state}"
