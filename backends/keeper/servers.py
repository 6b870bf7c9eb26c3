"""All servers of the keeper: who holds which GPU and port is decided here, one grant at a time."""

from __future__ import annotations

import asyncio
import getpass
import logging
import re
import time

from backends import paths
from backends.engines.registry import engine_named
from backends.errors import ConflictError, NoSuchServerError, ProfileError, UsageError
from backends.gpus.selection import Selection, select
from backends.keeper.launching import launch_name
from backends.keeper.ports import choose_port
from backends.keeper.record import Record, read_all, save
from backends.keeper.supervisor import Supervisor
from backends.keeper.surroundings import Surroundings
from backends.processes.facts import ProcessFacts, read_facts
from backends.processes.logs import new_log_path
from backends.snapshots import (
    Box,
    Connection,
    Gpu,
    Grant,
    Missing,
    Server,
    ServerRemoved,
    ServerState,
    ServerUpdate,
    StartRequest,
)
from profiles.errors import InvalidProfileError
from profiles.schema import Profile, parse_profile
from profiles.secrets import resolve_secrets

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VLLM_SMALLEST_DEFAULT_UTILIZATION = 0.9
"""vLLM's default has been 0.9 and 0.92: the smaller one decides what is refused before it is tried."""


class Servers:
    """The keeper's books; every method runs on the keeper's event loop."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._supervisors: dict[str, Supervisor] = {}
        self._granting = asyncio.Lock()

    def snapshots(self) -> tuple[Server, ...]:
        """Return the newest state of each server, by name."""
        return tuple(self._supervisors[name].server for name in sorted(self._supervisors))

    def any_live(self) -> bool:
        """Whether a server has, or is about to have, a process."""
        return any(supervisor.server.is_live for supervisor in self._supervisors.values())

    def grants(self) -> dict[str, tuple[Grant, ...]]:
        """Return what is granted of each GPU, by UUID."""
        user = getpass.getuser()
        return {uuid: (Grant(s.name, user),) for s in self.snapshots() if s.is_live for uuid in s.gpus}

    def taken_ports(self) -> set[int]:
        """Return the ports that servers have, or are about to have."""
        return {s.port for s in self.snapshots() if s.is_live}

    def roots(self) -> dict[int, str]:
        """Return the shims' pids with their servers' names."""
        live = [supervisor for supervisor in self._supervisors.values() if supervisor.server.is_live]
        return {pid: one.record.name for one in live if (pid := one.shim_pid) is not None}

    def adopt_all(self) -> None:
        """Take up every server on record: follow those that run, remember how the others ended."""
        for record in read_all():
            try:
                profile = parse_profile(record.profile, f"server {record.name}")
                engine = engine_named(profile.engine)
            except (InvalidProfileError, ProfileError) as problem:
                log.warning("server %s cannot be taken up: %s", record.name, problem)
                continue
            facts = read_facts(record.facts_path)
            state = _state_on_record(record, facts)
            supervisor = Supervisor(record, profile, engine, self._around, state)
            self._supervisors[record.name] = supervisor
            if not record.ended:
                supervisor.adopt()

    async def start(self, request: StartRequest) -> Server:
        """Grant GPUs and a port, write the record, and launch.

        Raises ProfileError, NoSuchGpuError, GpuBusyError, UsageError, or ConflictError where the name or port is taken.
        """
        try:
            profile = parse_profile(request.profile, "the profile")
            resolve_secrets(profile, request.environ)
        except InvalidProfileError as problem:
            raise ProfileError(str(problem)) from problem
        name = request.name or profile.name
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be a server's name", "use a-z, 0-9, '.', '_' and '-'")
        engine = engine_named(profile.engine)
        async with self._granting:
            before = self._supervisors.get(name)
            if before is not None and before.server.is_live:
                raise ConflictError(f"server {name} is {before.server.state}", "stop or restart it, or give --name")
            box = await self._around.box.fresh()
            chosen = _choose_gpus(profile, request, box)
            wanted = profile.port if request.port is None else request.port
            fixed = wanted if isinstance(wanted, int) and wanted > 0 else None
            port = choose_port(profile.host, fixed, self.taken_ports())
            now = time.time()
            record = Record(
                name=name,
                profile=request.profile,
                environ=request.environ,
                gpus=tuple(gpu.uuid for gpu in chosen.gpus),
                gpu_indices=tuple(gpu.index for gpu in chosen.gpus),
                port=port,
                any_port=fixed is None,
                asked_port=request.port,
                launch=launch_name(now),
                log_path=str(new_log_path(paths.private(paths.log_dir()), name, now)),
                launched_at=now,
                why=chosen.why,
                warnings=chosen.warnings,
                gpu_used_before=_used(chosen.gpus),
            )
            save(record)
            supervisor = Supervisor(record, profile, engine, self._around, ServerState.STARTING)
            self._supervisors[name] = supervisor
        self._around.hub.publish(ServerUpdate(supervisor.server))
        supervisor.begin()
        return supervisor.server

    def stop(self, name: str, *, force: bool) -> Server:
        """Stop a server that lives; one that does not is left as it is."""
        supervisor = self._named(name)
        if supervisor.server.is_live:
            supervisor.stop(force=force)
        return supervisor.server

    async def restart(self, name: str) -> Server:
        """Start a server again as it was started; where it lives, stop it first and keep its GPUs."""
        supervisor = self._named(name)
        if supervisor.server.is_live:
            supervisor.restart()
            return supervisor.server
        record = supervisor.record
        gpus = record.gpus or ("cpu",)  # by UUID: indices change when a GPU is lost or added
        return await self.start(StartRequest(record.profile, record.environ, name, gpus, record.asked_port))

    def forget(self, name: str) -> None:
        """Drop a server that has no process; its logs stay."""
        supervisor = self._named(name)
        if supervisor.server.is_live:
            raise ConflictError(f"server {name} is {supervisor.server.state}", "stop it first")
        supervisor.erase()
        del self._supervisors[name]
        self._around.series.forget(f"server {name}")
        self._around.hub.publish(ServerRemoved(name))

    def connection(self, name: str) -> Connection:
        """Return what a client needs to talk to a server's engine."""
        supervisor = self._named(name)
        server = supervisor.server
        return Connection(f"{server.address}/v1", server.served_name, server.kind, supervisor.api_key())

    async def detach(self) -> None:
        """Stop following all servers, and leave them running."""
        await asyncio.gather(*(supervisor.detach() for supervisor in self._supervisors.values()))

    def _named(self, name: str) -> Supervisor:
        try:
            return self._supervisors[name]
        except KeyError:
            known = ", ".join(sorted(self._supervisors)) or "none yet"
            raise NoSuchServerError(f"there is no server {name}", f"known: {known}") from None


def _state_on_record(record: Record, facts: ProcessFacts | Missing) -> ServerState:
    """Return where a server stands that an earlier keeper has left; following it then brings the state up to date."""
    if record.ended:
        return ServerState.STOPPED if record.cause is None else ServerState.FAILED
    if isinstance(facts, Missing):
        return ServerState.STARTING
    if not record.wanted or facts.phase == "stopping":
        return ServerState.STOPPING
    return ServerState.STARTING if record.ready_at is None else ServerState.READY


def _choose_gpus(profile: Profile, request: StartRequest, box: Box) -> Selection:
    wanted = request.gpus
    if wanted == ("cpu",) or (wanted is None and profile.gpus == "cpu"):
        return Selection((), "on the CPU")
    if profile.gpus == "cpu":
        raise UsageError(f"profile {profile.name} is for the CPU", "copy it and set gpus, or say --gpus cpu")
    fraction = _needed_fraction(profile)
    return select(
        box.gpus,
        wanted or ("auto",),
        profile.gpus,
        needed_fraction=fraction,
        count_why=_count_why(profile),
        memory_why=f"gpu_memory_utilization {fraction}",
        visible=request.environ.get("CUDA_VISIBLE_DEVICES"),
        no_gpus=box.no_gpus,
    )


def _needed_fraction(profile: Profile) -> float | None:
    """Return the share of a GPU's memory that must be free, or vLLM ends at once; None where that is not known."""
    if profile.engine != "vllm" or "kv_cache_memory_bytes" in profile.args:
        return None
    asked = profile.args.get("gpu_memory_utilization", VLLM_SMALLEST_DEFAULT_UTILIZATION)
    return float(asked) if isinstance(asked, int | float) else None


def _count_why(profile: Profile) -> str:
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    return ", ".join(f"{size} {profile.args[size]}" for size in sizes if size in profile.args)


def _used(gpus: tuple[Gpu, ...]) -> dict[str, int]:
    return {gpu.uuid: gpu.memory_used_bytes for gpu in gpus if not isinstance(gpu.memory_used_bytes, Missing)}
