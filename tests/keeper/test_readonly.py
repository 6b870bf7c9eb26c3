"""`gpubox --readonly`: questions are answered, with a keeper or without one, and everything else ends with one line."""

from __future__ import annotations

import json
import time

import pytest

from backends.snapshots import ServerState
from tests.keeper.conftest import Box, fake_profile

REFUSED = (
    ("stop", "fake"),
    ("stop", "--all"),
    ("restart", "fake"),
    ("forget", "fake"),
    ("reap",),
    ("reap", "1"),
    ("shutdown",),
    ("demo-run",),
    ("profiles", "new", "x"),
    ("profiles", "rm", "x"),
    ("--profile", "fake", "--headless"),
    ("--profile", "fake"),
)


@pytest.mark.parametrize("command", REFUSED, ids=" ".join)
def test_whatever_changes_something_is_refused_and_starts_no_keeper(box: Box, command: tuple[str, ...]) -> None:
    box.keep_profile(fake_profile())
    refused = box.gpubox("--readonly", *command, code=2).stderr
    assert refused.startswith("gpubox: gpubox is read-only: it does not ")
    assert box.keeper_pids() == []


def test_what_is_there_is_told_without_a_keeper(box: Box) -> None:
    told = json.loads(box.gpubox("--readonly", "status", "--json").stdout)
    assert (told["keeper"], told["servers"], told["orphans"]) == (None, [], [])
    box.gpubox("--readonly", "profiles", "list")
    box.gpubox("--readonly", "profiles", "show", "demo")
    chat = box.gpubox("--readonly", "chat", "fake", "hi", code=8).stderr
    assert "no keeper runs, and a read-only gpubox starts none" in chat
    assert box.keeper_pids() == []
    assert not (box.home / "state").exists()


def test_a_keeper_that_is_there_is_asked_and_one_that_is_not_is_done_without(box: Box) -> None:
    box.start(fake_profile())
    server = box.until(ServerState.READY)
    assert "keeper" in box.gpubox("--readonly", "status").stdout.splitlines()[0]
    assert "Application startup complete." in box.gpubox("--readonly", "logs", "fake").stdout
    box.gpubox("--readonly", "stop", "fake", code=2)
    box.client.shutdown()
    while box.client.is_up() or box.keeper_pids():
        time.sleep(0.05)
    (told,) = json.loads(box.gpubox("--readonly", "status", "--json").stdout)["servers"]
    assert (told["name"], told["state"], told["port"]) == ("fake", "ready", server.port)
    assert box.keeper_pids() == []
