"""A start whose processes only wait looks wedged, tells so once, and goes on as soon as something moves."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends import paths
from backends.engines.http import EngineHttp
from backends.engines.registry import engine_named
from backends.keeper.boxwatch import BoxWatch
from backends.keeper.events import Hub
from backends.keeper.following import follow_start
from backends.keeper.history import History
from backends.keeper.record import Record
from backends.keeper.subject import Subject
from backends.keeper.surroundings import Surroundings
from backends.ledger import Ledger
from backends.metrics.series import SeriesStore
from backends.processes.facts import current_boot_id
from backends.processes.procfs import start_ticks
from backends.processes.spec import SCHEMA
from backends.records import Records
from backends.simulation import SimulatedKeeper
from backends.snapshots import ServerState
from profiles.schema import parse_profile
from tests.keeper.conftest import PATIENCE_S, fake_profile, free_port

QUIET_S = 0.6


def write_facts(record: Record) -> None:
    """Write down what a shim would, had it started this process as its guard."""
    me = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}
    facts = {"schema": SCHEMA, "boot_id": current_boot_id(), "shim": me, "guard": me, "engine": me, "step": "boot"}
    facts |= {"launched_at": record.launched_at, "phase": "running", "stop_asked_at": None, "exit": None}
    facts |= {"error": None, "log": record.log_path, "dropped_lines": 0}
    paths.private(record.folder)
    record.facts_path.write_text(json.dumps(facts))


async def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def followed(home: Path, lines: str, **content: object) -> AsyncIterator[tuple[Subject, Hub, Path]]:
    """Follow a start whose one process sleeps and whose log begins with `lines`: its subject, its events, its log."""
    whole = fake_profile() | content
    profile, log = parse_profile(whole, "test"), home / "fake.log"
    log.write_text(lines)
    environ = {"HF_HUB_CACHE": str(home / "hub")}
    record = Record("fake", whole, environ, (), (), free_port(), True, "1", str(log), time.time())
    write_facts(record)
    hub, series, history = Hub(), SeriesStore(), History(Records(paths.records_path()))
    box = BoxWatch(lambda: SimulatedKeeper().snapshot().box, hub, series, dict, dict)
    around = Surroundings(hub, series, box, Ledger(), history, set)
    subject = Subject(record, profile, engine_named("vllm"), around, ServerState.STARTING)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        try:
            async with EngineHttp(subject.server.address) as http:
                following = asyncio.create_task(follow_start(subject, http))
                yield subject, hub, log
                following.cancel()
        finally:
            child.kill()
            history.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))
    monkeypatch.setattr("backends.keeper.following.SCOUT_S", 0.05)
    return tmp_path


async def test_a_start_in_which_nothing_moves_looks_wedged(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.keeper.progress.WEDGED_AFTER_S", QUIET_S)
    line = "2026-11-21T12:00:00.000+00:00 (Worker pid=7) INFO world_size=2 rank=1 backend=nccl\n"
    async with followed(home, line) as (subject, hub, log):

        def waits_for() -> str:
            progress = subject.server.progress
            return "" if progress is None or progress.quiet_since is None else progress.waits_for

        await until(lambda: waits_for() == "the other ranks", "that nothing moves")
        with log.open("a") as file:
            file.write("a line without a stamp: it goes on\n")
        await until(lambda: waits_for() == "", "that it goes on")
    told = [event for event in hub.history if event.kind == "wedged"]
    assert told
    assert "waits for the other ranks" in told[0].text


async def test_a_download_that_the_log_does_not_tell_is_seen(home: Path) -> None:
    partial = home / "hub" / "models--org--m" / "blobs" / "aaaa.incomplete"
    partial.parent.mkdir(parents=True)
    lines = "gpubox: fake: boot, pid 7: vllm\nInitializing a V1 LLM engine (v0.26.0)\nStarting to load model org/m...\n"
    async with followed(home, lines, model="org/m") as (subject, _, log):

        def stage() -> str:
            with partial.open("ab") as file:
                file.write(bytes(1 << 20))
            return subject.server.stage.name if subject.server.stage else ""

        await until(lambda: stage() == "download", "the download")
        assert subject.server.stage is not None
        assert " MiB, " in subject.server.stage.detail
        partial.rename(partial.with_suffix(""))
        with log.open("a") as file:
            file.write("Loading safetensors checkpoint shards:   0% Completed | 0/1\n")
        await until(lambda: subject.server.stage is not None and subject.server.stage.name == "weights", "the weights")
        assert subject.server.progress is not None
        assert [one.name for one in subject.server.progress.done][-1] == "download"
