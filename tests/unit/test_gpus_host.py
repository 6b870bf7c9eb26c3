"""The host's memory within its cgroup's limits, of both versions, and its CPU without waiting."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from backends.gpus.host import HostReader
from backends.snapshots import Missing

GIB = 2**30


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def reader(root: Path, own: str) -> HostReader:
    (root / "own").write_text(own)
    return HostReader(root, root / "own")


def test_the_tightest_cgroup_above_us_is_the_memory_of_the_box(tmp_path: Path) -> None:
    stat = f"anon 1\ninactive_file {GIB // 4}\nfile 5"
    write(tmp_path / "user" / "job", memory__max="max", memory__current=5)
    write(tmp_path / "user", memory__max=GIB, memory__current=GIB // 2, memory__stat=stat)
    host = reader(tmp_path, "0::/user/job\n").read()
    assert (host.memory_total_bytes, host.memory_available_bytes) == (GIB, GIB - GIB // 4)


def test_a_limit_of_the_first_version(tmp_path: Path) -> None:
    write(
        tmp_path / "memory" / "job",
        memory__limit_in_bytes=GIB,
        memory__usage_in_bytes=GIB,
        memory__stat="total_inactive_file 1024",
    )
    write(tmp_path / "memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=1)
    host = reader(tmp_path, "8:cpuset:/other\n4:memory:/job\n0::/\n").read()
    assert (host.memory_total_bytes, host.memory_available_bytes) == (GIB, 1024)


def test_a_container_sees_its_own_cgroup_at_the_root(tmp_path: Path) -> None:
    write(tmp_path, memory__max=2 * GIB, memory__current=GIB)
    host = reader(tmp_path, "0::/a/path/of/the/host\n").read()
    assert (host.memory_total_bytes, host.memory_available_bytes) == (2 * GIB, GIB)


@pytest.mark.parametrize("own", ["", "0::/\n", "4:memory:/gone\n"])
def test_without_a_limit_it_is_the_machines(tmp_path: Path, own: str) -> None:
    host = reader(tmp_path, own).read()
    assert host.memory_total_bytes == psutil.virtual_memory().total
    assert 0 < host.memory_available_bytes <= host.memory_total_bytes


def test_a_machine_without_cgroups(tmp_path: Path) -> None:
    host = HostReader(tmp_path, tmp_path / "nothing").read()
    assert host.memory_total_bytes == psutil.virtual_memory().total


def test_cpu_utilization_is_missing_until_there_is_something_to_compare(tmp_path: Path) -> None:
    reader = HostReader(tmp_path, tmp_path / "nothing")
    assert isinstance(reader.read().cpu_utilization, Missing)
    sum(range(3_000_000))
    utilization = reader.read().cpu_utilization
    assert not isinstance(utilization, Missing)
    assert 0 < utilization <= 1
