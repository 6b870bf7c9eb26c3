"""Pictures of the launch sheet where the model is on the machine: how it fits is told before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.snapshots.test_panels import SIZES, settle
from tests.unit.fit_models import QWEN_7B, write_model
from tui.app import GpuboxApp

QWEN_14B = QWEN_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
}
TICK_TWO = ("space", "down", "space")


@pytest.fixture(autouse=True)
def _model_in_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path / "gpubox"))
    repository = tmp_path / ".cache" / "huggingface" / "hub" / "models--Qwen--Qwen2.5-14B-Instruct"
    write_model(repository / "snapshots" / "0123abcd", QWEN_14B)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(
    "keys",
    [TICK_TWO, ("tab", "tab", *"gpu_memory_utilization=0.12 max_model_len=32768")],
    ids=["fits", "does-not-fit"],
)
def test_fit(
    snap_compare: Callable[..., bool],
    pictured: Callable[..., GpuboxApp],
    size: tuple[int, int],
    keys: tuple[str, ...],
) -> None:
    opened = ("2", "tab", "down", "down", "enter")
    assert snap_compare(pictured(), terminal_size=size, run_before=lambda pilot: settle(pilot, *opened, *keys))
