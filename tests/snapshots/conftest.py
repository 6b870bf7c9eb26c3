from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from textual import constants

from backends.simulation import SimulatedKeeper
from profiles.store import Place, Store
from tui.app import GpuboxApp

NOW = 1_795_264_496.0


@pytest.fixture(autouse=True)
def _same_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Leave nothing to the machine: no TEXTUAL_* and no colour variables, UTC, a home that is a tilde on screen."""
    for name in [*os.environ]:
        ours = name.startswith("TEXTUAL") and not name.startswith("TEXTUAL_SNAPSHOT")
        if ours or name in ("NO_COLOR", "COLORTERM", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setenv("LOGNAME", "you")
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "GPUBOX_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("HOME", str(tmp_path))
    time.tzset()
    importlib.reload(constants)
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def pictured(tmp_path: Path) -> Callable[..., GpuboxApp]:
    """Return what makes the control center of a simulated box whose clock stands still."""

    def make(spec: str = "8xH200") -> GpuboxApp:
        return GpuboxApp(
            SimulatedKeeper(spec, clock=lambda: NOW, folder=tmp_path / "logs"),
            store=Store([Place("library", Path(__file__).parent / "profiles")]),
            simulated=True,
            clock=lambda: NOW,
        )

    return make
