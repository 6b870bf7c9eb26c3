"""Engines on a socket of their own, for real: vLLM on the CPU, which serves there, and which cannot sleep."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends import paths
from backends.diagnosis.card import diagnose
from backends.engines.base import Placement
from backends.engines.http import EngineHttp
from backends.engines.sleeping import first_token, sleep_level
from backends.engines.vllm import VllmEngine
from backends.snapshots import ModelKind
from profiles.schema import Profile, parse_profile

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
PATIENCE_S = 240.0


@contextmanager
def running(profile: Profile, folder: Path, socket: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run what the engine's plan says, without GPUs; its log is beside it, and all of it has ended afterwards."""
    plan = VllmEngine().plan(profile, Placement((), 9, os.environ, str(socket)))
    environ = os.environ | plan.environ | {"CUDA_VISIBLE_DEVICES": "", "VLLM_CPU_KVCACHE_SPACE": "1"}
    argv: Sequence[str] = plan.steps[-1].argv
    with (folder / "engine.log").open("wb") as log:
        process = subprocess.Popen(argv, env=environ, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process, folder / "engine.log"
        finally:
            process.terminate()
            process.wait(60)


def profile_of(model: Path, **content: object) -> Profile:
    fixed = {"name": "m", "model": str(model), "served_name": "m", "python": sys.executable}
    return parse_profile(fixed | content, "test")


async def test_an_engine_serves_on_its_socket_alone(demo_model: Path, tmp_path: Path) -> None:
    socket = paths.engine_socket(paths.private(tmp_path / "launch"))
    profile, engine = profile_of(demo_model, gpus="cpu", args={"max_model_len": 512}), VllmEngine()
    with running(profile, tmp_path, socket) as (process, log):
        async with EngineHttp("http://127.0.0.1:9", uds=str(socket)) as http:
            deadline = time.monotonic() + PATIENCE_S
            while not (found := await engine.probe(http, "m")).ready:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, found.reason
                await asyncio.sleep(0.5)
            assert found.kind is ModelKind.CHAT
            await first_token(http, "m", found.kind)
            assert await sleep_level(http) == 0  # told by its metrics: it has no development routes


def test_the_build_for_the_cpu_has_no_sleep_mode(demo_model: Path, tmp_path: Path) -> None:
    with running(profile_of(demo_model, sleep=True), tmp_path, tmp_path / "e.sock") as (process, log):
        assert process.wait(PATIENCE_S) != 0
        assert diagnose(log).cause == "no-sleep-mode"
