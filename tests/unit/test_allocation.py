"""What a profile asks of GPUs, before any is chosen."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.engines.base import Placement
from backends.engines.transformers import TransformersEngine
from backends.engines.vllm import DOWNLOAD, VllmEngine
from backends.errors import GpuBusyError, NoSuchGpuError, UsageError
from backends.keeper.allocation import choose_gpus, fixed_need, indices_of, reserved
from backends.records import Records
from backends.simulation import SimulatedKeeper
from backends.snapshots import Box, Grant, StartRequest
from profiles.errors import InvalidProfileError
from profiles.schema import Profile, parse_profile

GIB = 2**30
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of 2 GiB of weights, whose file is sparse."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1024, 1024, 1024], "data_offsets": [0, 2 * GIB]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2 * GIB)
    return folder


def profile(model: Path, share: bool = True, **args: Any) -> Profile:
    return parse_profile({"name": "p", "model": str(model), "share": share, "args": args}, "p")


@pytest.fixture
def box() -> Box:
    return SimulatedKeeper("2xH200", clock=lambda: 1.8e9).snapshot().box


def test_a_share_of_the_gpu_is_reserved_by_utilization(model: Path, box: Box) -> None:
    some = profile(model, gpu_memory_utilization=0.25)
    (memory,) = reserved(some, box.gpus[:1], None).values()
    total = box.gpus[0].memory_total_bytes
    assert isinstance(total, int)
    assert memory == pytest.approx(total / 4, rel=0.001)
    assert set(reserved(profile(model, share=False), box.gpus, None).values()) == {None}


def test_a_fixed_kv_cache_is_reserved_with_weights_and_overhead(model: Path, box: Box, tmp_path: Path) -> None:
    some = profile(model, kv_cache_memory_bytes=3 * GIB)
    needed = fixed_need(some, {}, box, Records(tmp_path / "records.sqlite"))
    assert needed is not None
    assert 5 * GIB < needed < 10 * GIB
    assert reserved(some, box.gpus[:1], needed) == {box.gpus[0].uuid: needed}
    assert fixed_need(profile(model, gpu_memory_utilization=0.5), {}, box, Records(tmp_path / "r.sqlite")) is None
    tight = replace(box.gpus[0], grants=(), processes=(), memory_used_bytes=0, memory_free_bytes=4 * GIB)
    request = StartRequest({}, {}, gpus=("0",))
    with pytest.raises(GpuBusyError, match=r"4\.0 of 4\.0 GiB free, the profile wants .*kv_cache_memory_bytes"):
        choose_gpus(some, request, replace(box, gpus=(tight,)), needed)


def test_indices_are_looked_up_by_uuid(box: Box) -> None:
    first, second = box.gpus
    swapped = replace(box, gpus=(replace(second, index=0), replace(first, index=1)))
    assert indices_of((first.uuid, second.uuid), swapped) == (1, 0)
    with pytest.raises(NoSuchGpuError, match="not in this box any more"):
        indices_of((first.uuid,), replace(box, gpus=(second,)))


@pytest.mark.parametrize(
    "data", [{}, {"gpus": "cpu", "args": {"gpu_memory_utilization": 0.4}}, {"engine": "transformers"}]
)
def test_a_profile_that_shares_says_how_much(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidProfileError, match=r"share.* is for vLLM on GPUs, with its part of the memory said"):
        parse_profile({"name": "p", "model": "a/b", "share": True} | data, "p")


def sleeper(**content: Any) -> Profile:
    return parse_profile({"name": "p", "model": "a/b", "sleep": True, "python": sys.executable} | content, "p")


def test_one_that_sleeps_is_granted_its_part_and_fits_where_others_sleep(box: Box) -> None:
    gpu = replace(box.gpus[0], grants=(), processes=(), memory_used_bytes=0, memory_free_bytes=100 * GIB)
    assert reserved(sleeper(), (gpu,), None) == {gpu.uuid: 90 * GIB}
    assert reserved(sleeper(args={"gpu_memory_utilization": 0.5}), (gpu,), None) == {gpu.uuid: 50 * GIB}

    def beside(memory_bytes: int | None) -> Box:
        other = Grant("other", "me", memory_bytes, ours=True)
        held = 2 * GIB  # what others' engines leave there while they sleep
        return replace(
            box, gpus=(replace(gpu, grants=(other,), memory_used_bytes=held, memory_free_bytes=98 * GIB, processes=()),)
        )

    request = StartRequest({}, {}, gpus=("0",))
    assert choose_gpus(sleeper(), request, beside(2 * GIB)).gpus[0].uuid == gpu.uuid
    with pytest.raises(GpuBusyError, match="not granted yet, the profile wants 90"):
        choose_gpus(sleeper(), request, beside(90 * GIB))
    with pytest.raises(GpuBusyError, match="does not share it") as busy:
        choose_gpus(sleeper(), request, beside(None))
    assert busy.value.hint == "gpubox stop other, or let it give way: gpubox switch p"
    with pytest.raises(GpuBusyError) as busy:
        choose_gpus(sleeper(), replace(request, gpus=None, name="n"), beside(None))
    assert busy.value.hint.startswith("gpubox switch n lets one of yours give way; or ")
    theirs = Grant("other", "they", None, ours=False)
    with pytest.raises(GpuBusyError) as busy:
        choose_gpus(sleeper(), request, replace(box, gpus=(replace(gpu, grants=(theirs,)),)))
    assert "switch" not in busy.value.hint


def test_one_that_sleeps_is_not_for_the_cpu(box: Box) -> None:
    with pytest.raises(UsageError, match="the CPU build has no sleep mode"):
        choose_gpus(sleeper(), StartRequest({}, {}, gpus=("cpu",)), box)


def test_an_engine_can_be_put_to_sleep_on_a_socket_of_its_own_alone() -> None:
    engine, some = VllmEngine(), sleeper(model="/m", args={"max_model_len": 9})
    plan = engine.plan(some, Placement((0,), 8000, {}, "/run/e.sock"))
    argv = plan.steps[-1].argv
    assert argv[argv.index("--uds") + 1] == "/run/e.sock"
    assert "--enable-sleep-mode" in argv
    assert not {"--host", "--port"} & set(argv)
    assert plan.environ["VLLM_SERVER_DEV_MODE"] == "1"
    shell = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64,expandable_segments:True", "PYTORCH_ALLOC_CONF": "a:1"}
    asked_in = engine.plan(some, Placement((0,), 8000, shell, "/run/e.sock")).environ
    assert asked_in["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64"
    assert "PYTORCH_ALLOC_CONF" not in asked_in
    open_to_all = engine.plan(some, Placement((0,), 8000, {}))
    assert "--enable-sleep-mode" not in open_to_all.steps[-1].argv
    assert open_to_all.environ == {}
    plain = some.model_copy(update={"sleep": False})
    behind = engine.plan(plain, Placement((0,), 8000, {}, "/run/e.sock"))
    assert "--uds" in behind.steps[-1].argv
    assert behind.environ == {}
    assert engine.can_sleep(some)
    assert not engine.can_sleep(plain)
    assert not TransformersEngine().can_sleep(plain)


def test_a_model_of_the_hub_that_shares_a_gpu_is_downloaded_before_its_turn() -> None:
    args = {"gpu_memory_utilization": 0.4, "revision": "v2"}
    some = parse_profile({"name": "p", "model": "a/b", "share": True, "python": sys.executable, "args": args}, "p")
    steps = VllmEngine().plan(some, Placement((0,), 8000, {})).steps
    assert [step.label for step in steps] == ["download", "boot"]
    assert steps[0].argv[1:] == (str(DOWNLOAD), "a/b", "revision=v2")
    alone = some.model_copy(update={"share": False})
    assert [step.label for step in VllmEngine().plan(alone, Placement((0,), 8000, {})).steps] == ["boot"]
