"""A box that does not exist, for `--simulate`, pictures and tests: the same link to a keeper, played in process.

It says so of itself (`Box.simulated`). Its servers start, serve and stop on the clock it is given, so that under a
frozen clock everything stays as it is; only the logs are real files, in a temporary folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from backends.errors import ConflictError, GpuBusyError, KeeperError, NoSuchGpuError, NoSuchServerError
from backends.gpus.xids import meaning
from backends.keeper.events import Hub
from backends.metrics.series import gpu_figures, server_figures
from backends.orphans import Orphan, Reaped
from backends.records import Launch
from backends.simulated_box import FAULT, FAULTY_AT, FAULTY_SINCE_S, SimulatedGpus, tenants_of
from backends.simulated_lives import FIRST_PORT, first_lives
from backends.simulated_past import TOLD, earlier_lives, events_of, launches_of, told
from backends.simulated_servers import Life, host_bytes_at, idle_at, log_lines, server_at, state_at
from backends.simulated_switches import PlayedSwitch, asleep, choice_of, play
from backends.snapshots import (
    Box,
    BoxUpdate,
    Connection,
    Event,
    EventUpdate,
    KeeperInfo,
    ModelKind,
    Owner,
    Series,
    Server,
    ServerRemoved,
    ServerState,
    ServerUpdate,
    Snapshot,
    SnapshotUpdate,
    StartRequest,
    SwitchRequest,
    SwitchUpdate,
    Update,
)
from backends.switches import Level, Switch, SwitchChoice

SERIES_S = 3600
SERIES_EVERY_S = 10
HURRY_S = 0.05
"""How often time moves on while a switch runs."""


class SimulatedKeeper:
    """A KeeperLink to a simulated box; `spec` says which GPUs, `clock` what time it is (Unix seconds)."""

    def __init__(
        self,
        spec: str = "8xH200",
        clock: Callable[[], float] = time.time,
        seed: int = 0,
        folder: Path | None = None,
        tick_s: float = 1.0,
    ) -> None:
        self._now = clock
        self._tick_s = tick_s
        self._gpus = SimulatedGpus(spec, seed)
        self._temporary = tempfile.TemporaryDirectory(prefix="gpubox-simulated-") if folder is None else None
        self._logs = Path(self._temporary.name) if self._temporary else folder or Path()
        self._info = KeeperInfo(pid=4242, version="simulated", started_at=clock() - 7200)
        self._hub = Hub()
        self._lives = {life.name: life for life in first_lives(self._gpus.uuids, clock(), self._log_path)}
        self._tell_of_the_past(clock())
        self._past = [earlier for life in self._lives.values() for earlier in earlier_lives(life)]
        self._digests: dict[str, str | None] = {}
        self._states = {name: state_at(life, clock())[0] for name, life in self._lives.items()}
        self._again: set[str] = set()
        self._logged_until: dict[str, float] = {}
        self._played: list[PlayedSwitch] = []
        self._told: dict[str, Switch] = {}
        self._hurry = asyncio.Event()
        self._clockwork: asyncio.Task[None] | None = None

    async def updates(self) -> AsyncIterator[Update]:
        """See KeeperLink; time moves on for as long as somebody listens."""
        with self._hub.subscribe() as subscription:
            await self._advance()
            if self._clockwork is None:
                self._clockwork = asyncio.create_task(self._run())
            yield SnapshotUpdate(self.snapshot())
            try:
                async for batch in subscription.batches():
                    for update in batch:
                        yield update
            finally:
                if self._hub.listeners == 1 and self._clockwork is not None:
                    self._clockwork.cancel()
                    self._clockwork = None

    def snapshot(self) -> Snapshot:
        """Return the whole box as of now."""
        now = self._now()
        switches = tuple(one.switch_at(now) for one in self._played if now < one.ends_at)
        return Snapshot(self._info, self._box(now), tuple(self._server(name) for name in self._lives), switches)

    async def start(self, request: StartRequest) -> Server:
        """See KeeperLink."""
        name, now = request.name or str(request.profile["name"]), self._now()
        if name in self._lives and self._server(name).is_live:
            raise ConflictError(f"{name} is running already", "start it under another name, or stop it first")
        life = self._new_life(request, self._choose(request), now)
        if request.asleep:
            life = asleep(life, life.ready_at, 1)
        self._take(life)
        return self._server(name)

    def _new_life(self, request: StartRequest, chosen: tuple[int, ...], now: float) -> Life:
        profile = request.profile
        name = request.name or str(profile["name"])
        self._digests[name] = request.profile_digest
        ttl = profile.get("ttl")
        return Life(
            name=name,
            profile=str(profile["name"]),
            engine=str(profile.get("engine", "vllm")),
            model=str(profile.get("model", name)),
            kind=ModelKind.CHAT,
            gpus=tuple(self._gpus.uuids[index] for index in chosen),
            gpu_indices=chosen,
            port=request.port or self._free_port(),
            launched_at=now,
            log_path=self._log_path(name, now),
            load=0.0 if ttl else 0.5,
            can_sleep=bool(profile.get("sleep")),
            ttl_s=60.0 * ttl if ttl else None,
        )

    async def stop(self, name: str, *, force: bool = False) -> Server:
        """See KeeperLink."""
        life, now = self._life(name), self._now()
        if not server_at(life, now).is_live:
            raise ConflictError(f"{name} is not running", "nothing to stop")
        if life.stop_asked_at is None or (force and not life.stop_forced):
            life = replace(life, stop_asked_at=now, stop_forced=force)
            self._take(life)
        return self._server(name)

    async def restart(self, name: str, profile: dict[str, Any] | None = None) -> Server:
        """See KeeperLink."""
        life = self._life(name)
        if self._server(name).is_live:
            self._again.add(name)
            return await self.stop(name)
        self._launch_again(life)
        return self._server(name)

    async def sleep(self, name: str, level: Level | None = None) -> Server:
        """See KeeperLink."""
        self._take(asleep(self._life(name), self._now(), level or 1))
        self._hurry.set()
        return self._server(name)

    async def switch(self, request: SwitchRequest) -> Switch:
        """See KeeperLink; the steps take as long as they were measured to."""
        now = self._now()
        if (running := next((one for one in self._played if one.to == request.name), None)) is not None:
            return running.switch_at(now)
        played, changed = play(self._target(request), self._lives, now, request.level, request.drain_s)
        self._played.append(played)
        for life in changed:
            self._take(life)
        self._hub.publish(SwitchUpdate(played.switch_at(now)))
        self._hurry.set()
        return played.switch_at(now)

    def _target(self, request: SwitchRequest) -> Life:
        start, known = request.start, self._lives.get(request.name)
        if start is None or (known is not None and self._server(request.name).is_live):
            return self._life(request.name)
        now = self._now()
        return self._new_life(replace(start, name=request.name), self._choose(start, makes_room=True), now)

    async def switch_choices(self) -> tuple[SwitchChoice, ...]:
        """See KeeperLink."""
        now, lives = self._now(), tuple(self._lives.values())
        return tuple(choice_of(life, lives, now) for life in sorted(lives, key=lambda one: one.name))

    async def profile(self, name: str) -> dict[str, Any]:
        """See KeeperLink."""
        life = self._life(name)
        return {"name": life.profile, "engine": life.engine, "model": life.model}

    async def forget(self, name: str) -> None:
        """See KeeperLink."""
        if server_at(self._life(name), self._now()).is_live:
            raise ConflictError(f"{name} is running", "stop it first")
        del self._lives[name]
        self._states.pop(name, None)
        self._hub.publish(ServerRemoved(name))

    async def connection(self, name: str) -> Connection:
        """Refuse: nothing listens behind a simulated server, and canned answers would be a lie."""
        self._life(name)
        raise KeeperError(f"{name} is simulated: it does not answer chat", "start a real server: gpubox --profile demo")

    async def server_series(self, name: str) -> Series:
        """See KeeperLink."""
        life = self._life(name)
        return self._series(
            max(life.ready_at, life.launched_at), lambda at: server_figures(server_at(life, at).metrics)
        )

    async def gpu_series(self, uuid: str) -> Series:
        """See KeeperLink."""
        if uuid not in self._gpus.uuids:
            raise NoSuchGpuError(f"this box has no GPU {uuid}")
        place = self._gpus.uuids.index(uuid)
        return self._series(0.0, lambda at: gpu_figures(self._box(at).gpus[place]))

    async def history(self) -> tuple[Event, ...]:
        """See KeeperLink."""
        return self._hub.history

    async def launches(self, limit: int = 200) -> tuple[Launch, ...]:
        """See KeeperLink."""
        names = {gpu.uuid: gpu.name for gpu in self._box(self._now()).gpus}
        return launches_of([*self._past, *self._lives.values()], names, self._now(), limit)

    async def orphans(self) -> tuple[Orphan, ...]:
        """See KeeperLink."""
        return self._gpus.orphans(self._now())

    async def reap(self, pid: int, start_ticks: int, *, foreign: bool = False) -> Reaped:
        """See KeeperLink; a simulated stranger is left alone, since a simulated user owns it."""
        if not self._gpus.reap(pid, start_ticks):
            raise ConflictError(f"pid {pid} is not there, or not yours", "only its user or root can end it")
        self._hub.publish(BoxUpdate(self._box(self._now())))
        return Reaped(pid, "SIGKILL", 0)

    def _tell_of_the_past(self, now: float) -> None:
        """Have on record what a keeper would have told of the servers and GPUs that are there from the start."""
        past = events_of(self._lives.values(), now)
        if self._gpus.break_at(now - FAULTY_SINCE_S):
            text = f"GPU {FAULTY_AT}: XID {FAULT}, {meaning(FAULT)}"
            past.append(Event(now - FAULTY_SINCE_S, "", "xid", text))
        for event in sorted(past, key=lambda event: event.at):
            self._hub.publish(EventUpdate(event))

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self._tick_s)
                await asyncio.sleep(min(HURRY_S, self._tick_s))
            await self._advance()

    async def _advance(self) -> None:
        """Publish what time has changed, and let the logs catch up."""
        now = self._now()
        for name, life in list(self._lives.items()):
            state = state_at(life, now)[0]
            self._notice(life, state, now)
            if state is ServerState.STOPPED and name in self._again:
                self._launch_again(life)
            idle = idle_at(life, now)
            if idle is not None and idle.since is not None and now - idle.since >= idle.ttl_s:
                self._take(asleep(life, now, 1))
            self._hub.publish(ServerUpdate(self._server(name)))
        self._hub.publish(BoxUpdate(self._box(now)))
        self._advance_switches(now)
        await asyncio.to_thread(self._write_logs, list(self._lives.values()), now)

    def _advance_switches(self, now: float) -> None:
        for played in tuple(self._played):
            switch = played.switch_at(now)
            if switch != self._told.get(switch.id):
                self._told[switch.id] = switch
                self._hub.publish(SwitchUpdate(switch))
            if now >= played.ends_at:
                self._played.remove(played)
                del self._told[switch.id]
                text = f"switched in {switch.took_s or 0.0:.2f} s"
                self._hub.publish(EventUpdate(Event(now, switch.to, "switched", text)))
        if not self._played:
            self._hurry.clear()

    def _write_logs(self, lives: list[Life], now: float) -> None:
        for life in lives:
            since = self._logged_until.get(life.log_path)
            lines = list(log_lines(life, life.launched_at if since is None else since, now))
            self._logged_until[life.log_path] = now
            if lines:
                path = Path(life.log_path)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("w" if since is None else "a") as file:
                    file.writelines(f"{_stamp(at)} {text}\n" for at, text in lines)

    def _notice(self, life: Life, state: ServerState, now: float) -> None:
        if self._states.get(life.name) is state:
            return
        self._states[life.name] = state
        if state in TOLD:
            self._hub.publish(EventUpdate(Event(now, life.name, *told(life, state, now))))

    def _take(self, life: Life) -> None:
        before = self._lives.get(life.name)
        if before is not None and before.launched_at != life.launched_at:
            self._past.append(before)
        self._lives[life.name] = life
        self._notice(life, state_at(life, self._now())[0], self._now())
        self._hub.publish(ServerUpdate(self._server(life.name)))
        self._hub.publish(BoxUpdate(self._box(self._now())))

    def _launch_again(self, life: Life) -> None:
        now = self._now()
        self._again.discard(life.name)
        self._take(
            replace(
                life,
                launched_at=now,
                log_path=self._log_path(life.name, now),
                fails_with=None,
                stop_asked_at=None,
                stop_forced=False,
                naps=(),
            )
        )

    def _box(self, at: float) -> Box:
        lives = tuple(self._lives.values())
        return self._gpus.box(at, tenants_of(lives, at), sum(host_bytes_at(life, at) for life in lives))

    def _choose(self, request: StartRequest, *, makes_room: bool = False) -> tuple[int, ...]:
        wanted = request.gpus if request.gpus is not None else ("cpu",) if _gpus_of(request.profile) == 0 else ("auto",)
        if wanted == ("cpu",):
            return ()
        gpus = self._box(self._now()).gpus
        busy = {gpu.index: gpu.holder or gpu.refusal for gpu in gpus if gpu.holder or gpu.refusal}
        if makes_room:
            # Servers give way, the least busy first; all else does not.
            gpus = tuple(sorted(gpus, key=lambda gpu: (gpu.index in busy, gpu.utilization)))
            busy = {gpu.index: gpu.refusal for gpu in gpus if gpu.refusal}
        if wanted == ("auto",):
            needed = _gpus_of(request.profile) or 1
            free = [gpu for gpu in gpus if gpu.index not in busy]
            free.sort(key=lambda gpu: any(share.owner is Owner.FOREIGN for share in gpu.shares))
            if len(free) < needed:
                raise GpuBusyError(f"{needed} GPUs are needed, {len(free)} are free", "stop a server first")
            return tuple(sorted(gpu.index for gpu in free[:needed]))
        chosen = []
        for one in wanted:
            found = [g.index for g in gpus if one == str(g.index) or g.uuid.lower().startswith(one.lower())]
            if len(found) != 1:
                raise NoSuchGpuError(f"this box has no GPU {one}", f"there are 0–{len(gpus) - 1}")
            if found[0] in busy:
                raise GpuBusyError(f"GPU {found[0]} is taken: {busy[found[0]]}", "choose another, or stop that server")
            chosen.append(found[0])
        return tuple(sorted(chosen))

    def _series(self, since: float, figures: Callable[[float], Mapping[str, float | None]]) -> Series:
        now = self._now()
        first = max(since, now - SERIES_S)
        ats = tuple(now - n * SERIES_EVERY_S for n in range(int((now - first) / SERIES_EVERY_S), -1, -1))
        read = [figures(at) for at in ats]
        names = dict.fromkeys(name for one in read for name in one)
        return Series(ats, {name: tuple(one.get(name) for one in read) for name in names})

    def _life(self, name: str) -> Life:
        if name not in self._lives:
            raise NoSuchServerError(f"no server {name}", f"there are: {', '.join(self._lives) or 'none'}")
        return self._lives[name]

    def _server(self, name: str) -> Server:
        return replace(server_at(self._life(name), self._now()), profile_digest=self._digests.get(name))

    def _log_path(self, name: str, at: float) -> str:
        return str(self._logs / f"{name}-{datetime.fromtimestamp(at):%Y%m%d-%H%M%S}.log")

    def _free_port(self) -> int:
        taken = {life.port for life in self._lives.values()}
        return next(port for port in count(FIRST_PORT) if port not in taken)


def _gpus_of(profile: Mapping[str, Any]) -> int:
    """Return how many GPUs a profile needs; 0 is the CPU."""
    said = profile.get("gpus")
    if said == "cpu":
        return 0
    arguments = profile.get("args", {})
    return int(said or 0) or int(arguments.get("tensor_parallel_size", 1))


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds")
