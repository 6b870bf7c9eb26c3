"""What is written down of a switch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backends import paths
from backends.keeper import journal as journals
from backends.keeper.journal import Journal
from backends.snapshots import StartRequest
from backends.switches import GivingWay, SwitchStep, Way, Yield

JOURNAL = Journal(
    "10.5-b",
    "b",
    10.5,
    Way.START,
    (GivingWay("a", Yield.SLEEP_2, "why"),),
    ("a",),
    ("GPU-0",),
    StartRequest({"name": "b"}, {"HF_TOKEN": "secret"}, gpus=("GPU-0",)),
    steps=(SwitchStep("drain", "a", 11.0, 0.25),),
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))


def test_what_is_written_is_read_again_oldest_first() -> None:
    journals.write(JOURNAL)
    older = replace(JOURNAL, id="9.5-c", to="c", began_at=9.5, start=None)
    journals.write(older)
    journals.write(newer := replace(JOURNAL, phase="restoring", error="no room"))
    assert journals.read_all() == [older, newer]
    journals.erase(older.id)
    journals.erase(older.id)
    assert journals.read_all() == [newer]


def test_it_is_its_users_alone() -> None:
    journals.write(JOURNAL)
    (path,) = paths.state_dir().glob("switch-*")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_one_that_cannot_be_read_is_set_aside() -> None:
    journals.write(JOURNAL)
    (path,) = paths.state_dir().glob("switch-*")
    path.write_text(path.read_text()[:40])
    assert journals.read_all() == []
    assert [one.name for one in paths.state_dir().glob("switch-*")] == [f"{path.name}.broken"]
