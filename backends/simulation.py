"""A box that does not exist, for `--simulate`, pictures and tests: the same link to a keeper, played in process.

It says so of itself (`Box.simulated`). Its servers start, serve and stop on the clock it is given, so that under a
frozen clock everything stays as it is; only the logs are real files, in a temporary folder.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
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
from backends.simulated_box import FAULT, FAULTY_AT, FAULTY_SINCE_S, SimulatedGpus, Tenant
from backends.simulated_past import earlier_lives, launches_of
from backends.simulated_servers import START_S, Life, load_at, log_lines, memory_at, server_at, state_at
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
    Update,
)
from backends.starts import Card, Evidence, Remedy
from backends.switches import Level, Switch, SwitchChoice

SERIES_S = 3600
SERIES_EVERY_S = 10
FIRST_PORT = 8000
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 1.02 GiB: the weights do not fit beside what the GPU holds"
OUT_OF_MEMORY_CARD = Card(
    cause="cuda-oom-at-load",
    summary="out of GPU memory while the weights were loaded: 1.02 GiB more were asked for",
    evidence=Evidence(9, f"torch.OutOfMemoryError: {OUT_OF_MEMORY}"),
    remedies=(
        Remedy("Split the model over 2 GPUs: tensor_parallel_size = 2", {"args.tensor_parallel_size": 2}),
        Remedy("Serve a quantized variant of the model (AWQ, GPTQ, FP8): half its size, or a quarter", {}),
    ),
    frames=("vllm/model_executor/layers/linear.py:201 in create_weights",),
)


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
        self._lives = {life.name: life for life in self._first_lives(clock())}
        self._tell_of_the_past(clock())
        self._past = [earlier for life in self._lives.values() for earlier in earlier_lives(life)]
        self._digests: dict[str, str | None] = {}
        self._states = {name: state_at(life, clock())[0] for name, life in self._lives.items()}
        self._again: set[str] = set()
        self._logged_until: dict[str, float] = {}
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
        return Snapshot(self._info, self._box(now), tuple(self._server(name) for name in self._lives))

    async def start(self, request: StartRequest) -> Server:
        """See KeeperLink."""
        profile, now = request.profile, self._now()
        name = request.name or str(profile["name"])
        if name in self._lives and self._server(name).is_live:
            raise ConflictError(f"{name} is running already", "start it under another name, or stop it first")
        chosen = self._choose(request)
        life = Life(
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
            load=0.5,
        )
        self._digests[name] = request.profile_digest
        self._take(life)
        return self._server(name)

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
        """Refuse."""
        raise ConflictError(f"{name} is simulated and does not sleep", "start a real server with sleep = true")

    async def switch(self, request: SwitchRequest) -> Switch:
        """Refuse."""
        raise ConflictError(f"{request.name} is simulated: there is nothing to switch", "start real servers")

    async def switch_choices(self) -> tuple[SwitchChoice, ...]:
        """See KeeperLink."""
        return ()

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

    def _first_lives(self, now: float) -> Iterator[Life]:
        """Make the servers that are there from the beginning: two serve, one starts, one has failed."""
        plans = (
            # name, model, GPUs, age in seconds, full tok/s, load, what it fails with
            ("llama-3.3-70b", "meta-llama/Llama-3.3-70B-Instruct", (0, 1), 11_640.0, 2_900.0, 1.0, None),
            ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", (2,), 2_520.0, 6_400.0, 0.6, None),
            ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.2", (3,), 23.0, 6_100.0, 0.4, None),
            ("qwen2.5-14b", "Qwen/Qwen2.5-14B-Instruct", (5,), 510.0, 3_800.0, 0.0, OUT_OF_MEMORY),
        )
        ports = count(FIRST_PORT)
        for name, model, indices, age_s, pace, load, failure in plans:
            port = next(ports)
            if indices[-1] < len(self._gpus.uuids):
                yield Life(
                    name=name,
                    profile=name,
                    engine="vllm",
                    model=model,
                    kind=ModelKind.CHAT,
                    gpus=tuple(self._gpus.uuids[index] for index in indices),
                    gpu_indices=indices,
                    port=port,
                    launched_at=now - age_s,
                    log_path=self._log_path(name, now - age_s),
                    pace=pace,
                    load=load,
                    fails_with=failure,
                    card=OUT_OF_MEMORY_CARD if failure else None,
                )

    def _tell_of_the_past(self, now: float) -> None:
        """Have on record what a keeper would have told of the servers and GPUs that are there from the start."""
        told = []
        for life in self._lives.values():
            end = (ServerState.FAILED, life.ended_at or now) if life.fails_with else (ServerState.READY, life.ready_at)
            for state, at in ((ServerState.STARTING, life.launched_at), end):
                if at <= now:
                    told.append(Event(at, life.name, *_told(life, state)))
        if self._gpus.break_at(now - FAULTY_SINCE_S):
            text = f"GPU {FAULTY_AT}: XID {FAULT}, {meaning(FAULT)}"
            told.append(Event(now - FAULTY_SINCE_S, "", "xid", text))
        for event in sorted(told, key=lambda event: event.at):
            self._hub.publish(EventUpdate(event))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            await self._advance()

    async def _advance(self) -> None:
        """Publish what time has changed, and let the logs catch up."""
        now = self._now()
        for name, life in list(self._lives.items()):
            state = state_at(life, now)[0]
            self._notice(life, state, now)
            if state is ServerState.STOPPED and name in self._again:
                self._launch_again(life)
            self._hub.publish(ServerUpdate(self._server(name)))
        self._hub.publish(BoxUpdate(self._box(now)))
        await asyncio.to_thread(self._write_logs, list(self._lives.values()), now)

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
            self._hub.publish(EventUpdate(Event(now, life.name, *_told(life, state))))

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
            )
        )

    def _box(self, at: float) -> Box:
        tenants = {}
        for life in self._lives.values():
            if at >= life.launched_at and state_at(life, at)[0] not in (ServerState.STOPPED, ServerState.FAILED):
                for index in life.gpu_indices:
                    tenants[index] = Tenant(life, memory_at(life, at), load_at(life, at))
        return self._gpus.box(at, tenants)

    def _choose(self, request: StartRequest) -> tuple[int, ...]:
        wanted = request.gpus if request.gpus is not None else ("cpu",) if _gpus_of(request.profile) == 0 else ("auto",)
        if wanted == ("cpu",):
            return ()
        gpus = self._box(self._now()).gpus
        busy = {gpu.index: gpu.holder or gpu.refusal for gpu in gpus if gpu.holder or gpu.refusal}
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


def _where(life: Life) -> str:
    return f"GPU {', '.join(map(str, life.gpu_indices))}" if life.gpus else "the CPU"


def _gpus_of(profile: Mapping[str, Any]) -> int:
    """Return how many GPUs a profile needs; 0 is the CPU."""
    said = profile.get("gpus")
    if said == "cpu":
        return 0
    arguments = profile.get("args", {})
    return int(said or 0) or int(arguments.get("tensor_parallel_size", 1))


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds")


TOLD = frozenset({ServerState.STARTING, ServerState.READY, ServerState.FAILED, ServerState.STOPPED})


def _told(life: Life, state: ServerState) -> tuple[str, str]:
    """Return the kind and the words of the event that a server's change to `state` is; one of `TOLD`."""
    return {
        ServerState.STARTING: ("started", "started on " + _where(life)),
        ServerState.READY: ("ready", f"ready in {START_S:.0f} s"),
        ServerState.FAILED: ("failed", f"failed: {life.fails_with}"),
        ServerState.STOPPED: ("stopped", "stopped; its memory is back" if life.gpus else "stopped"),
    }[state]
