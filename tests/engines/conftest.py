"""The demo model, trained at most once for all test runs of a checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends.demo.model import build_argv, demo_model_dir

CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="session")
def demo_model() -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUBOX_DEMO_MODEL_DIR", str(CACHE))
        subprocess.run(build_argv(sys.executable), check=True)
        return demo_model_dir()
