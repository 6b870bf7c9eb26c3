"""The demo model's place, and the command that makes it: gpubox's side, which imports nothing heavy."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

import profiles
from backends import paths

DATA = Path(profiles.__file__).parent / "demo" / "qa.jsonl"
TRAINER = Path(__file__).with_name("train.py")
PARENT_VARIABLE = "GPUBOX_DEMO_MODEL_DIR"


@cache
def _digest() -> str:
    """Tell one demo model from another: by what it learns and how."""
    return hashlib.sha256(DATA.read_bytes() + TRAINER.read_bytes()).hexdigest()[:12]


def demo_model_dir() -> Path:
    """Return the folder of the demo model, which need not be there yet.

    It lies in the user's cache, or in the folder that GPUBOX_DEMO_MODEL_DIR names, so that homes can share one.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    return (Path(parent) if parent else paths.cache_dir()) / f"demo-{_digest()}"


def is_built(folder: Path) -> bool:
    """Whether the model is there: it appears whole or not at all."""
    return (folder / "config.json").exists()


def build_argv(python: str) -> tuple[str, ...]:
    """Return the command that makes the model with an engine's Python; it ends at once where the model is there."""
    return (python, "-P", str(TRAINER), "--data", str(DATA), "--out", str(demo_model_dir()))
