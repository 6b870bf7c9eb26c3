"""Pictures of the crash card, at the smallest size that is promised and at a comfortable one."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from profiles.store import Place, Store
from tests.snapshots.test_panels import picture
from tests.tui.test_card_screen import link_of
from tui.app import GpuboxApp

NOW = 1_790_000_491.0
PROFILE = """\
# For talks of any length
model = "Qwen/Qwen2.5-7B"
port = 8123

[args]
max_model_len = 32768  # all of it
gpu_memory_utilization = 0.9
"""


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
@pytest.mark.parametrize("keys", [("2",), ("2", "f"), ("2", "f", "3")], ids=["details", "card", "third"])
def test_card(snap_compare: Callable[..., bool], size: tuple[int, int], keys: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "single.toml").write_text(PROFILE)
    store = Store([Place("user", tmp_path)])
    app = GpuboxApp(
        link_of("h200-0.26-kv-cache-too-small", {"name": "single"} | tomllib.loads(PROFILE)),
        store=store,
        clock=lambda: NOW,
    )
    assert picture(snap_compare, app, size, *keys)
