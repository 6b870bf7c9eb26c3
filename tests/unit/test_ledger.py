"""The ledger: a grant lives as long as somebody holds it, and every home and user of the machine sees it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import ledger as ledger_module
from backends.errors import KeeperError
from backends.ledger import Ledger
from backends.snapshots import Grant

ROOT = Path(__file__).parents[2]
GPU, OTHER = "GPU-aaaa", "GPU-bbbb"
NOBODY = 65534
HOLD = """
import os, sys
from pathlib import Path
from backends.ledger import Ledger
if sys.argv[2] != "-":
    os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
ledger = Ledger(Path(sys.argv[1]))
with ledger.changing():
    ledger.grant(sys.argv[3], {gpu: int(size) if size else None for gpu, _, size in
                               (word.partition("=") for word in sys.argv[4:])})
print("granted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path / "home"))
    return tmp_path / "ledger"


@pytest.fixture
def open_folder(folder: Path) -> Iterator[Path]:
    """Where every user may go: pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made) / "ledger"


class Neighbour:
    """A keeper of another home, or of another user, in a process of its own."""

    def __init__(self, folder: Path, home: Path, *grants: str, server: str = "theirs", uid: int | None = None) -> None:
        command = [sys.executable, "-c", HOLD, str(folder), "-" if uid is None else str(uid), server, *grants]
        environ = os.environ | {"GPUBOX_HOME": str(home), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "granted\n"

    def end(self) -> None:
        self.process.kill()
        with self.process:
            self.process.wait()


@pytest.fixture
def neighbours() -> Iterator[list[Neighbour]]:
    made: list[Neighbour] = []
    yield made
    for one in made:
        one.end()


def granted(ledger: Ledger, server: str, **memory: int | None) -> tuple[str, ...]:
    with ledger.changing():
        return ledger.grant(server, {uuid.replace("_", "-"): size for uuid, size in memory.items()})


def test_a_grant_is_seen_until_it_is_released(folder: Path) -> None:
    ledger = Ledger(folder)
    assert ledger.grants() == {}
    files = granted(ledger, "mine", GPU_aaaa=None, GPU_bbbb=5)
    user = ledger.grants()[GPU][0].user
    assert ledger.grants() == {GPU: (Grant("mine", user),), OTHER: (Grant("mine", user, 5),)}
    assert ledger.files("mine") == files
    assert len(files) == 2
    ledger.release("mine")
    assert ledger.grants() == {}
    assert not list(folder.glob("*.grant"))


def test_another_home_sees_it_as_not_its_own_and_it_ends_with_its_process(
    folder: Path, tmp_path: Path, neighbours: list[Neighbour]
) -> None:
    neighbours.append(Neighbour(folder, tmp_path / "other-home", f"{GPU}=7"))
    ledger = Ledger(folder)
    (grant,) = ledger.grants()[GPU]
    assert (grant.server, grant.memory_bytes, grant.ours) == ("theirs", 7, False)
    neighbours[0].end()
    assert ledger.grants() == {}


def test_how_much_is_granted_changes_in_place(folder: Path) -> None:
    ledger, reader = Ledger(folder), Ledger(folder)
    (file, _) = granted(ledger, "mine", GPU_aaaa=100 << 30, GPU_bbbb=7)
    inode = Path(file).stat().st_ino
    for size in (5, None, 100 << 30, 0):
        with ledger.changing():
            ledger.resize("mine", {GPU: size})
        assert [grant.memory_bytes for grant in reader.grants()[GPU]] == [size]
    assert Path(file).stat().st_ino == inode
    assert [grant.memory_bytes for grant in reader.grants()[OTHER]] == [7]
    with ledger.changing(), pytest.raises(KeyError):
        reader.resize("mine", {GPU: 1})  # it does not hold it


def test_what_was_taken_up_changes_too_and_stays_held_by_its_shim(folder: Path) -> None:
    first = Ledger(folder)
    (file,) = granted(first, "mine", GPU_aaaa=None)
    shim = subprocess.Popen(
        [sys.executable, "-c", HELD_BY_SHIM, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with shim:
        assert shim.stdout is not None
        assert shim.stdout.readline() == "held\n"
        first.release("mine")
        second = Ledger(folder)
        second.take_up("mine", (GPU,))
        with second.changing():
            second.resize("mine", {GPU: 2})
        second.release("mine")
        assert [grant.memory_bytes for grant in Ledger(folder).grants()[GPU]] == [2]
        shim.kill()
        shim.wait()
    assert Ledger(folder).grants() == {}


def test_what_a_shim_holds_outlives_its_keeper_and_is_taken_up_by_the_next(folder: Path) -> None:
    first = Ledger(folder)
    (file,) = granted(first, "mine", GPU_aaaa=None)
    shim = subprocess.Popen(
        [sys.executable, "-c", HELD_BY_SHIM, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with shim:
        assert shim.stdout is not None
        assert shim.stdout.readline() == "held\n"
        first.release("mine")
        second = Ledger(folder)
        assert [grant.server for grant in second.grants()[GPU]] == ["mine"]
        second.take_up("mine", (GPU,))
        shim.kill()
        shim.wait()
        assert [grant.server for grant in second.grants()[GPU]] == ["mine"]
        second.release("mine")
        assert second.grants() == {}


def test_a_grant_that_ended_with_its_keeper_is_not_taken_up(folder: Path) -> None:
    first = Ledger(folder)
    (file,) = granted(first, "mine", GPU_aaaa=None)
    left = Path(file).read_bytes()
    first.release("mine")
    Path(file).write_bytes(left)
    second = Ledger(folder)
    second.take_up("mine", (GPU,))
    assert second.files("mine") == ()
    assert second.grants() == {}


HELD_BY_SHIM = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""


def can_play_nobody() -> bool:
    """Whether this process may become another user: as root, unless a container has no such user."""
    become = f"import os; os.setgid({NOBODY}); os.setuid({NOBODY})"
    return subprocess.run([sys.executable, "-c", become], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_play_nobody(), reason="only root can play another user")
def test_another_user_is_named_and_its_grant_counts_as_well_as_ours(
    open_folder: Path, neighbours: list[Neighbour]
) -> None:
    folder = open_folder
    granted(Ledger(folder), "mine", GPU_aaaa=1)
    neighbours.append(Neighbour(folder, Path("/tmp/gpubox-nobody"), f"{GPU}=2", uid=NOBODY))
    ledger = Ledger(folder)
    theirs = next(grant for grant in ledger.grants()[GPU] if grant.server == "theirs")
    assert not theirs.ours
    assert theirs.user in ("nobody", str(NOBODY))


def test_a_torn_entry_that_is_held_takes_the_whole_gpu(folder: Path) -> None:
    ledger = Ledger(folder)
    (file,) = granted(ledger, "mine", GPU_aaaa=9)
    Path(file).write_text('{"by')
    assert ledger.grants()[GPU][0].memory_bytes is None


def test_links_and_other_files_are_no_entries(folder: Path, tmp_path: Path) -> None:
    ledger = Ledger(folder)
    (file,) = granted(ledger, "mine", GPU_aaaa=None)
    (folder / f"{OTHER}+0+home+linked.grant").symlink_to(file)
    (folder / "readme.grant").write_text("hello")
    assert list(ledger.grants()) == [GPU]


def test_ended_grants_of_ours_are_cleaned(folder: Path) -> None:
    ledger = Ledger(folder)
    (file,) = granted(ledger, "mine", GPU_aaaa=None)
    stale = Path(file).with_name(Path(file).name.replace("mine", "stale"))
    stale.write_text("{}")
    with ledger.changing():
        assert ledger.clean() == 1
    assert not stale.exists()
    assert Path(file).exists()


def test_a_lock_that_is_never_given_back_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "LOCK_LIMIT_S", 0.05)
    with Ledger(folder).changing(), pytest.raises(KeeperError, match="locked for"):
        Ledger(folder).lock()


def test_a_folder_that_is_none_is_told(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(KeeperError, match="cannot be used"):
        Ledger(folder).lock()


def test_changes_happen_one_after_another(folder: Path) -> None:
    ledger, order = Ledger(folder), []
    inside = threading.Event()

    def second() -> None:
        inside.set()
        with Ledger(folder).changing():
            order.append("second")

    with ledger.changing():
        thread = threading.Thread(target=second)
        thread.start()
        inside.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_turn_is_for_all_gpus_or_for_none(folder: Path) -> None:
    one, other = Ledger(folder), Ledger(folder)
    held = one.try_turn((GPU,))
    assert held is not None
    assert other.try_turn((OTHER, GPU)) is None
    free = other.try_turn((OTHER,))
    assert free is not None
    for descriptor in (*held, *free):
        os.close(descriptor)
    both = other.try_turn((OTHER, GPU))
    assert both is not None
    for descriptor in both:
        os.close(descriptor)
