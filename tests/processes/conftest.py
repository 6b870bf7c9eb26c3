from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.processes import facts, logs, procfs
from backends.processes.facts import Identity, ProcessFacts, StepExit
from backends.processes.launch import launch
from backends.snapshots import Missing

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


def until(true: Callable[[], Any], what: str, within_s: float = 45.0) -> Any:
    """Return the first true value of `true`, asked again and again; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.005)
    return value


def await_death(identity: Identity, within_s: float) -> None:
    fd = facts.open_pidfd(identity)
    if fd is None:
        return
    try:
        ended, _, _ = select.select([fd], [], [], within_s)
        assert ended, f"{identity} lives on after {within_s} s"
    finally:
        os.close(fd)


class Launched:
    """A shim with a fake engine."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.folder, self.spec = folder, spec
        self.log = Path(spec["log"])
        self.known: set[Identity] = set()

    @property
    def facts(self) -> ProcessFacts:
        found = facts.read_facts(Path(self.spec["facts"]))
        assert not isinstance(found, Missing), found
        return found

    def lines(self) -> list[str]:
        """The log's lines without their stamps."""
        return [logs.split_stamp(line)[1] for line in logs.tail(self.log, 10**9)]

    def await_line(self, text: str) -> None:
        until(lambda: text in self.lines(), f"{text!r} in the log")

    def tree(self) -> set[Identity]:
        """The shim and all that descends from it now."""
        shim = self.facts.shim
        found = {Identity(shim.boot_id, pid, ticks) for pid, ticks in procfs.descendants(shim.pid)}
        self.known |= found | {shim}
        return found | {shim}

    def signal(self, number: int) -> None:
        assert facts.signal(self.facts.shim, number)

    def await_phase(self, phase: str, within_s: float = 45.0) -> ProcessFacts:
        until(lambda: self.facts.phase == phase, f"phase {phase}", within_s)
        return self.facts

    def await_end(self, within_s: float = 45.0) -> ProcessFacts:
        """Await that the facts say `exited`, then that shim and guard are gone too."""
        end = self.await_phase("exited", within_s)
        await_death(end.shim, 45)
        await_death(end.guard, 45)
        return end


class Launcher:
    """Makes specs and launches them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launched: list[Launched] = []

    def argv(self, *actions: str) -> list[str]:
        return [sys.executable, "-I", "-S", str(FAKE_ENGINE), *actions]

    def spec(self, *actions: str, **changes: Any) -> dict[str, Any]:
        """A spec for one engine step; keywords replace keys."""
        base = self.folder / str(len(self.launched))
        spec = {
            "schema": 1,
            "name": "demo",
            "steps": [{"label": "engine", "argv": self.argv(*actions)}],
            "environ": {"PATH": os.environ["PATH"]},
            "cwd": str(self.folder),
            "log": str(base / "demo.log"),
            "log_max_bytes": 1 << 30,
            "log_parts": 3,
            "drop_lines_with": "by=gpubox",
            "facts": str(base / "launch" / "process.json"),
            "progress": str(base / "launch" / "progress.json"),
            "locks": [],
            "grants": [],
            "term_again_s": 0.2,
            "kill_after_s": 5.0,
        }
        return spec | changes

    def __call__(self, *actions: str, **changes: Any) -> Launched:
        return self.launch(self.spec(*actions, **changes))

    def launch(self, spec: dict[str, Any]) -> Launched:
        launch(spec, Path(spec["facts"]).parent)
        return self.adopt(spec)

    def adopt(self, spec: dict[str, Any]) -> Launched:
        """Take on a shim that somebody else started."""
        launched = Launched(Path(spec["facts"]).parent, spec)
        self.launched.append(launched)
        return launched

    def clear(self) -> None:
        for launched in self.launched:
            launched.known |= launched.tree()
            facts.signal(launched.facts.shim, signal.SIGQUIT)
        for launched in self.launched:
            for identity in launched.known:
                await_death(identity, 45)


def await_children(launched: Launched, count: int) -> set[Identity]:
    """Await `count` processes below the engine's main one; return the whole tree, with it and shim and guard."""
    deadline = time.monotonic() + 45
    while len(tree := launched.tree()) < count + 3:
        assert time.monotonic() < deadline, f"{len(tree)} processes"
        time.sleep(0.005)
    return tree


def assert_gone(tree: set[Identity], since: float, within_s: float) -> None:
    while alive := [identity for identity in tree if facts.is_alive(identity)]:
        assert time.monotonic() - since < within_s, f"alive: {alive}"
        time.sleep(0.005)


def outcome(end: StepExit | None) -> tuple[int | None, int | None]:
    assert end is not None
    return end.code, end.signal


def locked(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Launcher]:
    """Launch a fake engine with `start(*actions)`; whatever still lives at the test's end is killed."""
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.clear()
