"""`gpubox fit`: what it prints, and what it exits with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.fit.choices import choices_of, installed_version
from backends.fit.estimate import Verdict
from backends.records import Launch, Records, fingerprint
from backends.simulation import SimulatedKeeper
from backends.starts import StartFigures
from tests.unit.fit_models import GIB, QWEN_7B, profile_of, write_model

BOX = SimulatedKeeper("8xH200", clock=lambda: 1_790_000_000.0).snapshot().box


@pytest.fixture
def m7b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path / "home"))
    write_model(tmp_path / "m7b", QWEN_7B)
    return tmp_path / "m7b"


def run(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"GPUBOX_HOME": str(home), "VLLM_CPU_KVCACHE_SPACE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "tui", "fit", *args], capture_output=True, text=True, env=environ, check=False
    )


def profile_file(home: Path, name: str, model: Path, *more: str) -> None:
    folder = home / "config" / "profiles"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text("\n".join([f'model = "{model}"', 'gpus = "cpu"', *more]) + "\n")


def test_each_number_of_gpus_is_a_choice_and_the_profiles_own_is_advised(m7b: Path) -> None:
    found = choices_of(profile_of(m7b, max_model_len=8192, gpu_memory_utilization=0.4), BOX, None, {})
    assert [fit.gpu_count for fit in found.fits] == [1, 2, 4]  # 28 heads cannot be divided among 8
    assert found.advised is found.fits[0]
    assert found.folder == str(m7b)
    weights = [fit.weights_bytes / GIB for fit in found.fits if isinstance(fit.weights_bytes, int)]
    assert weights == pytest.approx([12.24, 6.14, 3.1], rel=0.01)


def test_what_sleep_costs_is_one_line(m7b: Path) -> None:
    sleeper = profile_of(m7b, max_model_len=8192, gpu_memory_utilization=0.4).model_copy(update={"sleep": True})
    (one, two, _) = choices_of(sleeper, BOX, None, {}).fits
    assert one.asleep is not None
    assert two.asleep is not None
    assert isinstance(one.weights_bytes, int)
    assert (one.asleep.host_bytes, one.asleep.measured) == (2 * one.weights_bytes, False)
    assert isinstance(two.asleep.host_bytes, int)
    assert two.asleep.host_bytes == pytest.approx(one.asleep.host_bytes, rel=0.02)
    told = "24.5 GiB  of host memory while it sleeps (2 × its weights), and 1.7 GiB stay on the GPU"
    assert one.arithmetic[-1].strip() == told
    known = choices_of(sleeper, BOX, ("0",), {}, held_bytes=25 * GIB).fits[0]
    assert known.asleep is not None
    assert (known.asleep.host_bytes, known.asleep.measured) == (25 * GIB, True)
    assert "as it holds now" in known.arithmetic[-1]
    awake = choices_of(profile_of(m7b), BOX, ("0",), {}).fits[0]
    assert awake.asleep is None
    assert not any("sleeps" in line for line in awake.arithmetic)


def test_where_the_profiles_own_choice_fails_the_smallest_that_fits_is_advised(m7b: Path) -> None:
    found = choices_of(profile_of(m7b, max_model_len=32768, gpu_memory_utilization=0.1), BOX, None, {})
    assert [fit.verdict for fit in found.fits] == [Verdict.NO, Verdict.FITS, Verdict.FITS]
    assert found.advised is found.fits[1]


def test_gpus_that_are_named_are_taken_as_they_are(m7b: Path) -> None:
    profile = profile_of(m7b, max_model_len=8192, gpu_memory_utilization=0.4)
    (two,) = choices_of(profile, BOX, ("6", "7"), {}).fits
    assert two.gpu_indices == (6, 7)
    assert two.gpu_count == 2
    (held,) = choices_of(profile, BOX, ("0",), {}).fits
    assert (held.verdict, held.why) == (Verdict.NO, "GPU 0 is held by llama-3.3-70b")
    assert held.changes[0].text.startswith("on GPU 4 (NVIDIA H200) instead: ")
    assert held.changes[0].set == {}


def test_gpus_outside_the_askers_bounds_are_not_chosen(m7b: Path) -> None:
    profile = profile_of(m7b, max_model_len=8192, gpu_memory_utilization=0.4)
    found = choices_of(profile, BOX, ("auto",), {"CUDA_VISIBLE_DEVICES": "5,7"})
    assert found.fits[0].gpu_indices == (5,)
    (outside,) = choices_of(profile, BOX, ("4",), {"CUDA_VISIBLE_DEVICES": "5,7"}).fits
    assert outside.why == "GPU 4 outside CUDA_VISIBLE_DEVICES=5,7"


def test_a_recorded_start_corrects_the_next_estimate(m7b: Path) -> None:
    from backends.paths import records_path

    profile = profile_of(m7b, max_model_len=8192, gpu_memory_utilization=0.4)
    weights, activation, unnamed, graphs, cache = (round(n * GIB) for n in (12.29, 1.12, 0.22, 0.89, 42.29))
    figures = StartFigures(weights, activation, unnamed, graphs, cache, 791_808, 96.66, 8192)
    version = installed_version(profile)
    launch = Launch("1", "m", "m", fingerprint(profile), "vllm", version, "NVIDIA H200", 1, 1.0, 2.0, figures=figures)
    (before,) = choices_of(profile, BOX, ("auto",), {}).fits
    assert Records(records_path()).add(launch)
    (after,) = choices_of(profile, BOX, ("auto",), {}).fits
    assert not before.learned
    assert after.learned
    assert after.weights_bytes == figures.weights_bytes
    assert after.kv_tokens == pytest.approx(791_808, rel=0.001)
    assert Records(records_path()).add(replace(launch, engine_version="0.0.1"))
    (older,) = choices_of(profile, BOX, ("auto",), {}).fits
    assert older.activation_bytes == figures.activation_bytes
    other = profile_of(m7b, max_model_len=4096, gpu_memory_utilization=0.4)
    assert not choices_of(other, BOX, ("auto",), {}).fits[0].learned


def test_the_command_says_that_it_fits(tmp_path: Path, m7b: Path) -> None:
    small = tmp_path / "small"
    write_model(small, QWEN_7B | {"num_hidden_layers": 1})
    profile_file(tmp_path / "home", "small", small)
    done = run(tmp_path / "home", "small")
    assert done.returncode == 0, done.stderr
    assert "✓ fits: " in done.stdout
    assert "on the CPU" in done.stdout
    assert "KV cache (as set)" in done.stdout


def test_json_has_everything(tmp_path: Path, m7b: Path) -> None:
    small = tmp_path / "small"
    write_model(small, QWEN_7B | {"num_hidden_layers": 1})
    profile_file(tmp_path / "home", "small", small)
    done = run(tmp_path / "home", "small", "--set", "max_model_len=100000", "--json")
    assert done.returncode == 1
    told: dict[str, Any] = json.loads(done.stdout)
    (fit,) = told["choices"]
    assert told["advised"] is None
    assert told["model_folder"] == str(small)
    assert fit["verdict"] == "does not fit"
    assert fit["kv_bytes_per_token"] == 2048
    assert fit["kv_bytes"] == GIB
    assert fit["changes"][0]["set"] == {"args.max_model_len": 32768}
    assert fit["overhead_bytes"] == fit["non_torch_bytes"]
    assert len(fit["arithmetic"]) > 4


def test_what_cannot_be_asked_has_the_codes_of_a_start(tmp_path: Path, m7b: Path) -> None:
    assert run(tmp_path / "home", "no-such-profile").returncode == 3
    profile_file(tmp_path / "home", "big", m7b)
    text = (tmp_path / "home" / "config" / "profiles" / "big.toml").read_text().replace('gpus = "cpu"\n', "")
    (tmp_path / "home" / "config" / "profiles" / "big.toml").write_text(text)
    assert run(tmp_path / "home", "big", "--gpus", "nonsense").returncode == 2


def test_the_command_imports_no_screen() -> None:
    code = "import sys, tui.headless.fit; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = ("textual", "rich", "openai", "pydantic", "pynvml")
    assert not {name for name in done.stdout.split() if name.startswith(names)}
