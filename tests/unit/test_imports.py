"""Headless commands do not pay for the screen, and the lower layers do not know it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCREEN = ("textual", "rich", "openai", "tui.app")


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "tui.cli",
        "tui.__main__",
        "tui.headless.launch",
        "tui.headless.status",
        "tui.headless.logs",
        "tui.headless.control",
        "tui.headless.chat",
        "tui.headless.doctor",
        "tui.headless.profiles",
        "tui.headless.reap",
        "tui.headless.fit",
        "tui.headless.diagnose",
        "tui.headless.fix",
        "tui.headless.history",
        "tui.headless.clean",
        "tui.headless.autostart",
        "tui.headless.web",
        "tui.web.gate",
        "backends.settings",
        "backends.logs.reader",
        "backends.memory",
        "tui.fixing",
        "tui.progress",
        "backends.fit.estimate",
        "backends.diagnosis.card",
        "backends.records",
        "tui.launching",
        "tui.owners",
        "backends.offline",
        "backends.readonly",
        "backends.chat",
        "backends.simulation",
        "profiles.store",
        "profiles.commands",
    ],
)
def test_a_headless_module_imports_no_screen(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert not {name for name in loaded if name.startswith(SCREEN)}


def test_the_keeper_imports_no_screen() -> None:
    # httpx, which the engines are not asked with, would bring rich along.
    loaded = modules_after("import backends.keeper.__main__")
    assert not {name for name in loaded if name.startswith((*SCREEN, "tui", "httpx"))}


def test_status_pays_for_nothing_that_it_does_not_need() -> None:
    loaded = modules_after("import tui.cli, tui.headless.status")
    assert not loaded & {"httpx", "starlette", "uvicorn", "prometheus_client", "pynvml"}
