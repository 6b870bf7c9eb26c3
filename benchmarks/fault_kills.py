"""Faults in which a process is killed: a part of a server, the keeper in the midst of its work, or a screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from backends import paths
from backends.client import KeeperClient
from backends.errors import GpuboxError
from backends.processes.facts import is_alive, read_facts
from backends.snapshots import Missing, ServerState, StartRequest
from benchmarks.stage import LIMIT_S, Stage, mine, took, until

WRITTEN_S = 0.1
"""After so long a printed line has reached the file; a shim that is killed takes along what has not."""


def part_killed(which: str) -> Callable[[Stage], float]:
    """Return the fault in which one process of a server gets SIGKILL."""

    def fault(stage: Stage) -> float:
        victim = stage.ready()
        printed = None
        if which == "shim":
            printed = int(victim.note.read_text())
            time.sleep(WRITTEN_S)
        with took() as seconds:
            os.kill(victim.part(which), signal.SIGKILL)
            stage.comes_to(victim.name, ServerState.FAILED, within_s=LIMIT_S)
        victim.expect_gone()
        victim.expect_whole_log(printed)
        assert stage.facts(victim.name).phase == "exited"
        stage.drop(victim.name)
        return seconds()

    return fault


def shim_and_guard_killed(stage: Stage) -> float:
    """Both supervisors at the same moment: the API server must be dead with them, and the state say so."""
    victim = stage.ready()
    engine = mine(victim.part("engine"))
    supervisors = [victim.part("shim"), victim.part("guard")]
    orphans = [victim.part("core"), victim.part("worker")]
    for pid in supervisors:
        os.kill(pid, signal.SIGSTOP)  # so that neither tells of the other's end
    with took() as seconds:
        for pid in supervisors:
            os.kill(pid, signal.SIGKILL)
        stage.comes_to(victim.name, ServerState.LOST, within_s=LIMIT_S)
    until(lambda: not is_alive(engine), "the API server is gone", LIMIT_S)
    for pid in orphans:  # nobody is left to end them: docs/architecture.md says so
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    Path(f"/dev/shm/psm_faulty_{orphans[0]}").unlink(missing_ok=True)
    stage.drop(victim.name)
    return seconds()


def keeper_killed(stage: Stage) -> float:
    """Kill the keeper of a server that is ready: nothing happens to it."""
    victim = stage.standing()
    stage.kill_keeper()
    with took() as seconds:
        told = stage.comes_to(victim.name, ServerState.READY)
    victim.expect_untouched()
    assert (told.launched_at, told.port) == (victim.server.launched_at, victim.server.port)
    return seconds()


def keeper_killed_during_a_start(stage: Stage) -> float:
    """Kill the keeper at any moment of a start: the start goes on, or was never begun."""
    profile = stage.profile(start=0.5, note=str(stage.home / "start.note"))
    name = profile["name"]
    with ThreadPoolExecutor(1) as pool:
        stage.keeper()
        asked = pool.submit(stage.client.start, request(profile))
        time.sleep(_moment(stage, 0.25))
        stage.kill_keeper()
        with took() as seconds:
            known = {server.name for server in stage.keeper().snapshot().servers}
            if name in known:
                stage.comes_to(name, ServerState.READY)
            else:
                assert asked.exception() is not None, "the start was confirmed, and then forgotten"
    if name in known:
        victim = stage.victim(stage.server(name))
        stage.drop(name)
        victim.expect_gone()
    return seconds()


def _moment(stage: Stage, longest_s: float) -> float:
    """Return another moment at each try, the same ones in each run."""
    return next(stage.moments) * 0.618 % 1 * longest_s


def keeper_killed_during_a_stop(stage: Stage) -> float:
    """Kill the keeper at any moment of a stop: the next one brings it to its end."""
    victim = stage.ready()
    stage.client.stop(victim.name)
    time.sleep(_moment(stage, 0.1))
    stage.kill_keeper()
    with took() as seconds:
        stage.comes_to(victim.name, ServerState.STOPPED)
    victim.expect_gone()
    victim.expect_whole_log()
    stage.drop(victim.name)
    return seconds()


def keeper_killed_during_a_restart(stage: Stage) -> float:
    """Kill the keeper at any moment of a restart: the server comes up again, once."""
    victim = stage.ready()
    stage.client.restart(victim.name)
    time.sleep(_moment(stage, 0.3))
    stage.kill_keeper()
    with took() as seconds:
        stage.keeper()
        until(lambda: stage.server(victim.name).launched_at != victim.server.launched_at, "it is launched again")
        stage.comes_to(victim.name, ServerState.READY)
    victim.expect_gone()
    stage.drop(victim.name)
    return seconds()


def keeper_killed_during_the_back_off(stage: Stage) -> float:
    """Kill the keeper while a failed server waits for its next attempt: the attempt is made all the same."""
    profile = stage.profile(die_after=0.1)
    profile["restart"] = {"policy": "on-failure", "max_attempts": 1, "backoff_s": 1.5}
    server = stage.begin(profile)
    stage.comes_to(server.name, ServerState.BACKOFF)
    stage.kill_keeper()
    with took() as seconds:
        stage.comes_to(server.name, ServerState.FAILED)
        until(lambda: stage.server(server.name).launched_at != server.launched_at, "the attempt was made", LIMIT_S)
    stage.comes_to(server.name, ServerState.FAILED)
    stage.drop(server.name)
    return seconds()


def restarts_on_failure(stage: Stage) -> float:
    """An engine that always dies: so many attempts as the profile says, ever further apart, each with its log."""
    profile = stage.profile(die_after=0.05)
    profile["restart"] = {"policy": "on-failure", "max_attempts": 2, "backoff_s": 0.2}
    with took() as seconds:
        server = stage.begin(profile)
        until(lambda: stage.server(server.name).attempt == 2, "the last attempt")
        failed = stage.comes_to(server.name, ServerState.FAILED)
    assert failed.cause is not None
    texts = [path.read_text() for path in paths.log_dir().glob(f"{server.name}-*.log")]
    # One that lost its port to a neighbour is an attempt that does not count, with a log of its own.
    whole = [text for text in texts if " ended with exit code 3" in text.splitlines()[-1]]
    assert len(whole) == 3, f"{len(whole)} logs of attempts, {len(texts)} in all"
    stage.drop(server.name)
    return seconds()


def sigterm_ignored(stage: Stage) -> float:
    """A server that ignores SIGTERM is killed when the stop has waited long enough."""
    victim = stage.ready(ignore_term=True)
    with took() as seconds:
        stage.client.stop(victim.name)
        stage.comes_to(victim.name, ServerState.STOPPED, within_s=60)
    victim.expect_gone()
    victim.expect_whole_log()
    stage.drop(victim.name)
    return seconds()


def sigterm_ignored_and_forced(stage: Stage) -> float:
    """A stop by force does not wait for a server that ignores SIGTERM."""
    victim = stage.ready(ignore_term=True)
    with took() as seconds:
        stage.client.stop(victim.name, force=True)
        stage.comes_to(victim.name, ServerState.STOPPED, within_s=LIMIT_S)
    victim.expect_gone()
    stage.drop(victim.name)
    return seconds()


def screen_killed(stage: Stage) -> float:
    """Kill a screen that shows a server."""
    victim = stage.standing()
    with screen(stage) as (child, shown):
        until(lambda: victim.name.encode() in shown(), "the screen shows the server")
        child.kill()
        child.wait()
        with took() as seconds:
            stage.comes_to(victim.name, ServerState.READY)
    victim.expect_untouched()
    return seconds()


@contextlib.contextmanager
def screen(stage: Stage) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], bytes]]]:
    """Open the control center in a terminal of its own; yields the process, and what it has shown so far."""
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "tui"],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=stage.environ | {"TERM": "xterm-256color"},
        cwd=stage.home,
        start_new_session=True,
    )
    os.close(inside)
    seen = bytearray()

    def shown() -> bytes:
        while select.select([terminal], [], [], 0)[0]:
            with contextlib.suppress(OSError):
                seen.extend(os.read(terminal, 65536))
                continue
            break
        return bytes(seen)

    try:
        yield child, shown
    finally:
        child.kill()
        child.wait()
        os.close(terminal)


def several_at_once(stage: Stage) -> float:
    """Two screens' clients and a script start, stop and switch one server at once: one launch at a time, no error."""
    profile = stage.profile(note=str(stage.home / "several.note"))
    name = profile["name"]
    stage.begin(profile)

    def client(number: int) -> None:
        own = KeeperClient(stage.client.socket_path)
        for turn in range(9):
            time.sleep(next(stage.moments) * 0.618 % 1 * 0.1)
            with contextlib.suppress(GpuboxError):
                if (number + turn) % 3 == 0:
                    own.stop(name, force=turn % 2 == 0)
                elif (number + turn) % 3 == 1:
                    own.restart(name)
                else:
                    own.start(request(profile))
            living = [path for path in paths.server_dir(name).glob("*/process.json") if _lives(path)]
            assert len(living) <= 1, f"two launches live at once: {living}"

    with took() as seconds, ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(client, number) for number in range(3)]:
            done.result()
    with contextlib.suppress(GpuboxError):
        stage.client.stop(name)
    stage.comes_to(name, ServerState.STOPPED, ServerState.FAILED)
    until(lambda: not [p for p in paths.server_dir(name).glob("*/process.json") if _lives(p)], "no launch is left")
    stage.drop(name)
    return seconds()


def request(profile: dict[str, Any]) -> StartRequest:
    """Return what a client sends to start a profile."""
    return StartRequest(profile, {"PATH": os.environ["PATH"]})


def _lives(path: Path) -> bool:
    facts = read_facts(path)
    return not isinstance(facts, Missing) and facts.phase != "exited" and is_alive(facts.shim)
