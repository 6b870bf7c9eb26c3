"""Where faults are tried: a real keeper in a home of its own, victims to hurt, and a bystander that none may touch."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from backends import paths
from backends.client import KeeperClient, ensure_keeper
from backends.errors import GpuboxError
from backends.processes import logs, procfs
from backends.processes.facts import Identity, ProcessFacts, identity_of, is_alive, read_facts
from backends.snapshots import Missing, Server, ServerState
from tests.keeper.conftest import Box, fake_profile, kill_and_wait

FAKE_FAULTY = Path(__file__).parents[1] / "tests" / "keeper" / "fake_faulty.py"
LIMIT_S = 10.0
"""The state must be true within this."""

PATIENCE_S = 30.0
LOOK_S = 0.02
SETTLED_S = 0.8
"""What an engine takes to start: no real one is ready before its guard has looked at its shared memory."""


def until(true: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    """Return the first true value; raises AssertionError once it took too long."""
    deadline = time.monotonic() + within_s
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(LOOK_S)
    return value


@dataclass(frozen=True, slots=True)
class Victim:
    """A server that is ready, with its shim's record, all processes below the shim, and what it noted of its log."""

    stage: Stage
    server: Server
    facts: ProcessFacts
    tree: frozenset[Identity]
    note: Path

    @property
    def name(self) -> str:
        """The server's name."""
        return self.server.name

    def part(self, which: str) -> int:
        """Return the pid of the shim, the guard, the API server (`engine`), its `core`, or the core's `worker`."""
        if which in ("shim", "guard", "engine"):
            identity = getattr(self.facts, which)
            assert identity is not None
            return int(identity.pid)
        (core,) = psutil.Process(self.part("engine")).children()
        return core.pid if which == "core" else core.children()[0].pid

    def expect_gone(self) -> None:
        """See that nothing of it lives, in /dev/shm neither."""
        until(lambda: not [one for one in self.tree if is_alive(one)], f"{self.name} is gone", LIMIT_S)
        left = [path for one in self.tree if (path := Path(f"/dev/shm/psm_faulty_{one.pid}")).exists()]
        assert not left, f"shared memory is left: {left}"

    def expect_untouched(self) -> None:
        """See that all of it lives."""
        dead = [one for one in self.tree if not is_alive(one)]
        assert not dead, f"{self.name} has lost {dead}"

    def expect_whole_log(self, before: int | None = None) -> None:
        """See that each line that was printed (up to the number `before`) is in the log, and gpubox's own last."""
        printed = int(self.note.read_text()) if before is None else before
        lines = [logs.split_stamp(line)[1] for line in logs.tail(Path(self.server.log_path or ""), 1 << 30)]
        numbers = [int(line.split()[1]) for line in lines if line.startswith("beat ")]
        assert numbers == list(range(1, len(numbers) + 1)), f"{self.name}: lines are missing, doubled or out of order"
        assert len(numbers) >= printed, f"{self.name}: {printed - len(numbers)} of {printed} lines are missing"
        assert lines[-1].startswith("gpubox: "), f"{self.name}: the last line is {lines[-1]!r}"


class Stage(Box):
    """A box with a bystander; safe to be used by several threads, each with victims of its own."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._numbers = itertools.count()
        self._starting_keeper = threading.Lock()
        self._bystander: Victim | None = None
        self.moments = itertools.count(1)

    def keeper(self) -> KeeperClient:
        """Return the client, once a keeper listens."""
        with self._starting_keeper:
            return ensure_keeper(self.client)

    def keeper_pid(self) -> int:
        """Return the keeper's pid."""
        info = self.keeper().snapshot().keeper
        assert info is not None
        return info.pid

    def kill_keeper(self) -> None:
        """SIGKILL the keeper, and await its end."""
        kill_and_wait(self.keeper_pid())

    def profile(self, **args: object) -> dict[str, Any]:
        """Return the profile of a new victim; keywords are flags of fake_faulty.py."""
        name = f"v{next(self._numbers)}"
        return fake_profile(name, **args) | {"python": str(FAKE_FAULTY), "port": "auto"}

    def begin(self, profile: dict[str, Any] | None = None, **args: object) -> Server:
        """Start a victim, and return at once."""
        self.keeper()
        return self.start(profile or self.profile(**args))

    def ready(self, profile: dict[str, Any] | None = None, **args: object) -> Victim:
        """Start a victim with a tree of processes and await that it is ready."""
        if profile is None:
            profile = self.profile(tree=True, **args)
        profile["args"].setdefault("fake_start", SETTLED_S)
        note = self.home / f"{profile['name']}.note"
        profile["args"]["fake_note"] = str(note)
        self.begin(profile)
        return self.victim(self.comes_to(profile["name"], ServerState.READY), note)

    def victim(self, server: Server, note: Path | None = None) -> Victim:
        """Return what there is of a server now."""
        facts = self.facts(server.name)
        tree = {facts.shim} | {
            Identity(facts.shim.boot_id, pid, ticks) for pid, ticks in procfs.descendants(facts.shim.pid)
        }
        return Victim(self, server, facts, frozenset(tree), note or self.home / f"{server.name}.note")

    def facts(self, name: str) -> ProcessFacts:
        """Return what the newest shim of a server wrote down."""
        newest = max(paths.server_dir(name).glob("*/process.json"), key=lambda path: path.parent.name)
        facts = read_facts(newest)
        assert not isinstance(facts, Missing), facts.reason
        return facts

    def comes_to(self, name: str, *states: ServerState, within_s: float = PATIENCE_S) -> Server:
        """Await one of the states, as a client is told; returns the server. A keeper that is gone is started anew."""

        def look() -> Server | None:
            with contextlib.suppress(GpuboxError, StopIteration):
                self.keeper()
                server = self.server(name)
                return server if server.state in states else None
            return None

        try:
            found: Server = until(look, f"{name} is {' or '.join(states)}", within_s)
        except AssertionError:
            now = self.server(name)
            wanted = " or ".join(states)
            raise AssertionError(f"not {wanted} within {within_s:g} s, but {now.state}: {now.cause}") from None
        return found

    def drop(self, name: str) -> None:
        """Have a server be gone and forgotten."""
        with contextlib.suppress(GpuboxError):
            if self.server(name).is_live:
                self.client.stop(name, force=True)
        self.comes_to(name, ServerState.STOPPED, ServerState.FAILED, ServerState.LOST)
        self.client.forget(name)

    def standing(self) -> Victim:
        """Return the bystander: a server that nothing that is tried may touch."""
        if self._bystander is None:
            self._bystander = self.ready(self.profile(tree=True) | {"name": "bystander"})
        return self._bystander

    def expect_bystander_untouched(self) -> None:
        """See that the bystander has all its processes, and that a client is told so."""
        bystander = self.standing()
        bystander.expect_untouched()
        told = self.comes_to(bystander.name, ServerState.READY)
        assert told.launched_at == bystander.server.launched_at, "the bystander was started again"


@contextlib.contextmanager
def took() -> Iterator[Callable[[], float]]:
    """Measure seconds from here on; the function returned tells how many, up to now or to the end of the block."""
    begun = time.monotonic()
    ended: list[float] = []
    try:
        yield lambda: (ended[0] if ended else time.monotonic()) - begun
    finally:
        ended.append(time.monotonic())


def mine(pid: int) -> Identity:
    """Return who has this pid now."""
    identity = identity_of(pid)
    assert identity is not None
    return identity
