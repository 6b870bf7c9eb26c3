"""Sixty random operations, with kills among them, by one user's keeper and by two."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from backends.errors import GpuBusyError
from tests.gpu.conftest import nvml_library  # noqa: F401
from tests.keeper.chaos import Chaos, run


@pytest.mark.parametrize(("homes", "seed"), [(1, 1), (2, 2)], ids=["one home", "two homes"])
def test_no_gpu_has_two_owners_and_no_process_is_lost(
    homes: int,
    seed: int,
    tmp_path: Path,
    nvml_library: Path,  # noqa: F811
) -> None:
    chaos = Chaos(tmp_path, nvml_library, homes=homes, gpus=3, seed=seed)
    run(chaos, 60)
    assert chaos.done["start"] > 5


@pytest.mark.parametrize("after_s", [0.01, 0.02, 0.03])
def test_a_keeper_killed_right_after_a_grant_does_not_let_it_go(
    after_s: float,
    tmp_path: Path,
    nvml_library: Path,  # noqa: F811
) -> None:
    chaos = Chaos(tmp_path, nvml_library, homes=2, gpus=1, seed=1)
    first, second = chaos.homes
    try:
        second.keeper()
        first.keeper().start(chaos.request("a", count=1))
        time.sleep(after_s)
        chaos.kill_keeper(first)
        with contextlib.suppress(GpuBusyError):
            second.client.start(chaos.request("b", count=1))
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            chaos.check()
            time.sleep(0.02)
        chaos.settle()
    finally:
        chaos.clear()
