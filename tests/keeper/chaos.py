"""Random starts, stops and kills, by several homes' keepers on one box: no GPU has two owners, no process is lost.

What holds is asked of the processes themselves: an engine is at home in its launch's folder, and has its GPUs in
CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import paths
from backends.client import KeeperClient, ensure_keeper
from backends.errors import GpuboxError
from backends.processes import procfs
from backends.processes.facts import Identity, ProcessFacts, current_boot_id, is_alive, open_pidfd, read_facts
from backends.processes.facts import signal as send_signal
from backends.snapshots import Missing, Server, StartRequest
from tests.gpu.conftest import SOURCE, NvmlStub, StubGpu
from tests.keeper.conftest import fake_profile

FAKE_FAULTY = Path(__file__).with_name("fake_faulty.py")
NAMES = ("a", "b", "c")
SETTLE_S = 60.0
LOOK_S = 0.02


@contextlib.contextmanager
def environment(given: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for a while."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def build_stub(folder: Path) -> Path:
    """Compile the stand-in for the NVIDIA driver's library; returns its path."""
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    return library


@dataclass(frozen=True, slots=True)
class Living:
    """A process of an engine: in which launch's folder it is at home, and which GPUs it sees."""

    identity: Identity
    launch: Path
    gpus: tuple[int, ...]


class Home:
    """One user's gpubox."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = {"GPUBOX_HOME": str(folder), **environ}
        with environment(self.environ):
            self.servers = paths.server_dir("x").parent
            self.client = KeeperClient(paths.keeper_socket())

    def keeper(self) -> KeeperClient:
        """Return the client, once a keeper listens."""
        with environment(self.environ):
            return ensure_keeper(self.client)

    def snapshot(self) -> tuple[Server, ...]:
        """Return what the keeper tells of its servers."""
        return self.keeper().snapshot().servers

    def supervised(self) -> list[ProcessFacts]:
        """Return the launches of which both shim and guard live."""
        found = (read_facts(path) for path in self.servers.glob("*/*/process.json"))
        return [
            facts
            for facts in found
            if not isinstance(facts, Missing) and is_alive(facts.shim) and is_alive(facts.guard)
        ]


class Chaos:
    """A box of some GPUs with some homes; `seed` decides all that happens, but not how fast."""

    def __init__(self, folder: Path, library: Path, *, homes: int, gpus: int, seed: int) -> None:
        stub = NvmlStub(library, folder / "nvml.ini")
        stub.show([StubGpu()] * gpus)
        environ = {name: stub.environ()[name] for name in ("LD_LIBRARY_PATH", "GPUBOX_NVML_STUB")}
        environ["GPUBOX_LEDGER"] = str(folder / "ledger")
        environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        self.homes = [Home(folder / f"home-{number}", environ) for number in range(homes)]
        for home in self.homes:
            home.folder.mkdir()
        self._gpus = gpus
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def operate(self) -> str:
        """Do one random thing, and return its name; that it is refused is no failure."""
        home = self._random.choice(self.homes)
        name = self._random.choice(NAMES)
        doings: dict[str, tuple[int, Callable[[], object]]] = {
            "start": (44, lambda: home.keeper().start(self.request(name))),
            "stop": (12, lambda: home.keeper().stop(name, force=self._random.random() < 0.5)),
            "restart": (8, lambda: home.keeper().restart(name)),
            "forget": (3, lambda: home.keeper().forget(name)),
            "kill the server": (4, lambda: self._kill_part(home, "engine")),
            "kill the shim": (4, lambda: self._kill_part(home, "shim")),
            "kill the guard": (4, lambda: self._kill_part(home, "guard")),
            "kill the core": (4, lambda: self._kill_core(home)),
            "kill the keeper": (6, lambda: self.kill_keeper(home)),
        }
        names = list(doings)
        what = self._random.choices(names, [doings[one][0] for one in names])[0]
        self.done[what] += 1
        try:
            doings[what][1]()
        except GpuboxError as refused:
            self.refused[refused.code] += 1
        time.sleep(self._random.choice((0.0, 0.0, 0.05, 0.2)))
        return what

    def request(self, name: str, count: int | None = None) -> StartRequest:
        """Return a wish for GPUs, how many and which of them by chance; `count` asks for any so many."""
        wish: tuple[str, ...] | None = ("auto",)
        retried = False
        if count is None:
            count = self._random.choice((1, 1, 2))
            retried = self._random.random() < 0.3
            named = tuple(str(one) for one in self._random.sample(range(self._gpus), count))
            wish = self._random.choice((None, wish, named))
        profile: dict[str, Any] = fake_profile(name, tree=True) | {"python": str(FAKE_FAULTY), "port": "auto"}
        profile["gpus"] = count
        if count > 1:
            profile["args"]["tensor_parallel_size"] = count
        if retried:
            profile["restart"] = {"policy": "on-failure", "max_attempts": 2, "backoff_s": 0.2}
        return StartRequest(profile, {"PATH": os.environ["PATH"]}, gpus=wish)

    def _kill_part(self, home: Home, part: str) -> None:
        if launches := home.supervised():
            identity = getattr(self._random.choice(launches), part)
            if identity is not None:
                _kill(identity)

    def _kill_core(self, home: Home) -> None:
        living = [one for one in self.living() if one.launch.is_relative_to(home.servers)]
        main = {facts.engine.pid for facts in home.supervised() if facts.engine}
        if below := [one for one in living if one.identity.pid not in main]:
            _kill(self._random.choice(below).identity)

    def kill_keeper(self, home: Home) -> None:
        """SIGKILL a home's keeper, and await its end."""
        info = home.keeper().snapshot().keeper
        assert info is not None
        _kill(Identity(current_boot_id(), info.pid, procfs.start_ticks(info.pid) or 0))

    def living(self) -> list[Living]:
        """Return all processes that are at home in a launch of ours; those that are ending are not there any more."""
        found = []
        for pid in procfs.pids():
            with contextlib.suppress(OSError, ValueError):
                launch = Path(f"/proc/{pid}/cwd").readlink()
                if launch.parent.parent not in [home.servers for home in self.homes]:
                    continue
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                given = dict(entry.partition(b"=")[::2] for entry in environ)
                gpus = tuple(int(part) for part in given.get(b"CUDA_VISIBLE_DEVICES", b"").split(b",") if part)
                ticks = procfs.start_ticks(pid)
                if ticks is not None:
                    found.append(Living(Identity(current_boot_id(), pid, ticks), launch, gpus))
        return [one for one in found if is_alive(one.identity)]

    def check(self) -> None:
        """See that each GPU has one owner at most, and that no engine runs that no record names."""
        living = self.living()
        for gpu in range(self._gpus):
            owners: dict[Path, list[Living]] = {}
            for one in living:
                if gpu in one.gpus:
                    owners.setdefault(one.launch, []).append(one)
            # Those seen first may have ended before those seen last began: only who lives now counts.
            still = {launch for launch, those in owners.items() if any(is_alive(one.identity) for one in those)}
            assert len(still) <= 1, f"GPU {gpu} has {len(still)} owners: {sorted(map(str, still))}"
        for launch in {one.launch for one in living}:
            recorded = (launch.parent / "server.json").exists()
            assert recorded or not self._lives(launch), f"{launch} runs, and no record names it"

    def _lives(self, launch: Path) -> bool:
        return any(one.launch == launch for one in self.living())

    def settle(self) -> None:
        """See that in the end the keepers tell the truth, and that nothing is left once all is stopped."""
        deadline = time.monotonic() + SETTLE_S
        while lies := self._lies():
            assert time.monotonic() < deadline, f"after {SETTLE_S:.0f} s: {lies}"
            time.sleep(LOOK_S)
        self._end()
        assert not self.living(), f"left: {self.living()}"

    def _lies(self) -> list[str]:
        """Return where what a keeper tells differs from what is."""
        told = {home.servers / server.name: server for home in self.homes for server in home.snapshot()}
        running = {one.launch.parent for one in self.living()}
        lies = [f"{path} runs, but is told to be {told.get(path)}" for path in running if not _live(told.get(path))]
        return lies + [
            f"{path} is ready, but nothing runs" for path, one in told.items() if one.pid and path not in running
        ]

    def _end(self) -> None:
        deadline = time.monotonic() + SETTLE_S
        while live := [(home, one.name) for home in self.homes for one in home.snapshot() if _live(one)]:
            assert time.monotonic() < deadline, f"{live} cannot be stopped"
            for home, name in live:
                with contextlib.suppress(GpuboxError):
                    home.client.stop(name, force=True)
            time.sleep(LOOK_S)

    def clear(self) -> None:
        """End all that is left, whatever went wrong."""
        for home in self.homes:
            for facts in home.supervised():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(facts.shim.pid, signal.SIGQUIT)
            with contextlib.suppress(GpuboxError):
                if home.client.is_up() and (info := home.client.snapshot().keeper):
                    keeper = Identity(current_boot_id(), info.pid, procfs.start_ticks(info.pid) or 0)
                    home.client.shutdown()
                    await_end(keeper)
        for one in self.living():
            _kill(one.identity)
        for left in Path("/dev/shm").glob(
            "psm_faulty_*"
        ):  # kills that overlap may leave some: `gpubox clean` is for them
            if procfs.start_ticks(int(left.name.rpartition("_")[2])) is None:
                left.unlink(missing_ok=True)


def _live(server: Server | None) -> bool:
    return server is not None and server.foreign is None and server.is_live


def _kill(identity: Identity) -> None:
    """SIGKILL this very process, and await its end."""
    send_signal(identity, signal.SIGKILL)
    await_end(identity)


def await_end(identity: Identity) -> None:
    """Await the end of this very process."""
    descriptor = open_pidfd(identity)
    if descriptor is not None:
        ended = select.select([descriptor], [], [], SETTLE_S)[0]
        os.close(descriptor)
        assert ended, f"{identity} does not end"


def run(chaos: Chaos, operations: int) -> None:
    """Do so many random things, and see after each that all is well."""
    try:
        for number in range(operations):
            what = chaos.operate()
            try:
                chaos.check()
            except AssertionError as wrong:
                raise AssertionError(f"operation {number}, {what}: {wrong}") from wrong
        chaos.settle()
    finally:
        chaos.clear()
