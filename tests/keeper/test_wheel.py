"""The wheel in an environment of its own, used from a folder whose files have the names of what it imports."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from backends.snapshots import ServerState
from tests.keeper.conftest import ROOT, Box, box_in, fake_profile

PACKAGES = {"tui", "backends", "profiles"}
RAISES = 'raise RuntimeError(f"{__file__} must not be imported")\n'


def run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *isolation, "-w", folder, ROOT)
    (built,) = folder.glob("gpubox-*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a fresh environment with the wheel, which finds what the wheel needs in ours."""
    venv = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-compile", wheel)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return venv / "bin"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    for name in ("profiles", "tui", "backends"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(RAISES)
    for name in ("json", "typing", "typer", "asyncio", "http", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(RAISES)
    return tmp_path


def test_the_wheel_holds_its_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("profiles/library/*.toml", "profiles/demo/*.jsonl", "tui/styles/*.tcss", "*/**/*.py"):
        ours = {str(path.relative_to(ROOT)) for path in ROOT.glob(kind) if path.parts[len(ROOT.parts)] in PACKAGES}
        assert ours, f"there is no {kind}"
        assert ours <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == PACKAGES


def test_everything_works_from_a_hostile_folder(bin_folder: Path, hostile: Path) -> None:
    class Installed(Box):
        def command(self, *args: str) -> list[str]:
            return [str(bin_folder / "gpubox"), *args]

    trapped = subprocess.run([bin_folder / "python", "-c", "import tui"], cwd=hostile, capture_output=True, check=False)
    assert b"must not be imported" in trapped.stderr
    home = hostile / "home"
    home.mkdir()
    with box_in(home, Installed) as box:
        del box.environ["PYTHONPATH"]
        box.folder = hostile
        assert "demo " in box.gpubox("profiles", "list").stdout
        assert "no keeper is needed" in box.gpubox("status").stdout
        box.keep_profile(fake_profile())
        assert "fake is ready after " in box.gpubox("--headless", "--profile", "fake").stdout
        (keeper,) = box.keeper_pids()
        assert os.readlink(f"/proc/{keeper}/cwd") == "/"
        assert Path(f"/proc/{keeper}/cmdline").read_text().split("\0")[0] == str(bin_folder / "python")
        assert box.server().state is ServerState.READY
        box.gpubox("restart", "fake")
        box.gpubox("stop", "fake")
        assert box.server().state is ServerState.STOPPED
