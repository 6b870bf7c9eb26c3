"""Starting a server without a screen: stages while it starts, then what a person needs next; or the log, to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from backends.client import AsyncKeeper, ensure_keeper
from backends.errors import GpuboxError, KeeperError, StartFailedError, WaitOverError
from backends.handover import handover
from backends.processes.logs import LogFollower
from backends.snapshots import Server, ServerRemoved, ServerState, ServerUpdate, SnapshotUpdate, StartRequest
from backends.starts import StageTime, StartProgress, took_words
from tui.format import clock_time, fit, indices
from tui.headless.output import complain, say
from tui.progress import figures_text, start_text, took_text, wedged_text

RECONNECTS = 5
LOG_LOOK_S = 0.1
REWRITE_S = 0.5
BAR = 20


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the launch is to be attended: `wait_s` None waits for as long as it takes."""

    foreground: bool = False
    wait_s: float | None = None
    json: bool = False


def run(request: StartRequest, wishes: Wishes) -> int:
    """Start a server and attend it; returns 0, or raises the GpuboxError that tells why it is not ready.

    A warm spare may have to wait for its GPUs: it is attended, until it sleeps, only for as long as `wait_s` says.
    """
    if wishes.foreground:
        return asyncio.run(_foreground(request))
    server = ensure_keeper().start(request)
    if request.asleep and wishes.wait_s is None:
        _announce(server)
        print(json.dumps(_as_json(server)) if wishes.json else f"{server.name} will sleep once it has started")
        return 0
    return attend_start(server, wishes, ServerState.SLEEPING if request.asleep else ServerState.READY)


def attend_start(server: Server, wishes: Wishes, goal: ServerState = ServerState.READY) -> int:
    """Tell of a start that was just asked for, and attend it as `run` does."""
    _announce(server)
    return asyncio.run(_attend(server, wishes, goal=goal))


def restart(name: str, wishes: Wishes) -> int:
    """Start a server again as it was started, and attend it as `run` does."""
    client = ensure_keeper()
    before = next((server.launched_at for server in client.snapshot().servers if server.name == name), None)
    server = client.restart(name)
    if server.launched_at == before:
        say(f"{name}: stopping, to start again on {_where(server)}, port {server.port}")
    else:
        _announce(server)
    return asyncio.run(_attend(server, wishes, before))


def _announce(server: Server) -> None:
    say(f"{server.name}: starting {server.model} on {_where(server)}, port {server.port}; log: {server.log_path}")
    if server.gpus:
        say(f"  {server.why}")
    for warning in server.warnings:
        say(f"  careful: {warning}")


async def _attend(
    server: Server, wishes: Wishes, launch_before: float | None = None, goal: ServerState = ServerState.READY
) -> int:
    keeper = AsyncKeeper()
    try:
        async with asyncio.timeout(wishes.wait_s):
            server = await _until(goal, keeper, server, launch_before)
    except TimeoutError:
        raise WaitOverError(
            f"{server.name} is not {goal} after {wishes.wait_s:g} s; it keeps starting",
            f"gpubox status · gpubox logs {server.name} -f · gpubox stop {server.name}",
        ) from None
    except asyncio.CancelledError:
        say(f"{server.name} keeps starting; gpubox stop {server.name} ends it")
        return 130
    if wishes.json:
        print(json.dumps(_as_json(server)))
    elif goal is ServerState.SLEEPING:
        print(f"{server.name} sleeps; gpubox switch {server.name} wakes it")
    else:
        print("\n".join(ready_lines(server)))
    return 0


async def states(keeper: AsyncKeeper, name: str) -> AsyncIterator[Server]:
    """Yield each newer state of a server; a keeper that dies on the way is started anew and asked again."""
    tries = 0
    while True:
        try:
            async for update in keeper.updates():
                tries = 0
                match update:
                    case SnapshotUpdate(snapshot=snapshot):
                        found = next((s for s in snapshot.servers if s.name == name), None)
                        if found is None:
                            raise StartFailedError(f"the keeper no longer knows {name}", "see keeper.log")
                        yield found
                    case ServerUpdate(server=server) if server.name == name:
                        yield server
                    case ServerRemoved(name=removed) if removed == name:
                        raise StartFailedError(f"{name} was removed")
        except KeeperError:
            tries += 1
            if tries > RECONNECTS:
                raise
            say("the keeper went away; asking again")


async def _until(goal: ServerState, keeper: AsyncKeeper, server: Server, launch_before: float | None) -> Server:
    """Return the server once it has come to `goal`; the launch of before is only on its way out."""
    line = StageLine()
    rewriting = asyncio.create_task(line.keep_fresh())
    try:
        async for newer in states(keeper, server.name):
            if newer.is_live and newer.launched_at == launch_before:
                continue
            line.show(newer)
            if newer.state is goal:
                return newer
            _raise_if_ended(newer)
    finally:
        rewriting.cancel()
        line.end()
    raise StartFailedError(f"the keeper told nothing more of {server.name}")


def _raise_if_ended(server: Server) -> None:
    match server.state:
        case ServerState.STOPPED | ServerState.STOPPING:
            raise StartFailedError(f"{server.name} was stopped before it was ready")
        case ServerState.FAILED | ServerState.LOST:
            raise StartFailedError(f"{server.name} failed: {server.cause}", _what_next(server))


def _what_next(server: Server) -> str:
    """Say where the log is, and whether a change of the profile may cure the failure."""
    log = f"log: {server.log_path}"
    curable = server.card is not None and any(remedy.set for remedy in server.card.remedies)
    return f"gpubox fix {server.name} shows what may cure it; {log}" if curable else log


async def _foreground(request: StartRequest) -> int:
    """Start a server and stream its log until it ends; SIGINT and SIGTERM stop it, a second one kills it."""
    keeper, loop = AsyncKeeper(), asyncio.get_running_loop()
    signals: asyncio.Queue[None] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.put_nowait, None)
    last = await asyncio.to_thread(lambda: ensure_keeper().start(request))
    _announce(last)
    stopping = asyncio.create_task(_stop_at_signals(last.name, signals))
    log = _LogStream(last)
    try:
        async for newer in states(keeper, last.name):
            if newer.state is ServerState.READY and last.state is not ServerState.READY:
                for line in ready_lines(newer):
                    say(line)
            if newer.log_path != last.log_path:
                await log.end()
                log = _LogStream(newer)
            last = newer
            if not newer.is_live:
                break
    finally:
        stopping.cancel()
        await log.end()
    if last.state is not ServerState.STOPPED:
        raise StartFailedError(f"{last.name} failed: {last.cause}", _what_next(last))
    return 0


async def _stop_at_signals(name: str, signals: asyncio.Queue[None]) -> None:
    force = False
    while True:
        await signals.get()
        try:
            client = await asyncio.to_thread(ensure_keeper)
            await asyncio.to_thread(client.stop, name, force=force)
        except GpuboxError as problem:
            complain(problem)
        force = True


class _LogStream:
    """Prints a server's log as it grows."""

    def __init__(self, server: Server) -> None:
        self._follower = LogFollower(Path(server.log_path or ""))
        self._ended = asyncio.Event()
        self._task = asyncio.create_task(self._print())

    async def end(self) -> None:
        """Print what is there still, to the last line."""
        self._ended.set()
        await self._task

    async def _print(self) -> None:
        # Never cancelled while a thread reads: the lines it has would be lost.
        while True:
            ended = self._ended.is_set()
            printed = await asyncio.to_thread(self._print_new)
            if ended and not printed:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), LOG_LOOK_S)

    def _print_new(self) -> bool:
        lines = self._follower.poll()
        if lines:
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()
        return bool(lines)


class StageLine:
    """Tells a start on standard error: each stage's time as it ends, and what it is at.

    On a terminal one line is rewritten with a bar and the time left; else a line says which stage begins.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._live = sys.stderr.isatty()
        self._server: Server | None = None
        self._told: tuple[StageTime, ...] = ()
        self._last = ""

    def show(self, server: Server) -> None:
        """Show the newest state of the server."""
        progress = server.progress or StartProgress(0.0)
        if self._server is not None and server.launched_at != self._server.launched_at:
            self._told = ()
        self._server = server
        for stage in progress.done[len(self._told) :]:
            self._say(f"{stage.name} {took_text(stage.took_s)}")
        self._told = progress.done
        if self._live:
            self._rewrite()
        else:
            now_at = server.stage.name if server.stage else str(server.state)
            wedged = wedged_text(progress)
            if server.state is not ServerState.READY and f"{now_at} {wedged}" != self._last:
                self._last = f"{now_at} {wedged}"
                self._say(" · ".join(part for part in (now_at + _detail(server), wedged) if part))

    async def keep_fresh(self) -> None:
        """Rewrite the line twice a second, since time goes on without news."""
        while self._live:
            await asyncio.sleep(REWRITE_S)
            self._rewrite()

    def end(self) -> None:
        """Leave the line."""
        if self._live and self._last:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._last = ""
        self._live = False

    def _say(self, text: str) -> None:
        clear = "\r\x1b[K" if self._live else ""
        say(f"{clear}  {clock_time(self._now())} {text}")
        if self._live:
            self._last = ""

    def _rewrite(self) -> None:
        if self._server is None or self._server.state is ServerState.READY:
            return
        width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
        text = fit(f"  {start_line(self._server, self._now())}", width)
        if text != self._last:
            self._last = text
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()


def start_line(server: Server, now: float) -> str:
    """Return one line for a start: a bar where it is known how far it is, the stage, what is left, its detail."""
    progress, stage = server.progress, server.stage
    if stage is None:
        return f"{server.state}{_detail(server)}"
    ratio = progress.ratio if progress is not None and progress.ratio is not None else stage.progress
    full = round((ratio or 0.0) * BAR)
    bar = f"{'━' * full}{'─' * (BAR - full)} " if ratio is not None else ""
    said = start_text(server, now) or f"{server.state} · {stage.name}"
    wedged = wedged_text(progress) if progress is not None else ""
    return f"{bar}{wedged or said + _detail(server)}"


def _detail(server: Server) -> str:
    if server.state is ServerState.BACKOFF:
        return f": {server.cause}"
    return f" · {server.stage.detail}" if server.stage and server.stage.detail else ""


def ready_lines(server: Server) -> list[str]:
    """Return what is said once a server is ready."""
    took = took_words((server.ready_at or 0.0) - (server.launched_at or 0.0))
    context = f", context {server.max_model_len:,} tokens" if server.max_model_len else ""
    lines = [f"{server.name} is ready after {took}: {server.address}/v1 ({server.served_name}, {server.kind}{context})"]
    lines += [f"  {what + ':':<16}{line}" for what, line in handover(server)]
    if server.figures is not None and (told := figures_text(server.figures)):
        lines.append(f"  {'memory:':<16}{told}")
    return [*lines, f"  {'log:':<16}{server.log_path}"]


def _as_json(server: Server) -> dict[str, object]:
    from backends.snapshots import dump

    stages = [asdict(stage) for stage in server.progress.done] if server.progress else []
    return {**json.loads(dump(server)), "base_url": f"{server.address}/v1", "stages": stages}


def _where(server: Server) -> str:
    return f"GPU {indices(server.gpu_indices)}" if server.gpu_indices else "the CPU"
