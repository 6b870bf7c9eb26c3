"""A real keeper in a home of its own, with a small program in vLLM's place; all that it started is gone afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w

from backends import paths
from backends.client import KeeperClient, ensure_keeper
from backends.errors import GpuboxError
from backends.processes.facts import is_alive, read_facts
from backends.snapshots import Missing, Server, ServerState, StartRequest

ROOT = Path(__file__).parents[2]
FAKE_VLLM = Path(__file__).with_name("fake_vllm.py")
PATIENCE_S = 45.0


def free_port() -> int:
    """Return a port that nobody is given by chance: below those of outgoing connections, and not the keeper's first."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as door, contextlib.suppress(OSError):
            door.bind(("127.0.0.1", port))
            return port


def fake_profile(name: str = "fake", **args: object) -> dict[str, Any]:
    return {
        "name": name,
        "model": "/models/fake",
        "served_name": "fake",
        "engine": "vllm",
        "gpus": "cpu",
        "port": free_port(),
        "python": str(FAKE_VLLM),
        "drain_s": 1.0,
        "args": {f"fake_{key}": value for key, value in args.items()},
    }


def kill_and_wait(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([descriptor], [], [], PATIENCE_S)[0], f"pid {pid} does not end"
    os.close(descriptor)


class Box:
    """A keeper and what a test asks of it, in its own process or through the command line."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home
        self.client = KeeperClient()
        self._given_environ = os.environ | {"PYTHONPATH": str(ROOT)}
        self.environ = dict(self._given_environ)
        self._spawned: list[subprocess.Popen[str]] = []

    def start(self, profile: dict[str, Any], environ: Mapping[str, str] | None = None, **wishes: Any) -> Server:
        ensure_keeper(self.client)
        asked_in = {"PATH": os.environ["PATH"], "MARKER": "from-the-client"} | dict(environ or {})
        return self.client.start(StartRequest(profile, asked_in, **wishes))

    def server(self, name: str = "fake") -> Server:
        return next(server for server in self.client.snapshot().servers if server.name == name)

    def until(self, wanted: Callable[[Server], bool] | ServerState, name: str = "fake") -> Server:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            server = self.server(name)
            if server.state is wanted if isinstance(wanted, ServerState) else wanted(server):
                return server
            time.sleep(0.05)
        raise AssertionError(f"{name} never got there: {self.server(name)}")

    def held_profile(self, name: str = "fake", **args: object) -> dict[str, Any]:
        """Return a profile whose engine loads weights until `let_start`."""
        self._go(name).unlink(missing_ok=True)
        return fake_profile(name, hold=str(self._go(name)), **args)

    def let_start(self, name: str = "fake") -> None:
        """Let a held engine go on."""
        self._go(name).touch()

    def hold_again(self, name: str = "fake") -> None:
        """Hold the next start of a held profile."""
        self._go(name).unlink()

    def _go(self, name: str) -> Path:
        return self.home / f"{name}.go"

    def keep_profile(self, profile: dict[str, Any]) -> None:
        """Put a profile where the command line finds it by its name."""
        folder = paths.private(paths.profile_dir())
        (folder / f"{profile['name']}.toml").write_text(tomli_w.dumps(profile))

    def gpubox(self, *args: str, code: int = 0, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, which must be with this exit code, and without a traceback."""
        done = subprocess.run(
            self.command(*args),
            env=self.environ,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def spawn(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Begin a command; its output is to be read from its pipes."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return self.spawn_other(*self.command(*args), **(pipes | options))

    def spawn_other(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Begin a program that is none of gpubox's."""
        child = subprocess.Popen(command, env=self.environ, cwd=self.folder, text=True, **options)
        self._spawned.append(child)
        return child

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-P", "-m", "tui", *args]

    def keeper_pids(self) -> list[int]:
        """Return the pids of the keepers of this home."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if "backends.keeper" in process.cmdline() and process.environ().get("GPUBOX_HOME") == str(self.home):
                    found.append(process.pid)
        return found

    def end_commands(self) -> None:
        """Kill what was spawned and still runs."""
        for child in self._spawned:
            if child.poll() is None:
                child.kill()
            with child:
                child.wait()
        self._spawned.clear()

    def sweep(self) -> None:
        """Leave nothing but the keeper: no command, server, log or profile."""
        self.end_commands()
        for server in ensure_keeper(self.client).snapshot().servers:
            if server.foreign is not None:
                continue
            if server.is_live:
                self.client.stop(server.name, force=True)
                self.until(lambda s: not s.is_live, server.name)
            self.client.forget(server.name)
        for folder in (paths.log_dir(), paths.profile_dir()):
            shutil.rmtree(folder, ignore_errors=True)
        self.environ = dict(self._given_environ)

    def clear(self) -> None:
        """End all that was started here, and see that it has ended."""
        self.end_commands()
        if not self.client.is_up() and not list((paths.state_dir() / "servers").glob("*/server.json")):
            return
        with contextlib.suppress(GpuboxError):
            for server in ensure_keeper(self.client).snapshot().servers:
                if server.is_live and server.foreign is None:
                    self.client.stop(server.name, force=True)
                    self.until(lambda s: not s.is_live, server.name)
            self.client.shutdown()
        for facts_path in (paths.state_dir() / "servers").glob("*/*/process.json"):
            facts = read_facts(facts_path)
            assert isinstance(facts, Missing) or not is_alive(facts.shim), f"{facts_path}: a shim is left"


@contextlib.contextmanager
def box_in(home: Path, kind: type[Box] = Box) -> Iterator[Box]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUBOX_HOME", str(home))
        patch.setenv("GPUBOX_LEDGER", str(home / "ledger"))
        box = kind(home)
        try:
            yield box
        finally:
            box.clear()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A box with a home of its own, in which no keeper runs yet."""
    with box_in(tmp_path) as box:
        yield box


@pytest.fixture(scope="module")
def lasting_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box that a module's tests share, since a keeper takes most of a second to start; each sweeps it."""
    with box_in(tmp_path_factory.mktemp("home")) as box:
        yield box
