"""Leaving on a slow line: a terminal's answer that comes after the end would be typed into the shell."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from textual.messages import TerminalSupportsSynchronizedOutput
from textual.pilot import Pilot

from tests.tui.link import NOW, FakeLink, until
from tui import terminal
from tui.terminal import TerminalApp


async def asked(pilot: Pilot[None]) -> TerminalApp:
    """An app whose terminal was just asked something."""
    app = pilot.app
    assert isinstance(app, TerminalApp)
    await until(pilot, lambda: app.snapshot is not None, "the first state")
    app._asked_at = time.monotonic()
    return app


async def test_the_app_waits_for_the_terminals_answer_and_leaves_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LAST_WAIT_S", 3600.0)
    async with TerminalApp(FakeLink(), clock=lambda: NOW).run_test() as pilot:
        app = await asked(pilot)
        await pilot.press("q")
        assert not app._exit
        app.post_message(TerminalSupportsSynchronizedOutput())
        await until(pilot, lambda: app._exit, "the end")
        assert len(app._exit_renderables) == 1


async def test_a_terminal_that_does_not_answer_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LAST_WAIT_S", 0.01)
    async with TerminalApp(FakeLink(), clock=lambda: NOW).run_test() as pilot:
        app = await asked(pilot)
        await pilot.press("q")
        await until(pilot, lambda: app._exit, "the end")


async def test_who_says_it_twice_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LAST_WAIT_S", 3600.0)
    async with TerminalApp(FakeLink(), clock=lambda: NOW).run_test() as pilot:
        app = await asked(pilot)
        await pilot.press("q", "ctrl+q")
        await until(pilot, lambda: app._exit, "the end")


def test_a_terminal_that_is_gone_ends_the_screen_though_another_leads_its_session(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environ = os.environ | {"GPUBOX_HOME": str(tmp_path), "TERM": "xterm-256color"}
    command = [sys.executable, "-P", "-m", "tui", "--simulate", "1xH200"]
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ) as screen:
        try:
            os.close(theirs)
            seen = b""
            while b"SIMULATED" not in seen:
                seen += os.read(ours, 4096)
            os.close(ours)
            assert screen.wait(60) == -signal.SIGHUP
        finally:
            screen.kill()
