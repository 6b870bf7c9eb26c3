"""`gpubox switch` and `gpubox sleep`: who serves on the GPUs, each step told as it is over."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from backends.client import AsyncKeeper, ensure_keeper
from backends.errors import ConflictError, GpuboxError, KeeperError, NoSuchServerError, UsageError, WaitOverError
from backends.snapshots import Server, ServerState, SnapshotUpdate, StartRequest, SwitchRequest, SwitchUpdate, Update
from backends.switches import Level, Switch, SwitchChoice, SwitchStep, Way
from tui.format import clock_time, memory
from tui.headless.launch import states
from tui.headless.output import say, table
from tui.launching import LaunchIntent, open_store, read_launchable
from tui.sleeping import (
    WAYS,
    asleep_text,
    expected_text,
    giving_text,
    size_text,
    start_times,
    step_text,
    step_took,
    switched_line,
)

if TYPE_CHECKING:
    from profiles.store import Store

RECONNECTS = 5
NO_CHOICE = "no server and no profile yet; make one: gpubox profiles new NAME"


class SwitchFailedError(GpuboxError):
    """A switch did not come about."""

    code = "switch-failed"
    exit_code = 6


def level_of(number: int | None) -> Level | None:
    """Return a level that was asked for; raises UsageError where there is no such."""
    if number not in (None, 1, 2):
        raise UsageError(f"there is no level {number}", "1 keeps the weights in host memory, 2 reads them again")
    return cast("Level | None", number)


def switch(
    name: str | None,
    *,
    gpus: tuple[str, ...] | None,
    level: Level | None,
    drain_s: float | None,
    as_json: bool,
    profile_dir: Path | None,
) -> int:
    """Have a server serve instead of those in its way; without a name list the choices. Returns 0, or raises."""
    if name is None:
        return _list(open_store(profile_dir), as_json=as_json)
    client = ensure_keeper()
    known = {server.name: server for server in client.snapshot().servers}
    request = SwitchRequest(name, _start(name, known.get(name), gpus, profile_dir), level, drain_s)
    done = asyncio.run(_attend(request))
    if as_json:
        from backends.snapshots import dump

        server = next((one for one in client.snapshot().servers if one.name == name), None)
        served = {"base_url": f"{server.address}/v1"} if server is not None else {}
        print(json.dumps(json.loads(dump(done)) | served))
    if done.outcome != "done":
        raise SwitchFailedError(f"{name}: {switched_line(done)}", _what_next(name, done))
    if not as_json:
        did = any(step.name != "first-token" for step in done.steps)
        print(f"{name}: {switched_line(done)}" if did else f"{name} serves already")
    return 0


def _start(
    name: str, server: Server | None, gpus: tuple[str, ...] | None, profile_dir: Path | None
) -> StartRequest | None:
    """Return how to start what does not live: as its profile says; None where the keeper knows better itself."""
    if server is not None and server.is_live:
        if gpus is not None:
            raise ConflictError(f"{name} is on its GPUs already", "--gpus goes with what is not started yet")
        return None
    if server is not None and gpus is None:
        return None
    try:
        launchable = read_launchable(open_store(profile_dir), name)
    except GpuboxError as problem:
        if server is not None or problem.code != "profile":
            raise
        hint = "gpubox switch lists what there is to switch to"
        raise NoSuchServerError(f"there is no server and no good profile {name}: {problem.message}", hint) from None
    # In this folder, so that a relative path in it means what it means here.
    return launchable.request(LaunchIntent(name, gpus, name=name))


async def _attend(request: SwitchRequest) -> Switch:
    """Ask for a switch, tell its steps as they end, and return how it ended."""
    keeper, told = AsyncKeeper(), _Told(request.name)
    stream = keeper.updates()
    await anext(stream)  # The state before: whatever happens from now on is heard.
    begun = await keeper.switch(request)
    told.show(begun)
    if begun.outcome != "running":
        return begun
    try:
        async for newer in _news(keeper, stream, begun.id):
            told.show(newer)
            if newer.outcome != "running":
                return newer
    except asyncio.CancelledError:
        say(f"the switch goes on; gpubox status shows {request.name}")
        raise
    raise KeeperError(f"the keeper told nothing more of the switch to {request.name}", "gpubox status")


async def _news(keeper: AsyncKeeper, stream: AsyncIterator[Update], switch_id: str) -> AsyncIterator[Switch]:
    """Yield each newer state of a switch; a keeper that dies on the way is started anew, and goes on with it."""
    tries = 0
    while True:
        try:
            async for update in stream:
                tries = 0
                if isinstance(update, SwitchUpdate) and update.switch.id == switch_id:
                    yield update.switch
                elif isinstance(update, SnapshotUpdate):
                    running = {one.id: one for one in update.snapshot.switches}
                    yield running[switch_id] if switch_id in running else await _ended(keeper, switch_id)
        except KeeperError:
            tries += 1
            if tries > RECONNECTS:
                raise
            say("the keeper went away; asking again")
        stream = keeper.updates()


async def _ended(keeper: AsyncKeeper, switch_id: str) -> Switch:
    """Return a switch that ended while no keeper was heard, as it is on record."""
    from backends import paths, switch_records
    from backends.records import Records

    def read() -> Switch | None:
        for record in switch_records.switches(Records(paths.records_path()), limit=50):
            if record.id == switch_id:
                steps = tuple(SwitchStep(one.name, one.server, record.at, one.took_s) for one in record.steps)
                outcome = cast("Literal['done', 'restored', 'failed']", record.outcome)
                return Switch(record.id, record.server, record.at, steps, outcome, record.error, record.took_s)
        return None

    found = await asyncio.to_thread(read)
    if found is None:
        raise KeeperError("the keeper went away, and nobody knows how the switch ended", "gpubox status")
    return found


class _Told:
    """Tells each step on standard error once it is over, and what lasts longer than the others once it begins."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._over: set[int] = set()
        self._begun: set[int] = set()

    def show(self, newer: Switch) -> None:
        """Tell what is new."""
        for number, step in enumerate(newer.steps):
            if number in self._over:
                continue
            if step.took_s is None:
                if step.name == "start" and number not in self._begun:
                    self._begun.add(number)
                    self._say(step, "…")
                continue
            self._over.add(number)
            self._say(step, step_took(step.took_s))

    def _say(self, step: SwitchStep, took: str) -> None:
        note = f" · {step.note}" if step.note else ""
        say(f"  {clock_time(time.time())} {step_text(step):<12} {took:>8}  {step.server}{note}")


def _what_next(name: str, done: Switch) -> str:
    """Say what to do about a switch that failed."""
    server = next((one for one in ensure_keeper().snapshot().servers if one.name == name), None)
    if server is not None and server.state is ServerState.FAILED:
        return f"gpubox diagnose {name} tells why; gpubox logs {name} shows its log"
    back = "nothing is lost; " if done.outcome == "restored" else ""
    return f"{back}gpubox switch lists what each switch would do now; gpubox status shows who serves"


def _list(store: Store, *, as_json: bool) -> int:
    client = ensure_keeper()
    servers = {server.name: server for server in client.snapshot().servers}
    choices = [*client.switch_choices(), *profile_choices(store, servers)]
    if as_json:
        from backends.snapshots import dump

        print(dump(tuple(choices), tuple[SwitchChoice, ...]).decode())
        return 0
    if not choices:
        print(NO_CHOICE)
        return 0
    rows = [_row(choice, servers) for choice in choices]
    print(table(("NAME", "STATE", "WAY", "SIZE", "EXPECTED", "WHO GIVES WAY"), rows, right=(3, 4)))
    for choice in choices:
        if choice.note:
            say(f"{choice.server}: {choice.note}")
    return 0


def profile_choices(store: Store, servers: dict[str, Server]) -> Iterator[SwitchChoice]:
    """Yield a choice for each good profile that no server is started from yet, with what its starts took before."""
    from backends import paths
    from backends.records import Records

    took = start_times(Records(paths.records_path()).launches())
    for entry in store.entries():
        if entry.profile is not None and entry.name not in servers:
            yield SwitchChoice(entry.name, Way.START, expected_s=took.get(entry.name))


def _row(choice: SwitchChoice, servers: dict[str, Server]) -> tuple[str, ...]:
    server = servers.get(choice.server)
    state = "profile" if server is None else str(server.state)
    if server is not None and server.state is ServerState.SLEEPING:
        state = asleep_text(server.sleep, time.time())
    giving = giving_text(choice.giving_way, servers.values())
    return (choice.server, state, WAYS[choice.way], size_text(choice), expected_text(choice), giving)


def sleep(name: str, *, level: Level | None, wait_s: float) -> int:
    """Put a server to sleep, and wait until it is; returns 0, or raises what the keeper says."""
    client = ensure_keeper()
    asked_at, before = time.monotonic(), next((one for one in client.snapshot().servers if one.name == name), None)
    if before is not None and before.state is ServerState.SLEEPING:
        say(f"{name} sleeps already: {asleep_text(before.sleep, time.time())}")
        return 0
    return asyncio.run(_sleep(name, client.sleep(name, level), asked_at, wait_s))


async def _sleep(name: str, begun: Server, asked_at: float, wait_s: float) -> int:
    server, falls = begun, begun.state is ServerState.FALLING_ASLEEP
    try:
        async with asyncio.timeout(wait_s):
            async for server in states(AsyncKeeper(), name):
                if server.state is ServerState.SLEEPING:
                    break
                falls = falls or server.state is ServerState.FALLING_ASLEEP
                if server.state not in (ServerState.FALLING_ASLEEP, ServerState.READY) or (
                    falls and server.state is ServerState.READY
                ):
                    raise ConflictError(f"{name} does not sleep: it is {server.state}", await _why(name))
    except TimeoutError:
        raise WaitOverError(f"{name} is still {server.state} after {wait_s:g} s", "gpubox status shows it") from None
    pinned = server.host_bytes
    held = f"; it holds {memory(pinned)} of the host's memory" if pinned else ""
    level = server.sleep.level if server.sleep else "?"
    say(f"{name} sleeps at level {level} ({time.monotonic() - asked_at:.1f} s){held}")
    return 0


async def _why(name: str) -> str:
    told = [event.text for event in await AsyncKeeper().history() if event.server == name]
    return told[-1] if told else f"gpubox logs {name}"
