"""All servers of the keeper: who holds which GPU and port is decided here, one grant at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backends import paths
from backends.engines.base import ENGINE_LABEL
from backends.engines.registry import engine_named
from backends.errors import ConflictError, NoSuchServerError, ProfileError, UsageError
from backends.keeper.allocation import choose_gpus, fixed_need, reserved
from backends.keeper.boxwatch import beside_others
from backends.keeper.launching import launch_name
from backends.keeper.ports import choose_port
from backends.keeper.record import Record, engine_socket_of, first_state, read_all, save
from backends.keeper.rooms import granted_first
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
from backends.switches import Level
from profiles.errors import InvalidProfileError
from profiles.schema import Profile, parse_profile
from profiles.secrets import resolve_secrets

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Servers:
    """The keeper's books; every method runs on the keeper's event loop."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._supervisors: dict[str, Supervisor] = {}
        self._granting = asyncio.Lock()
        self._sleeping: set[asyncio.Task[None]] = set()

    def snapshots(self) -> tuple[Server, ...]:
        """Return the newest state of each server, by name."""
        return tuple(self._supervisors[name].server for name in sorted(self._supervisors))

    def supervisors(self) -> Mapping[str, Supervisor]:
        """Return who follows each server, by name."""
        return self._supervisors

    def any_live(self) -> bool:
        """Whether a server has, or is about to have, a process."""
        return any(supervisor.server.is_live for supervisor in self._supervisors.values())

    def grants(self) -> dict[str, tuple[Grant, ...]]:
        """Return what is granted of each GPU, by UUID."""
        return self._around.ledger.grants()

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
            if not record.ended or record.again or record.retry_at is not None:
                self._around.ledger.take_up(record.name, record.gpus)
                supervisor.adopt()

    async def start(self, request: StartRequest) -> Server:
        """Grant GPUs and a port, write the record, and launch.

        Raises ProfileError, NoSuchGpuError, GpuBusyError, UsageError, or ConflictError where the name or port is taken.
        """
        profile = _checked(request.profile)
        try:
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
            if profile.gpus == "cpu" or request.gpus == ("cpu",):
                record = self._decided(name, profile, request, await self._around.box.fresh(), None)
                save(record)
            else:
                record = await self._granted(name, profile, request)
            supervisor = Supervisor(record, profile, engine, self._around, first_state(record))
            self._supervisors[name] = supervisor
        self._around.hub.publish(ServerUpdate(supervisor.server))
        supervisor.begin()
        return supervisor.server

    async def _granted(self, name: str, profile: Profile, request: StartRequest) -> Record:
        """Choose GPUs while no other keeper can, and write both the grant and the record."""
        ledger, records = self._around.ledger, self._around.history.records
        box = await self._around.box.box()
        needed = await asyncio.to_thread(fixed_need, profile, request.environ, box, records)
        lock = await asyncio.to_thread(ledger.lock)
        try:
            record = self._decided(name, profile, request, await self._around.box.fresh(), needed)
            ledger.grant(name, granted_first(record))
            try:
                save(record)
            except OSError:
                ledger.release(name)
                raise
        finally:
            os.close(lock)
        return record

    def _decided(self, name: str, profile: Profile, request: StartRequest, box: Box, fixed_bytes: int | None) -> Record:
        """Choose GPUs and a port, and return the record that the launch is made from."""
        promised = self._around.switching.promised(name)
        box = replace(box, gpus=tuple(_promised(gpu, promised.get(gpu.uuid)) for gpu in box.gpus))
        chosen = choose_gpus(profile, request, box, fixed_bytes)
        wanted = profile.port if request.port is None else request.port
        fixed = wanted if isinstance(wanted, int) and wanted > 0 else None
        now = time.time()
        launch = launch_name(now)
        return Record(
            name=name,
            profile=request.profile,
            environ=request.environ,
            gpus=tuple(gpu.uuid for gpu in chosen.gpus),
            gpu_indices=tuple(gpu.index for gpu in chosen.gpus),
            port=choose_port(profile.host, fixed, self.taken_ports()),
            any_port=fixed is None,
            asked_port=request.port,
            launch=launch,
            log_path=str(new_log_path(paths.private(paths.log_dir()), name, now)),
            launched_at=now,
            why=chosen.why,
            warnings=chosen.warnings,
            gpu_used_before=_used(chosen.gpus, name),
            reserved=reserved(profile, chosen.gpus, fixed_bytes),
            gated=profile.shares and bool(chosen.gpus),
            profile_digest=request.profile_digest,
            uds=engine_socket_of(name, launch) if engine_named(profile.engine).can_sleep(profile) else None,
            spare=request.asleep,
        )

    def stop(self, name: str, *, force: bool) -> Server:
        """Stop a server that lives; one that does not is left as it is."""
        supervisor = self._named(name)
        if supervisor.server.is_live:
            supervisor.stop(force=force)
        return supervisor.server

    async def sleep(self, name: str, level: Level | None = None) -> Server:
        """Put a server to sleep, at the level for which there is room where none is given; returns once it begins.

        Raises ConflictError where it cannot sleep now; how it goes on is told as events.
        """
        supervisor = self._named(name)
        chosen = await self._around.switching.level_for(name, level)
        sleeping = asyncio.create_task(supervisor.sleep(chosen), name=f"sleep {name}")
        self._sleeping.add(sleeping)
        sleeping.add_done_callback(self._slept)
        await asyncio.sleep(0)
        if sleeping.done():
            await sleeping
        return supervisor.server

    def _slept(self, task: asyncio.Task[None]) -> None:
        self._sleeping.discard(task)
        if not task.cancelled() and isinstance(problem := task.exception(), Exception):
            log.info("%s: %s", task.get_name(), problem)

    async def restart(self, name: str, profile: dict[str, Any] | None = None) -> Server:
        """Start a server again as it was started; where it lives, stop it first and keep its GPUs.

        Another `profile` is for a server that has ended; raises ConflictError where it lives.
        """
        supervisor = self._named(name)
        if supervisor.server.is_live:
            if profile is not None:
                raise ConflictError(f"server {name} is {supervisor.server.state}", "stop it before its profile changes")
            supervisor.restart()
            return supervisor.server
        record = supervisor.record
        gpus: tuple[str, ...] | None = record.gpus or ("cpu",)  # by UUID: indices change when a GPU is lost or added
        if profile is not None and _checked(profile).gpus not in ("cpu", len(record.gpus)):
            gpus = None
        digest = record.profile_digest if profile is None else None
        return await self.start(
            StartRequest(profile or record.profile, record.environ, name, gpus, record.asked_port, digest)
        )

    def profile(self, name: str) -> dict[str, Any]:
        """Return the profile that a server was started with, overrides merged."""
        return self._named(name).record.profile

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
        for task in self._sleeping:
            task.cancel()
        await asyncio.gather(*(supervisor.detach() for supervisor in self._supervisors.values()))

    def _named(self, name: str) -> Supervisor:
        try:
            return self._supervisors[name]
        except KeyError:
            known = ", ".join(sorted(self._supervisors)) or "none yet"
            raise NoSuchServerError(f"there is no server {name}", f"known: {known}") from None


def _checked(content: dict[str, Any]) -> Profile:
    try:
        return parse_profile(content, "the profile")
    except InvalidProfileError as problem:
        raise ProfileError(str(problem)) from problem


def _state_on_record(record: Record, facts: ProcessFacts | Missing) -> ServerState:
    """Return where a server stands that an earlier keeper has left; following it then brings the state up to date."""
    if record.ended and record.retry_at is not None:
        return ServerState.BACKOFF
    if record.ended:
        return ServerState.STOPPED if record.cause is None else ServerState.FAILED
    if isinstance(facts, Missing):
        return first_state(record)
    if not record.wanted or facts.phase == "stopping":
        return ServerState.STOPPING
    if record.ready_at is not None:
        return _state_by_sleep(record)
    at_gate = record.gated and facts.phase in ("starting", "running") and facts.step != ENGINE_LABEL
    return ServerState.QUEUED if at_gate else ServerState.STARTING


def _state_by_sleep(record: Record) -> ServerState:
    """Return what a server was last told to be, until its engine has been asked."""
    if record.changing is not None:
        return ServerState.FALLING_ASLEEP if record.changing == "sleep" else ServerState.WAKING
    return ServerState.READY if record.asked_level is None else ServerState.SLEEPING


def _promised(gpu: Gpu, grant: Grant | None) -> Gpu:
    """Return a GPU as held by whom a running switch gives it to, too."""
    return gpu if grant is None else replace(gpu, grants=(*gpu.grants, grant))


def _used(gpus: tuple[Gpu, ...], server: str) -> dict[str, int]:
    read = (gpu for gpu in gpus if not isinstance(gpu.memory_used_bytes, Missing))
    return {gpu.uuid: beside_others(gpu, server) for gpu in read}
