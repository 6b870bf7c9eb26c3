"""What real processes use up and wait for, as /proc shows it; and what a download or loading shows on disk."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.keeper.activity import NOTHING_SEEN, read_activity, waits_for
from backends.keeper.measure import Download, Loading, hub_folder, lock_folders
from profiles.schema import Profile, parse_profile

PATIENCE_S = 45.0
MIB = 1 << 20


@contextmanager
def child(code: str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python that says a line once it has come to where it should be, and kill it afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            yield process
        finally:
            process.kill()


def until(read: Callable[[], str], wanted: str) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while wanted not in (found := read()):
        assert time.monotonic() < deadline, f"{wanted!r} was not told: {found!r}"
        time.sleep(0.02)
    return found


def test_a_tree_is_read_whole() -> None:
    before = read_activity(os.getpid())
    hungry = "import sys; held = bytearray(64 << 20); print('there', flush=True); sys.stdin.read()"
    with child(hungry) as process:
        now = read_activity(os.getpid(), gpu_bytes=7)
        assert process.pid in now.pids
        assert now.pids > before.pids
        assert now.memory_bytes - before.memory_bytes > 64 * MIB
        assert now.cpu_s > 0
        assert now.io_bytes > 0
        assert now.gpu_bytes == 7
        assert now.io_bytes >= now.disk_bytes
    assert process.pid not in read_activity(os.getpid()).pids


def test_a_process_that_sleeps_waits_for_nothing_that_can_be_seen() -> None:
    with child("import time; print('there', flush=True); time.sleep(600)"):
        assert waits_for(os.getpid(), (), "").startswith(NOTHING_SEEN)


def test_a_process_that_somebody_has_stopped_is_told() -> None:
    with child("import time; print('there', flush=True); time.sleep(600)") as process:
        process.send_signal(signal.SIGSTOP)
        until(lambda: waits_for(os.getpid(), (), ""), f"SIGCONT: pid {process.pid} has been stopped")


BLOCKED = """
import fcntl, sys
file = open(sys.argv[1])
print("there", flush=True)
fcntl.flock(file, fcntl.LOCK_EX)
"""


def test_a_lock_that_another_holds_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with child(BLOCKED, str(path)):
            told = until(lambda: waits_for(os.getpid(), (), ""), "a lock on model.lock that pid")
    assert told.startswith(f"a lock on model.lock that pid {os.getpid()} (")


def test_a_lock_that_is_polled_for_is_found_in_its_folder(tmp_path: Path) -> None:
    with (tmp_path / "weights.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with child("import time; print('there', flush=True); time.sleep(600)"):
            told = waits_for(os.getpid(), (tmp_path,), "")
            assert told.startswith(f"the lock weights.lock that pid {os.getpid()} (")
            fcntl.flock(file, fcntl.LOCK_UN)
            assert waits_for(os.getpid(), (tmp_path,), "").startswith(NOTHING_SEEN)


def test_other_ranks_are_told_by_the_last_line() -> None:
    line = "(Worker pid=1430) INFO [parallel_state.py:1615] world_size=2 rank=0 local_rank=0 backend=nccl"
    with child("import time; print('there', flush=True); time.sleep(600)"):
        assert waits_for(os.getpid(), (), line) == "the other ranks"
        assert waits_for(os.getpid(), (), line.replace("size=2", "size=1")) != "the other ranks"


CONNECTED = """
import socket, sys
door = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("there", flush=True)
door.recv(1)
"""


def test_a_connection_within_the_box_is_not_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, child(CONNECTED, str(server.getsockname()[1])):
        assert waits_for(os.getpid(), (), "").startswith(NOTHING_SEEN)


def profile(**content: object) -> Profile:
    return parse_profile({"name": "m", "gpus": "cpu", "model": "org/m"} | content, "test")


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/c"}, "/x/huggingface/hub"),
        ({"HOME": "/c"}, "/c/.cache/huggingface/hub"),
    ],
)
def test_the_hubs_folder_is_found_as_the_engine_finds_it(environ: dict[str, str], folder: str) -> None:
    assert hub_folder(profile(), environ) == Path(folder) / "models--org--m"
    assert lock_folders(profile(), environ) == (Path(folder) / ".locks" / "models--org--m",)


def test_a_model_in_a_folder_is_not_from_the_hub() -> None:
    assert hub_folder(profile(model="/models/m"), {}) is None
    assert hub_folder(profile(args={"download_dir": "/d"}), {}) == Path("/d/models--org--m")


def test_a_download_tells_what_has_arrived_and_how_fast(tmp_path: Path) -> None:
    blobs, download = tmp_path / "blobs", Download(tmp_path)
    assert download.mark(100.0) is None
    blobs.mkdir()
    (blobs / "aaaa").write_bytes(bytes(2 * MIB))
    assert download.mark(100.0) is None, "nothing is being fetched"
    partial = blobs / "bbbb.incomplete"
    partial.write_bytes(bytes(MIB))
    assert download.mark(100.0) is None, "an earlier download may have left it"
    partial.write_bytes(bytes(3 * MIB))
    first = download.mark(101.0)
    assert first is not None
    assert (first.name, first.progress, first.detail) == ("download", None, "5 MiB, 2 MiB/s")
    partial.write_bytes(bytes(5 * MIB))
    index = tmp_path / "snapshots" / "0" / "model.safetensors.index.json"
    index.parent.mkdir(parents=True)
    index.write_text(json.dumps({"metadata": {"total_size": 14 * MIB}}))
    second = download.mark(102.0)
    assert second is not None
    assert (second.progress, second.detail) == (0.5, "7 MiB of 14 MiB, 2 MiB/s")


def test_loading_is_told_by_the_weights_size(tmp_path: Path) -> None:
    loading = Loading(tmp_path)
    assert loading.mark(0, 0) is None, "there are no weights yet"
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors", "consolidated.safetensors"):
        (tmp_path / name).write_bytes(bytes(MIB))
    loading = Loading(tmp_path)
    assert loading.mark(1000, 5000) is None
    half = loading.mark(1000, 5000 + MIB)
    assert half is not None
    assert (half.name, half.progress, half.detail) == ("weights", 0.5, "1 MiB of 2 MiB")
    more = loading.mark(1000 + 3 * MIB, 5000)
    assert more is not None
    assert more.progress == 0.99, "what is measured never says that all is there"
