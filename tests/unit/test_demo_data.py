"""The demo model's questions, and where the model is kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backends.demo.model import DATA, TRAINER, build_argv, demo_model_dir, is_built

ROWS = [json.loads(line) for line in DATA.read_text().splitlines()]


def test_there_are_enough_questions_each_with_one_answer() -> None:
    assert len(ROWS) >= 200
    assert all(set(row) == {"question", "answer"} for row in ROWS)
    assert all(row["question"].strip() == row["question"] and row["answer"].strip() == row["answer"] for row in ROWS)
    asked = [re.sub(r"\W+", " ", row["question"]).strip().lower() for row in ROWS]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("topic", ["KV cache", "TTFT", "TPOT", "PagedAttention", "tensor parallel", "LoRA", "gpubox"])
def test_the_questions_are_about_serving(topic: str) -> None:
    assert sum(topic.lower() in f"{row['question']} {row['answer']}".lower() for row in ROWS) >= 3


def test_its_place_follows_the_cache_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GPUBOX_DEMO_MODEL_DIR", raising=False)
    assert demo_model_dir().parent == tmp_path / "home" / "cache"
    monkeypatch.setenv("GPUBOX_DEMO_MODEL_DIR", str(tmp_path))
    assert demo_model_dir().parent == tmp_path
    assert build_argv("/py")[:3] == ("/py", "-P", str(TRAINER))
    assert str(demo_model_dir()) in build_argv("/py")


def test_a_model_that_is_there_is_not_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUBOX_DEMO_MODEL_DIR", str(tmp_path))
    folder = demo_model_dir()
    assert not is_built(folder)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert is_built(folder)
    done = subprocess.run(build_argv(sys.executable), env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.listdir(folder) == ["config.json"]
