"""The doctor's checks of machine and engines: real files, sockets, compilers and interpreters."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from backends import checks, doctor
from backends.checks import Check, disk_checks, hub_cache, hub_check, limit_checks, logout_check, port_check, shm_check
from backends.doctor import engine_checks, examine
from backends.gpus.checks import has_nvidia_hardware, linkage_check
from backends.gpus.sampler import GpuReading
from backends.snapshots import Gpu, Missing

ROOT = Path(__file__).parents[2]
NONE = Missing("not read")
ONE_GPU = (Gpu(0, "GPU-0", "NVIDIA H200", NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE),)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path / "gpubox"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o700)
    return str(path)


# --- machine ---


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({}, "~/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"}, "/old"),
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, "/c"),
    ],
)
def test_the_hubs_cache_is_where_its_client_keeps_it(environ: dict[str, str], folder: str) -> None:
    assert hub_cache(environ) == Path(folder).expanduser()


def test_disk_is_measured_without_making_the_folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, state = disk_checks({"HF_HOME": str(home / "models")})
    assert (state.ok, str(home / "gpubox") in state.found) == (True, True)
    assert list(home.iterdir()) == []
    monkeypatch.setattr(checks, "MODEL_ROOM_BYTES", 2**62)
    models, _ = disk_checks({"HF_HOME": str(home / "models")})
    assert models.ok is None
    assert "HF_HOME" in models.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_broken(home: Path) -> None:
    home.chmod(0o500)
    models, _ = disk_checks({"HF_HOME": str(home / "models")})
    home.chmod(0o700)
    assert (models.ok, "cannot be written to" in models.found) == (False, True)


def test_limits_are_told_and_judged() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512));"
        "from backends.checks import limit_checks; files, *_ = limit_checks(); print(files.ok, files.found)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "None at most 512\n"
    assert [check.name for check in limit_checks()] == ["open files", "processes", "locked memory"]


def test_ports_that_are_taken_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as door, socket.socket() as other:
        door.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        door.listen()
        taken, free = door.getsockname()[1], other.getsockname()[1]
        other.close()
        monkeypatch.setattr(checks, "PORTS", [taken])
        assert (port_check().ok, f"in use: {taken}" in port_check().found) == (False, True)
        monkeypatch.setattr(checks, "PORTS", [free, taken])
        assert (port_check().ok, port_check().found.endswith(f"in use: {taken}")) == (None, True)
        monkeypatch.setattr(checks, "PORTS", [free])
        assert port_check().ok is True


def test_shared_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shm_check(home / "nothing").ok is False
    monkeypatch.setattr(checks, "SHM_ROOM_BYTES", 0)
    assert shm_check(home).ok is True
    monkeypatch.setattr(checks, "SHM_ROOM_BYTES", 2**62)
    assert (shm_check(home).ok, "--shm-size" in shm_check(home).remedy) == (None, True)


def test_without_systemd_nothing_ends_servers_at_logout(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert logout_check(home / "nothing").ok is True
    monkeypatch.setattr(checks, "scope_prefix", lambda: ())
    assert (logout_check(home).ok, "enable-linger" in logout_check(home).remedy) == (None, True)
    monkeypatch.setattr(checks, "scope_prefix", lambda: ("systemd-run",))
    assert logout_check(home).ok is True


class Hub(HTTPServer):
    """A hub that answers HEAD with `status`."""

    status = 200


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = Hub(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("status", "ok"), [(200, True), (404, True), (403, True), (503, None)])
def test_a_hub_that_answers_is_there(hub: Hub, status: int, ok: bool | None) -> None:
    hub.status = status
    check = hub_check({"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"})
    assert check.ok is ok


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "no url at all", "http://[::bad"])
def test_a_hub_that_cannot_be_reached_is_a_warning(endpoint: str) -> None:
    check = hub_check({"HF_ENDPOINT": endpoint})
    assert (check.ok, check.found.startswith(f"{endpoint} cannot be reached: ")) == (None, True)


def test_offline_means_that_the_hub_is_not_asked() -> None:
    check = hub_check({"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "1"})
    assert (check.ok, "HF_HUB_OFFLINE" in check.found) == (True, True)


def test_an_nvidia_card_is_seen_without_its_driver(tmp_path: Path) -> None:
    for name, vendor, kind in [("0", "0x8086", "0x030000"), ("1", "0x10de", "0x040300"), ("2", "", "")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    (tmp_path / "3").mkdir()
    assert not has_nvidia_hardware(tmp_path)
    (tmp_path / "1" / "class").write_text("0x030200\n")
    assert has_nvidia_hardware(tmp_path)


# --- linking with -lcuda ---


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_linking_with_lcuda_needs_the_unversioned_name(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    (tmp_path / "empty.c").write_text("")
    subprocess.run(["gcc", "-shared", "-o", library, tmp_path / "empty.c"], check=True)
    # Only the folders that are named count, so that a libcuda.so of this machine is not found instead.
    link = 'source=$1; shift; gcc -c "$source" -o "$source.o" && exec ld -nostdlib -e main "$source.o" "$@"'
    compiler = script(tmp_path / "cc", "unset LIBRARY_PATH", link)
    environ = {"TRITON_LIBCUDA_PATH": str(tmp_path), "CC": compiler}
    check = linkage_check(environ, has_driver=True)
    assert (check.ok, f"ln -s libcuda.so.1 {tmp_path}/libcuda.so" in check.remedy) == (None, True)
    (tmp_path / "libcuda.so").symlink_to(library)
    assert linkage_check(environ, has_driver=True) == Check("-lcuda", True, f"links, in {tmp_path}")
    library.write_text("not a library")
    assert linkage_check(environ, has_driver=True).found.startswith("does not link: ")
    assert linkage_check(environ, has_driver=False).ok is True


# --- engines ---


def install(folder: Path, **versions: str) -> dict[str, str]:
    """Put packages that are metadata alone into `folder`; returns an environment that finds them first."""
    for name, version in versions.items():
        distribution = folder / f"{name}-{version}.dist-info"
        distribution.mkdir(parents=True)
        (distribution / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
    return os.environ | {"PYTHONPATH": str(folder)}


def torch(folder: Path, cuda: str | None) -> None:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise SystemExit('torch must not be imported')\n")
    (folder / "torch" / "version.py").write_text(
        f"from typing import Optional\n__version__ = '2.11.0'\ncuda: Optional[str] = {cuda!r}\n"
    )


def read(gpus: tuple[Gpu, ...] = (), cuda: str | None = None) -> Future[GpuReading]:
    reading: Future[GpuReading] = Future()
    reading.set_result(GpuReading(gpus, None if gpus else "none", "580" if cuda else None, cuda))
    return reading


def by_name(found: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in found}


@pytest.mark.parametrize(
    ("built_for", "gpus", "driver", "ok", "says"),
    [
        ("13.0", ONE_GPU, "13.0", True, "2.11.0, built for CUDA 13.0"),
        ("12.8", ONE_GPU, "13.0", True, "built for CUDA 12.8"),
        ("12.8", ONE_GPU, "12.4", True, "built for CUDA 12.8"),
        ("13.0", ONE_GPU, "12.8", False, "the driver goes up to CUDA 12.8"),
        (None, ONE_GPU, "13.0", None, "cannot use the GPUs"),
        (None, (), None, True, "built for the CPU"),
        ("13.0", (), None, True, "built for CUDA 13.0"),
    ],
)
def test_torch_must_fit_the_driver(
    tmp_path: Path, built_for: str | None, gpus: tuple[Gpu, ...], driver: str | None, ok: bool | None, says: str
) -> None:
    environ = install(tmp_path, vllm="0.26.0", transformers="5.17.0", torch="2.11.0")
    torch(tmp_path, built_for)
    found = by_name(engine_checks(sys.executable, environ, read(gpus, driver)))
    assert (found["torch"].ok, says in found["torch"].found) == (ok, True)
    assert found["vllm"].found.startswith("0.26.0 for Python 3.")
    assert found["transformers"].found.startswith("5.17.0 for Python 3.")


def test_an_interpreter_that_does_not_run(tmp_path: Path) -> None:
    for python in (str(tmp_path / "gone"), str(tmp_path)):
        (check,) = engine_checks(python, os.environ, read())
        assert (check.name, check.ok, python in check.found) == ("Python", False, True)


@pytest.mark.parametrize(
    ("line", "says"),
    [("echo broken >&2; exit 3", "broken"), ("exit 3", "it ends with 3"), ("echo nonsense", "Expecting value")],
)
def test_an_interpreter_that_fails_says_how(tmp_path: Path, line: str, says: str) -> None:
    python = script(tmp_path / "python", line)
    found = by_name(engine_checks(python, os.environ, read()))
    assert (found["Python"].ok, says in found["Python"].found) == (False, True)


def test_an_interpreter_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_LIMIT_S", 0.2)
    python = script(tmp_path / "python", "exec sleep 60")
    found = by_name(engine_checks(python, os.environ, read()))
    assert found["Python"].found == f"{python}: does not answer within 0.2 s"


# --- all together ---


def test_every_problem_comes_with_a_remedy_and_all_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    found = examine(environ=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert time.monotonic() - started < 30
    assert [check for check in found if check.ok is not True and not check.remedy] == []
    assert [check for check in found if "\n" in check.found + check.remedy] == []
    names = [check.name for check in found]
    assert len(names) == len(set(names))
    for name in ("models on disk", "shared memory", "open files", "ports", "model hub", "-lcuda", "vllm", "compiler"):
        assert name in names


def test_what_hangs_or_breaks_is_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    def hang(environ: object) -> Check:
        let_go.wait()
        return Check("model hub", True, "late")

    def fail() -> Check:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(doctor, "WHOLE_LIMIT_S", 1.0)
    monkeypatch.setattr(doctor, "hub_check", hang)
    monkeypatch.setattr(doctor, "port_check", fail)
    found = by_name(examine())
    let_go.set()
    assert found["model hub"] == Check(
        "model hub", None, "no answer within 1.0 s", "something hangs: see dmesg and mounts"
    )
    assert (found["ports"].ok, found["ports"].found) == (None, "could not be looked at: no such thing")
    assert found["shared memory"].found != ""
