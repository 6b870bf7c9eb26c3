"""Sixty random operations, with kills among them, by one user's keeper and by two."""

from __future__ import annotations

from pathlib import Path

import pytest

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
