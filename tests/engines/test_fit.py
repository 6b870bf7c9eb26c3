"""What is told of a model before it starts, against what vLLM itself logs on this machine's CPU."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.engines.figures import read_figures
from backends.fit.checkpoint import read_checkpoint
from backends.fit.estimate import Fit, Verdict, estimate
from backends.fit.rooms import host_room
from backends.gpus.host import HostReader
from backends.starts import StartFigures
from profiles.schema import Profile
from tests.unit.fit_models import GIB, QWEN_7B, profile_of, write_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PATIENCE_S = 300.0
ENVIRON = {"VLLM_CPU_KVCACHE_SPACE": "1"}
MODEL = QWEN_7B | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 0.7 GiB whose weights are all zero, with a tokenizer of two words."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("zeros")
    write_model(folder, MODEL)
    Tokenizer(models.WordLevel({"<end>": 0, "<unk>": 1}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


@pytest.fixture(scope="module")
def profile(model: Path) -> Profile:
    return profile_of(model, gpus="cpu", max_model_len=4096, enforce_eager=True)


@pytest.fixture(scope="module")
def log(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What vLLM logs of a start."""
    path = tmp_path_factory.mktemp("vllm") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    serve += ["--host", "127.0.0.1", "--max-model-len", "4096", "--enforce-eager"]
    with path.open("w") as out:
        engine = subprocess.Popen(serve, stdout=out, stderr=out, env=os.environ | ENVIRON, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "Application startup complete" not in (text := path.read_text()):
            assert engine.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        return text
    finally:
        engine.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            engine.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)


def told(profile: Profile, learned: StartFigures | None = None) -> Fit:
    room = host_room(HostReader().read())
    return estimate(profile, read_checkpoint(profile, ENVIRON), room, learned, ENVIRON)


def test_weights_and_tokens_are_foretold(profile: Profile, log: str) -> None:
    fit, logged = told(profile), read_figures(log.splitlines())
    assert logged is not None
    assert logged.kv_tokens
    checkpoint = re.search(r"Checkpoint size: ([\d.]+) GiB", log)
    assert checkpoint
    assert fit.weights_bytes == pytest.approx(float(checkpoint[1]) * GIB, rel=0.01)
    assert fit.kv_tokens == pytest.approx(logged.kv_tokens, rel=0.02)
    assert fit.concurrency == pytest.approx(logged.max_concurrency, rel=0.02)
    assert fit.verdict is Verdict.FITS


def test_a_start_on_record_makes_it_exact(profile: Profile, log: str) -> None:
    logged = read_figures(log.splitlines())
    assert logged is not None
    fit = told(profile, logged)
    assert fit.learned
    assert fit.kv_tokens == logged.kv_tokens
    assert fit.concurrency == logged.max_concurrency
