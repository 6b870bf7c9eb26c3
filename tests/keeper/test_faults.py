"""The faults of the benchmark that no other test tries, once each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.faults import FAULTS
from benchmarks.stage import Stage
from tests.keeper.conftest import box_in

BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with box_in(tmp_path_factory.mktemp("home"), Stage) as box:
        assert isinstance(box, Stage)
        box.standing()
        yield box


@pytest.mark.parametrize(
    "name",
    [
        "keeper-backoff",
        "worker-killed",
        "several",
        "record-damaged",
        "profiles",
        "disk-log",
        "disk-state",
        "clock",
        "metrics-huge",
        "shim-killed",
        "record-live",
        "facts-live",
        "clock-start",
    ],
)
def test_it_survives(stage: Stage, name: str) -> None:
    BY_NAME[name].strike(stage)
    stage.expect_bystander_untouched()
