"""Whose memory on a GPU is: shares that add up, real processes in launch folders that nobody looks after any more."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.gpus import ownership
from backends.gpus.ownership import DRIVERS_OWN, ELSEWHERE, UNSEEN, Origin, Origins, attributed, shares_of
from backends.gpus.processes import ANOTHER_CONTAINER, Seen
from backends.processes.facts import current_boot_id, identity_of
from backends.snapshots import Box, Gpu, GpuProcess, Host, Missing, Owner, Share

GIB = 1 << 30
NOBODY = 2**22 + 1
"""A pid above every kernel's limit."""


def gpu(used: int | Missing, *processes: GpuProcess, listed: Missing | None = None) -> Gpu:
    return Gpu(0, "GPU-0", "H200", 140 * GIB, used, 0, 0.0, 30, 70.0, 700.0, listed or processes)


def process(pid: int, size: int | Missing, owner: Owner = Owner.FOREIGN, **more: object) -> GpuProcess:
    return replace(GpuProcess(pid, f"job{pid}", "alice", size, owner=owner), **more)  # type: ignore[arg-type]


def box_of(*gpus: Gpu) -> Box:
    return Box(0.0, Host("h", 1, 0.0, 0.0, GIB, GIB), gpus)


def test_shares_are_grouped_and_sum_up_to_what_is_used() -> None:
    read = gpu(
        100 * GIB,
        process(1, 20 * GIB, Owner.SERVER, server="m7b"),
        process(2, 30 * GIB, Owner.SERVER, server="m7b"),
        process(3, 40 * GIB),
        process(4, 5 * GIB, Owner.ORPHAN, server="old"),
        process(5, GIB, kind="graphics"),
        process(NOBODY, 3 * GIB, Owner.UNATTRIBUTED),
    )
    shares = shares_of(read)
    assert shares == (
        Share(Owner.SERVER, "m7b", 50 * GIB, (1, 2)),
        Share(Owner.FOREIGN, "alice job3", 40 * GIB, (3,)),
        Share(Owner.ORPHAN, "old", 5 * GIB, (4,)),
        Share(Owner.UNATTRIBUTED, ELSEWHERE, 3 * GIB, (NOBODY,)),
        Share(Owner.FOREIGN, "alice job5 (graphics)", GIB, (5,)),
        Share(Owner.UNATTRIBUTED, DRIVERS_OWN, GIB),
    )


@pytest.mark.parametrize(
    ("used", "held", "told"),
    [
        (400 << 20, None, DRIVERS_OWN),
        (70 * GIB, None, UNSEEN),
        (70 * GIB, Missing("not told"), "the driver does not tell how much of it pid 7 holds"),
    ],
)
def test_memory_that_no_process_accounts_for_says_why(used: int, held: Missing | None, told: str) -> None:
    shares = shares_of(gpu(used, process(7, held)) if held else gpu(used))
    assert shares[0] == Share(Owner.UNATTRIBUTED, told, used)
    assert [share.pids for share in shares[1:]] == ([(7,)] if held else [])


def test_a_list_that_cannot_be_read_is_the_reason() -> None:
    assert shares_of(gpu(GIB, listed=Missing("no permission"))) == (Share(Owner.UNATTRIBUTED, "no permission", GIB),)
    assert shares_of(gpu(Missing("lost"), listed=Missing("lost"))) == ()
    assert shares_of(gpu(Missing("not told"), process(1, GIB))) == (Share(Owner.FOREIGN, "alice job1", GIB, (1,)),)


def test_processes_that_grew_since_the_total_was_read_are_cut_to_it() -> None:
    shares = shares_of(gpu(10 * GIB + 1, process(1, 9 * GIB), process(2, 3 * GIB)))
    assert sum(share.memory_bytes for share in shares if isinstance(share.memory_bytes, int)) == 10 * GIB + 1
    assert [share.pids for share in shares] == [(1,), (2,)]
    assert all(isinstance(share.memory_bytes, int) and share.memory_bytes > 2 * GIB for share in shares)


def test_a_process_is_its_shims_servers() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        origins = Origins(Path("/nowhere"), {os.getpid(): "m7b"})
        assert origins.of(child.pid) == Origin(Owner.SERVER, "m7b")
        assert origins.of(os.getpid()) == Origin(Owner.SERVER, "m7b")
        assert origins.of(os.getppid()).owner is Owner.FOREIGN
        assert origins.of(NOBODY) == Origin(Owner.UNATTRIBUTED)
        read = attributed(box_of(gpu(2 * GIB, GpuProcess(child.pid, "sleep", "me", 2 * GIB))), origins).gpus[0]
        assert read.shares == (Share(Owner.SERVER, "m7b", 2 * GIB, (child.pid,)),)
        assert not isinstance(read.processes, Missing)
        held, identity = read.processes[0], identity_of(child.pid)
        assert (held.owner, held.server) == (Owner.SERVER, "m7b")
        assert identity is not None
        assert held.start_ticks == identity.start_ticks
    finally:
        child.kill()
        child.wait()


class Left:
    """A process that stands in a launch's folder, as an engine does, and the launch's facts."""

    def __init__(self, servers: Path) -> None:
        self.folder = servers / "m7b" / "20261121-090000-000"
        self.folder.mkdir(parents=True)
        self._dead = subprocess.Popen(["sleep", "60"])
        self.dead = identity_of(self._dead.pid)
        self._dead.kill()
        self._dead.wait()
        self.child = subprocess.Popen(["sleep", "60"], cwd=self.folder, start_new_session=True)
        self.write()

    def write(self, **changes: object) -> None:
        assert self.dead is not None
        gone = {"pid": self.dead.pid, "start_ticks": self.dead.start_ticks}
        facts: dict[str, object] = {
            "schema": 1,
            "boot_id": current_boot_id(),
            "shim": gone,
            "guard": gone,
            "engine": gone,
            "step": "boot",
            "launched_at": 0.0,
            "phase": "running",
            "stop_asked_at": None,
            "exit": None,
            "error": None,
            "log": "/x",
            "dropped_lines": 0,
        }
        new = self.folder / "process.json.new"
        new.write_text(json.dumps(facts | changes))
        new.replace(self.folder / "process.json")


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    one = Left(tmp_path)
    yield one
    one.child.kill()
    one.child.wait()


def origin(left: Left, tmp_path: Path) -> Origin:
    return Origins(tmp_path, {}).of(left.child.pid)


def test_what_a_dead_launch_left_is_an_orphan(left: Left, tmp_path: Path) -> None:
    assert origin(left, tmp_path) == Origin(Owner.ORPHAN, "m7b")
    on_gpu = replace(gpu(70 * GIB, GpuProcess(left.child.pid, "sleep", "me", 58 * GIB)), index=3)
    (orphan,) = Origins(tmp_path, {}).orphans(box_of(on_gpu))
    identity = identity_of(left.child.pid)
    assert identity is not None
    assert (orphan.pid, orphan.start_ticks, orphan.server) == (identity.pid, identity.start_ticks, "m7b")
    assert (orphan.command, orphan.user) == ("sleep 60", getpass.getuser())
    assert (orphan.gpus, orphan.gpu_bytes) == ((3,), 58 * GIB)
    assert orphan.host_bytes > 0
    assert attributed(box_of(on_gpu), Origins(tmp_path, {})).gpus[0].shares[0].owner is Owner.ORPHAN


def test_an_orphan_is_found_without_any_gpu(left: Left, tmp_path: Path) -> None:
    (orphan,) = Origins(tmp_path, {}).orphans(box_of())
    assert (orphan.pid, orphan.gpus, orphan.gpu_bytes) == (left.child.pid, (), 0)


def test_a_launch_that_ended_or_lives_or_is_of_another_boot_has_no_orphans(left: Left, tmp_path: Path) -> None:
    here = identity_of(os.getpid())
    assert here is not None
    alive = {"pid": here.pid, "start_ticks": here.start_ticks}
    for changes in ({"phase": "exited"}, {"shim": alive}, {"guard": alive}, {"boot_id": "another"}):
        left.write(**changes)
        assert origin(left, tmp_path).owner is Owner.FOREIGN, changes
        assert Origins(tmp_path, {}).orphans(box_of()) == ()
    left.write()
    assert origin(left, tmp_path).owner is Owner.ORPHAN


def test_a_process_older_than_the_launch_is_nobodys_orphan(left: Left, tmp_path: Path) -> None:
    assert left.dead is not None
    left.write(shim={"pid": left.dead.pid, "start_ticks": left.dead.start_ticks + 10**9})
    assert origin(left, tmp_path).owner is Owner.FOREIGN


def test_an_orphan_that_left_the_folder_is_told_by_its_session(left: Left, tmp_path: Path) -> None:
    program = "import os; os.chdir('/'); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True, **pipes) as moved:  # type: ignore[call-overload]
        try:
            moved.stdout.readline()
            assert Origins(tmp_path, {}).of(moved.pid).owner is Owner.FOREIGN
            left.write(engine={"pid": moved.pid, "start_ticks": 1})
            assert Origins(tmp_path, {}).of(moved.pid) == Origin(Owner.ORPHAN, "m7b")
        finally:
            moved.kill()


def test_a_person_who_looks_into_the_folder_is_no_orphan(left: Left, tmp_path: Path) -> None:
    main, side = os.openpty()
    program = (
        "import fcntl,os,sys,termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=left.folder, stdin=side, stdout=subprocess.PIPE
    ) as person:
        try:
            assert person.stdout is not None
            person.stdout.readline()
            assert Origins(tmp_path, {}).of(person.pid).owner is Owner.FOREIGN
            assert [orphan.pid for orphan in Origins(tmp_path, {}).orphans(box_of())] == [left.child.pid]
        finally:
            person.kill()
            os.close(main)
            os.close(side)


def test_the_folder_may_be_gone(left: Left, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "m7b")
    assert origin(left, tmp_path) == Origin(Owner.ORPHAN, "m7b")
    assert [orphan.pid for orphan in Origins(tmp_path, {}).orphans(box_of())] == [left.child.pid]


@pytest.mark.parametrize(
    ("comm", "parent", "argv", "noted"),
    [
        ("VLLM::EngineCor", Seen(1, "systemd", "S", 0, 1, 0, 1), ["/sbin/init"], True),
        ("VLLM::Worker_TP", Seen(900, "systemd", "S", 1, 1, 0, 1), ["/usr/lib/systemd/systemd", "--user"], True),
        ("VLLM::EngineCor", Seen(900, "vllm", "S", 1, 1, 0, 1), ["/usr/bin/python3", "/usr/bin/vllm", "serve"], False),
        ("VLLM::EngineCor", Seen(1, "python3", "S", 0, 1, 0, 1), ["/usr/bin/python3", "-m", "x"], False),
        ("VLLM::APIServer", Seen(1, "systemd", "S", 0, 1, 0, 1), ["/sbin/init"], False),
        ("python3", Seen(1, "systemd", "S", 0, 1, 0, 1), ["/sbin/init"], False),
    ],
)
def test_a_foreign_engine_that_was_handed_to_init_is_noted(
    monkeypatch: pytest.MonkeyPatch, comm: str, parent: Seen, argv: list[str], noted: bool
) -> None:
    argv_of: Callable[[int], list[str]] = {parent.pid: argv}.__getitem__
    processes = {4711: Seen(4711, comm, "S", parent.pid, 1, 0, 2), parent.pid: parent}
    monkeypatch.setattr(ownership, "see", processes.get)
    monkeypatch.setattr(ownership, "argv_of", argv_of)
    told = Origins(Path("/nowhere"), {}).of(4711)
    assert told == Origin(Owner.FOREIGN, note=ownership.PROBABLY_ORPHAN if noted else "")


def test_a_hidden_process_is_unattributed() -> None:
    read = attributed(
        box_of(gpu(3 * GIB, GpuProcess(NOBODY, ANOTHER_CONTAINER, "?", 3 * GIB))), Origins(Path("/x"), {})
    )
    assert read.gpus[0].shares == (Share(Owner.UNATTRIBUTED, ELSEWHERE, 3 * GIB, (NOBODY,)),)
