from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot

from profiles.store import Place, Store

PROFILES = {
    "demo": 'description = "A small model on the CPU."\nmodel = "/opt/demo"\nsource = "local"\ngpus = "cpu"\n',
    "pair": 'model = "Qwen/Qwen2.5-14B-Instruct"\n[args]\ntensor_parallel_size = 2\n',
    "single": 'description = "One GPU."\nmodel = "Qwen/Qwen2.5-7B"\nport = 8123\n[args]\nmax_model_len = 2048\n',
    "wrong": 'enigne = "vllm"\nmodel = "a/b"\n',
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four profiles: on the CPU, on two GPUs, on one, and a broken one."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    for name, text in PROFILES.items():
        (folder / f"{name}.toml").write_text(text)
    return Store([Place("folder", folder)])


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(autouse=True)
def _eager_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start tasks within the call that makes them, as `App.run_async` does from Python 3.12 on and `run_test` not."""
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        return
    run_test = App.run_test

    @asynccontextmanager
    async def run_eagerly(app: App[Any], **settings: Any) -> AsyncIterator[Pilot[Any]]:
        asyncio.get_running_loop().set_task_factory(factory)
        async with run_test(app, **settings) as pilot:
            yield pilot

    monkeypatch.setattr(App, "run_test", run_eagerly)


@pytest.fixture
def own_garbage() -> Iterator[None]:
    """Keep the collector off what earlier tests have left: collecting that is no stall of the app."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
