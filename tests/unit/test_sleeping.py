"""What the keeper asks of an engine that sleeps, against the stand-in engine on a socket of its own."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from backends import paths
from backends.engines.http import EngineHttp
from backends.engines.sleeping import (
    EngineRefusedError,
    fall_asleep,
    first_token,
    level_in,
    sleep_level,
    take_step,
    wake_steps,
)
from backends.gpus.nvml import Nvml
from backends.snapshots import Missing, ModelKind
from backends.switches import Level
from tests.gpu.conftest import NvmlStub, StubGpu, nvml_library, nvml_stub  # noqa: F401

FAKE = Path(__file__).parents[1] / "keeper" / "fake_vllm.py"
PATIENCE_S = 45.0
GIB = 2**30


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not met():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def engine(folder: Path, *flags: object, environ: dict[str, str] | None = None) -> AsyncIterator[EngineHttp]:
    """Run a stand-in engine that can sleep, and wait until it serves."""
    socket = paths.engine_socket(folder, f"e{time.monotonic_ns()}")
    argv = [sys.executable, str(FAKE), "--served-model-name", "m", "--uds", str(socket), "--enable-sleep-mode"]
    argv += ["--fake-start", "0", *(str(flag) for flag in flags)]
    process = subprocess.Popen(
        argv, env=os.environ | {"VLLM_SERVER_DEV_MODE": "1"} | (environ or {}), stdout=subprocess.DEVNULL
    )
    try:
        async with EngineHttp("http://127.0.0.1:9", uds=str(socket)) as http:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        await http.get("/health")
                        break
                    except OSError:
                        assert process.poll() is None, "the engine has ended"
                        await asyncio.sleep(0.02)
            yield http
    finally:
        process.kill()
        process.wait()
        socket.unlink(missing_ok=True)


async def asked(http: EngineHttp, timeout_s: float = PATIENCE_S) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": "why"}]}
    _, answer = await http.post("/v1/chat/completions", body, timeout_s=timeout_s)
    return str(json.loads(answer)["choices"][0]["message"]["content"])


@pytest.mark.parametrize("level", [1, 2])
async def test_an_engine_sleeps_and_wakes_with_all_that_it_knew(tmp_path: Path, level: Level) -> None:
    async with engine(tmp_path) as http:
        assert await sleep_level(http) == 0
        await fall_asleep(http, level)
        assert await sleep_level(http) == level
        steps = wake_steps(level)
        for step in steps[:-1]:
            await take_step(http, step)
        held = asyncio.create_task(asked(EngineHttp("http://x", uds=http._uds)))
        for step in steps[-1:]:
            await take_step(http, step)
        assert await sleep_level(http) == 0
        assert await held == "You asked: why"
        await first_token(http, "m", ModelKind.CHAT)


async def test_what_wakes_from_level_2_without_its_weights_talks_nonsense(tmp_path: Path) -> None:
    async with engine(tmp_path) as http:
        await fall_asleep(http, 2)
        for step in wake_steps(1):
            await take_step(http, step)
        assert await asked(http) == "!!!! !!!! !!!!"


async def test_one_half_awake_is_asleep(tmp_path: Path) -> None:
    async with engine(tmp_path) as http:
        await fall_asleep(http, 2)
        await take_step(http, wake_steps(2)[0])
        assert await sleep_level(http) == 2


async def test_why_it_does_not_wake_is_in_its_own_words_on_one_line(tmp_path: Path) -> None:
    async with engine(tmp_path, "--fake-wake-fails") as http:
        await fall_asleep(http, 1)
        with pytest.raises(EngineRefusedError) as refused:
            await take_step(http, wake_steps(1)[0])
        said = "the engine answers 500 to /wake_up: CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62"
        assert (refused.value.status, str(refused.value)) == (500, said)
        assert await sleep_level(http) == 1


async def test_what_takes_long_is_waited_for_and_silence_is_told(tmp_path: Path) -> None:
    async with engine(tmp_path, "--fake-first-sleep", 0.6, "--fake-wake", 600) as http:
        hasty = EngineHttp("http://x", uds=http._uds, read_s=0.1)
        await fall_asleep(hasty, 1)
        assert await sleep_level(http) == 1
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.1 s"):
            await hasty.post("/wake_up", None)
    with pytest.raises(ConnectionError, match=f"nothing answers at {http._uds}"):
        await sleep_level(http)


async def test_one_that_makes_no_tokens_says_so_which_is_an_answer(tmp_path: Path) -> None:
    async with engine(tmp_path, "--fake-kind", "rerank") as http:
        await first_token(http, "m", ModelKind.COMPLETION)


async def test_one_whose_core_is_gone_gives_no_token(tmp_path: Path) -> None:
    async with engine(tmp_path, "--fake-core") as http:
        await first_token(http, "m", ModelKind.CHAT)
        below = psutil.Process().children(recursive=True)
        (core,) = (one for one in below if any("VLLM::EngineCor" in word for word in one.cmdline()))
        core.kill()
        await until(lambda: not core.is_running() or core.status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(EngineRefusedError, match="500 to /v1/completions: EngineCore encountered an issue"):
            await first_token(http, "m", ModelKind.CHAT)


async def test_an_engine_without_the_routes_says_so(tmp_path: Path) -> None:
    async with engine(tmp_path, environ={"VLLM_SERVER_DEV_MODE": "0"}) as http:
        assert await sleep_level(http) == 0  # by its metrics
        with pytest.raises(EngineRefusedError, match="404 to /sleep"):
            await fall_asleep(http, 1)


async def test_requests_that_run_end_when_it_falls_asleep(tmp_path: Path) -> None:
    async with engine(tmp_path, "--fake-token-s", 0.05) as http:
        body = {"model": "m", "prompt": "x", "max_tokens": 100_000, "stream": True}
        other = EngineHttp("http://x", uds=http._uds)
        streaming = asyncio.create_task(other.post("/v1/completions", body, timeout_s=PATIENCE_S))
        async with asyncio.timeout(PATIENCE_S):
            while b'num_requests_running{model_name="m",engine="0"} 1' not in (await http.get("/metrics"))[1]:
                await asyncio.sleep(0.02)
        await fall_asleep(http, 1)
        _, streamed = await streaming
        assert b'"finish_reason": "abort"' in streamed
        assert b'finished_reason="abort"} 1' in (await http.get("/metrics"))[1]


async def test_memory_goes_and_comes_as_nvml_shows_it(nvml_stub: NvmlStub, tmp_path: Path) -> None:  # noqa: F811
    nvml_stub.show([StubGpu(), StubGpu()])
    nvml = Nvml()

    def used(index: int) -> int:
        found = nvml.read().gpus[index].memory_used_bytes
        assert not isinstance(found, Missing)
        return found

    empty = used(1)
    environ = {"GPUBOX_NVML_STUB": str(nvml_stub.scenario), "CUDA_VISIBLE_DEVICES": "1"}
    flags = ("--fake-gpu-bytes", 100 * GIB, "--fake-asleep-bytes", 2 * GIB)
    async with engine(tmp_path, *flags, environ=environ) as first:
        assert (used(0), used(1)) == (empty, empty + 100 * GIB)
        await fall_asleep(first, 1)
        assert used(1) == empty + 2 * GIB
        async with engine(tmp_path, *flags, "--fake-memory-lag", 0.3, environ=environ) as second:
            assert used(1) == empty + 102 * GIB
            with pytest.raises(EngineRefusedError, match="out of memory"):
                await take_step(first, wake_steps(1)[0])
            await fall_asleep(second, 1)
            await until(lambda: used(1) < empty + 50 * GIB)
            await take_step(first, wake_steps(1)[0])
            assert used(1) == empty + 102 * GIB
        await until(lambda: used(1) == empty + 100 * GIB)
    await until(lambda: used(1) == empty)


@pytest.mark.parametrize(
    ("said", "level"),
    [("awake", 0), ("weights_offloaded", 1), ("discard_all", 2), ("awake,discard_all", None), (None, None)],
)
def test_a_level_is_read_off_the_metrics(said: str | None, level: int | None) -> None:
    assert level_in(said) == level


def test_a_socket_has_a_path_that_sockets_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert paths.engine_socket(Path("/s/l")) == Path("/s/l/engine.sock")
    deep = tmp_path / ("x" * 120)
    found = {paths.engine_socket(deep), paths.engine_socket(deep, "control"), paths.engine_socket(deep / "y")}
    assert len(found) == 3
    for path in found:
        assert len(path.name) < 32
        assert path.parent == tmp_path / f"gpubox-{os.getuid()}"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert path.suffix != ".sock", "those are tidied away where no keeper listens on them"


def test_sockets_are_in_nobody_elses_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"gpubox-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="must be a folder of this user's alone"):
        paths.engine_socket(tmp_path / ("x" * 120))
