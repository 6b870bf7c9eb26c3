from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from backends.processes import shm
from backends.processes.shm import PREFIXES, SharedMemory
from tests.processes.conftest import FAKE_ENGINE, until


@pytest.fixture(params=PREFIXES)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"{request.param}gpubox_test_{uuid4().hex}"
    yield name
    Path(f"/dev/shm/{name}").unlink(missing_ok=True)


def make(name: str) -> subprocess.Popen[bytes]:
    """A child of ours that has made a shared-memory file and uses it."""
    argv = [sys.executable, "-I", "-S", str(FAKE_ENGINE), f"shm:{name}", "wait"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline()
    child.stdout.close()
    return child


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def test_the_kernel_tells_of_new_files(name: str) -> None:
    memory = SharedMemory(time.time())
    memory.made()
    other = Path(f"/dev/shm/gpubox_test_{uuid4().hex}")
    other.touch()
    other.unlink()
    assert not memory.made(), "a name that is none of ours"
    Path(f"/dev/shm/{name}").touch()
    assert memory.made()
    assert not memory.made(), "told once"


def test_a_file_is_removed_once_its_last_user_is_gone(name: str) -> None:
    path = Path(f"/dev/shm/{name}")
    memory = SharedMemory(time.time())
    child = make(name)
    memory.look(os.getpid())
    assert memory.clean() == 0, "its maker lives"
    with path.open("r+b") as file:
        end(child)
        assert memory.clean() == 0, "we have it open"
        mapped = mmap.mmap(file.fileno(), 4096)
    assert memory.clean() == 0, "we have it mapped"
    mapped.close()
    assert memory.clean() == 1
    assert not path.exists()


def test_a_file_that_the_tree_was_not_seen_to_use_stays(name: str) -> None:
    memory = SharedMemory(time.time())
    end(make(name))
    memory.look(os.getpid())
    assert memory.clean() == 0
    assert Path(f"/dev/shm/{name}").exists()


def test_a_file_from_before_the_launch_stays(name: str) -> None:
    child = make(name)
    memory = SharedMemory(time.time() + 1)
    memory.look(os.getpid())
    end(child)
    assert memory.clean() == 0
    assert Path(f"/dev/shm/{name}").exists()


def test_another_file_under_the_same_name_stays(name: str) -> None:
    memory = SharedMemory(time.time())
    child = make(name)
    memory.look(os.getpid())
    end(child)
    path = Path(f"/dev/shm/{name}")
    path.rename(f"{path}_aside")
    path.touch()
    memory.clean()
    assert path.exists()
    assert not Path(f"{path}_aside").exists(), "the tree's own, by whatever name"


def test_a_process_whose_maps_cannot_be_read_holds_nobody_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is with a process that hangs in a driver with its memory map locked."""
    memory = SharedMemory(time.time())
    child = make(name)
    memory.look(os.getpid())
    end(child)
    unhang = threading.Event()
    monkeypatch.setattr(shm, "used_by", lambda _: unhang.wait() and set())
    monkeypatch.setattr(shm, "LOOK_LIMIT_S", 0.05)
    begun = time.monotonic()
    memory.look(os.getpid())
    assert memory.clean() == 0, "who cannot be asked might use it"
    assert time.monotonic() - begun < 30
    unhang.set()
    monkeypatch.undo()
    until(lambda: memory.clean() == 1, "removed once all can be asked")
