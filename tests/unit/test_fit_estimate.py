"""Whether a profile fits, against what vLLM logged on real machines; and what to change where it does not."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.engines.figures import read_figures
from backends.fit.advice import with_advice, with_args
from backends.fit.bars import parts_of
from backends.fit.checkpoint import read_checkpoint
from backends.fit.estimate import Fit, Verdict, estimate, reservation_bytes
from backends.fit.rooms import Room, freest, gpu_room, host_room, unknown_room
from backends.snapshots import Gpu, Grant, Host, Missing, Owner, Share, dump, load
from backends.starts import StartFigures
from profiles.schema import Profile
from tests.unit.fit_models import GIB, QWEN_7B, profile_of, write_model

LOGS = Path(__file__).parent.parent / "data" / "logs"
H200 = Room(1, "NVIDIA H200", round(139.8 * GIB), round(139.29 * GIB), (0,))
WITHIN = {"first": 0.10, "learned": 0.02}


def figures(log: str) -> StartFigures:
    found = read_figures((LOGS / f"{log}.log").read_text().splitlines())
    assert found is not None
    return found


def reckon(profile: Profile, room: Room = H200, learned: StartFigures | None = None, **environ: str) -> Fit:
    return estimate(profile, read_checkpoint(profile, environ), room, learned, environ)


def advised(profile: Profile, room: Room = H200, rooms: Mapping[int, Room] | None = None) -> list[dict[str, Any]]:
    fit = reckon(profile, room)
    told = with_advice(fit, profile, read_checkpoint(profile, {}), {room.count: room} | dict(rooms or {}), None, {})
    return [dict(change.set) for change in told.changes]


@pytest.fixture
def m7b(tmp_path: Path) -> Path:
    """The model of the H200's logs."""
    write_model(tmp_path / "m7b", QWEN_7B)
    return tmp_path / "m7b"


@pytest.mark.parametrize(
    ("log", "args", "gpus"),
    [
        ("h200-0.26-ready", {"gpu_memory_utilization": 0.4}, 1),
        ("h200-0.26-tp2-ready", {"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2}, 2),
    ],
)
@pytest.mark.parametrize("when", ["first", "learned"])
def test_an_h200s_log_is_foretold(m7b: Path, log: str, args: dict[str, Any], gpus: int, when: str) -> None:
    logged = figures(log)
    profile = profile_of(m7b, max_model_len=8192, **args)
    fit = reckon(profile, replace(H200, count=gpus), logged if when == "learned" else None)
    assert logged.kv_tokens
    assert logged.max_concurrency
    assert fit.weights_bytes == pytest.approx(logged.weights_bytes, rel=0.01)
    assert fit.kv_tokens == pytest.approx(logged.kv_tokens, rel=WITHIN[when])
    assert fit.concurrency == pytest.approx(logged.max_concurrency, rel=WITHIN[when])
    assert fit.kv_bytes == pytest.approx(logged.kv_available_bytes, rel=WITHIN[when])
    assert fit.learned == (when == "learned")
    assert fit.verdict is Verdict.FITS


def test_activation_is_foretold_before_any_start(m7b: Path) -> None:
    for log, size in (("h200-0.26-ready", 1), ("h200-0.26-tp2-ready", 2)):
        profile = profile_of(m7b, max_model_len=8192, tensor_parallel_size=size)
        fit, logged = reckon(profile, replace(H200, count=size)), figures(log)
        assert fit.activation_bytes == pytest.approx(logged.activation_bytes, rel=0.05)
        assert fit.graphs_bytes == pytest.approx(logged.graphs_bytes, rel=0.05)


def test_what_two_gpus_hold_is_foretold_with_what_their_exchange_takes(m7b: Path) -> None:
    # Two H200 with enforce_eager held 71.54 GiB each, by NVML; their log told 62.94 GiB of KV cache.
    args = {"max_model_len": 16384, "gpu_memory_utilization": 0.5, "enforce_eager": True, "tensor_parallel_size": 2}
    profile = profile_of(m7b, **args)
    fit = reckon(profile, replace(H200, count=2))
    assert isinstance(fit.needed_bytes, int)
    assert fit.needed_bytes / GIB == pytest.approx(71.54, abs=0.1)
    assert any("CUDA itself and exchange between GPUs (reckoned), beside its share" in line for line in fit.arithmetic)


def test_a_start_without_graphs_tells_nothing_of_graphs(m7b: Path) -> None:
    eager = replace(figures("h200-0.26-ready"), graphs_bytes=0)
    assert reckon(profile_of(m7b), learned=eager).graphs_bytes == reckon(profile_of(m7b)).graphs_bytes
    graphs = figures("h200-0.26-ready")
    assert reckon(profile_of(m7b), learned=graphs).graphs_bytes == graphs.graphs_bytes
    assert reckon(profile_of(m7b, enforce_eager=True), learned=graphs).graphs_bytes == 0


def test_the_cpus_log_is_foretold(tmp_path: Path) -> None:
    config = QWEN_7B | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
                        "num_key_value_heads": 4, "max_position_embeddings": 1024}  # fmt: skip
    write_model(tmp_path, config)
    fit = reckon(profile_of(tmp_path, gpus="cpu"), Room(0, "CPU", 8 * GIB, 8 * GIB), VLLM_CPU_KVCACHE_SPACE="1")
    assert fit.kv_tokens == figures("cpu-0.32-ready").kv_tokens == 262_144
    assert fit.concurrency == figures("cpu-0.32-ready").max_concurrency
    profile = profile_of(tmp_path, gpus="cpu", env={"VLLM_CPU_KVCACHE_SPACE": "2"})
    fit = reckon(profile, Room(0, "CPU", 8 * GIB, 8 * GIB), VLLM_CPU_KVCACHE_SPACE="1")
    assert fit.kv_tokens == 2 * 262_144


def test_without_a_space_the_cpus_share_counts(tmp_path: Path) -> None:
    write_model(tmp_path, QWEN_7B | {"num_hidden_layers": 4})
    fit = reckon(profile_of(tmp_path, gpus="cpu", gpu_memory_utilization=0.5), Room(0, "CPU", 16 * GIB, 15 * GIB))
    assert isinstance(fit.weights_bytes, int)
    assert fit.kv_bytes == 8 * GIB - fit.weights_bytes - fit.overhead_bytes
    crowded = reckon(profile_of(tmp_path, gpus="cpu", gpu_memory_utilization=0.5), Room(0, "CPU", 16 * GIB, 7 * GIB))
    assert crowded.verdict is Verdict.NO
    assert crowded.why == "it takes 8.0 GiB, 7.0 GiB can be had on the CPU"


def test_a_number_of_blocks_overrides_the_room(m7b: Path) -> None:
    fit = reckon(profile_of(m7b, max_model_len=2048, block_size=32, num_gpu_blocks_override=256))
    assert fit.kv_tokens == 8192
    assert fit.concurrency == 4.0
    assert fit.longest_context == 8192
    assert fit.kv_bytes == 8192 * 56 * 1024


def test_the_figures_of_a_start_hold_where_an_engine_takes_something_unnamed(m7b: Path) -> None:
    logged = replace(figures("h200-0.26-ready"), kv_available_bytes=41 * GIB, kv_tokens=41 * GIB // (56 * 1024))
    fit = reckon(profile_of(m7b, max_model_len=8192, gpu_memory_utilization=0.4), learned=logged)
    assert fit.kv_bytes == 41 * GIB
    assert fit.kv_tokens == logged.kv_tokens
    assert fit.non_torch_bytes / GIB == pytest.approx(0.22 + 42.29 - 41, abs=0.02)
    parts = (fit.weights_bytes, fit.kv_bytes, fit.activation_bytes, fit.non_torch_bytes)
    assert sum(part for part in parts if isinstance(part, int)) == math.ceil(0.4 * round(139.8 * GIB))


def test_a_start_too_long_for_its_cache_is_refused_as_vllm_does(m7b: Path) -> None:
    profile = profile_of(m7b, max_model_len=32768, gpu_memory_utilization=0.1)
    fit = reckon(profile)
    assert fit.verdict is Verdict.NO
    assert "one conversation of 32,768 needs 1.8 GiB" in fit.why
    changes = advised(profile, rooms={2: replace(H200, count=2), 4: replace(H200, count=4)})
    assert [set(change) for change in changes] == [
        {"args.gpu_memory_utilization"},
        {"args.max_model_len"},
        {"args.tensor_parallel_size"},
        {"args.quantization"},
    ]
    assert changes[0] == {"args.gpu_memory_utilization": 0.15}
    assert changes[1]["args.max_model_len"] < 6496  # the most that vLLM's log allows
    assert changes[2] == {"args.tensor_parallel_size": 2}
    for change in changes:
        args = {key.removeprefix("args."): value for key, value in change.items()}
        assert reckon(with_args(profile, args), replace(H200, count=args.get("tensor_parallel_size", 1))).ok


def test_more_gpus_are_offered_only_where_there_are_some(m7b: Path) -> None:
    profile, small = profile_of(m7b), Room(1, "RTX", 12 * GIB, 12 * GIB, (0,))
    assert reckon(profile, small).why.startswith("the weights leave no room for a KV cache")
    assert {"args.tensor_parallel_size": 2} not in advised(profile, small)
    assert {"args.tensor_parallel_size": 2} in advised(profile, small, {2: replace(small, count=2)})


def test_heads_that_cannot_be_divided_do_not_fit(m7b: Path) -> None:
    fit = reckon(profile_of(m7b, tensor_parallel_size=8), replace(H200, count=8))
    assert (fit.verdict, fit.why) == (Verdict.NO, "28 attention heads cannot be divided among 8 GPUs")


def test_a_context_longer_than_the_models_own_does_not_fit(m7b: Path) -> None:
    fit = reckon(profile_of(m7b, max_model_len=65536))
    assert (fit.verdict, fit.why) == (
        Verdict.NO,
        "max_model_len 65,536 is more than the model was made for (32,768)",
    )


def test_few_long_conversations_are_tight(m7b: Path) -> None:
    fit = reckon(profile_of(m7b, max_model_len=32768, gpu_memory_utilization=0.12))
    assert fit.verdict is Verdict.TIGHT
    assert isinstance(fit.concurrency, float)
    assert 1 <= fit.concurrency < 2


def test_an_automatic_length_is_as_long_as_fits(m7b: Path) -> None:
    fit = reckon(profile_of(m7b, max_model_len="auto", gpu_memory_utilization=0.105))
    assert isinstance(fit.max_model_len, int)
    assert 16_000 < fit.max_model_len < 32_768
    assert fit.max_model_len == fit.longest_context
    assert fit.ok


def test_what_is_not_known_is_missing_and_never_zero(tmp_path: Path, m7b: Path) -> None:
    nowhere = reckon(profile_of("org/nowhere"), HF_HOME=str(tmp_path))
    assert nowhere.verdict is Verdict.UNKNOWN
    assert "download it first" in nowhere.why
    assert isinstance(nowhere.weights_bytes, Missing)
    assert isinstance(nowhere.kv_tokens, Missing)
    (m7b / "model.safetensors").unlink()
    hollow = reckon(profile_of(m7b))
    assert hollow.verdict is Verdict.UNKNOWN
    assert hollow.kv_bytes_per_token == 56 * 1024


def test_without_gpus_it_says_what_it_would_need(m7b: Path) -> None:
    fit = reckon(profile_of(m7b, max_model_len=8192, gpu_memory_utilization=0.5), unknown_room(1))
    assert fit.verdict is Verdict.UNKNOWN
    assert fit.why.startswith("it needs 2")  # about (12.2 + 0.4 + 0.5) ÷ 0.5
    assert isinstance(fit.weights_bytes, int)
    assert fit.kv_bytes_per_token == 56 * 1024


def test_a_fit_turns_to_json_and_back(m7b: Path, tmp_path: Path) -> None:
    profile = profile_of(m7b, max_model_len=32768, gpu_memory_utilization=0.1)
    fit = with_advice(reckon(profile), profile, read_checkpoint(profile, {}), {1: H200}, None, {})
    assert load(Fit, dump(fit)) == fit
    lost = reckon(profile_of("org/nowhere"), HF_HOME=str(tmp_path))
    assert load(Fit, dump(lost)) == lost


def test_transformers_takes_what_is_free(m7b: Path) -> None:
    fit = reckon(profile_of(m7b, engine="transformers"), Room(1, "RTX", 24 * GIB, 20 * GIB, (0,)))
    assert fit.verdict is not Verdict.NO
    assert isinstance(fit.kv_bytes, int)
    assert 3 * GIB < fit.kv_bytes < 8 * GIB
    small = Room(1, "RTX", 12 * GIB, 11 * GIB, (0,))
    assert advised(profile_of(m7b, engine="transformers"), small) == [{"args.quantization": "bnb-4bit"}]


def test_an_encoder_needs_no_cache(tmp_path: Path) -> None:
    write_model(tmp_path, QWEN_7B | {"model_type": "xlm-roberta", "max_position_embeddings": 8192})
    fit = reckon(profile_of(tmp_path, gpu_memory_utilization=0.3))
    assert fit.verdict is Verdict.FITS
    assert fit.kv_bytes == 0


@pytest.mark.parametrize(("args", "share"), [({}, 0.92), ({"gpu_memory_utilization": 0.4}, 0.4)])
def test_a_server_reserves_its_share(args: dict[str, Any], share: float) -> None:
    assert reservation_bytes(profile_of("a/b", **args), 100 * GIB) == math.ceil(share * 100 * GIB)


def test_a_cache_of_a_given_size_reserves_weights_and_overhead_with_it(m7b: Path, tmp_path: Path) -> None:
    profile = profile_of(m7b, max_model_len=8192, kv_cache_memory_bytes="8G")
    first = reservation_bytes(profile, round(139.8 * GIB), None, {})
    learned = reservation_bytes(profile, round(139.8 * GIB), figures("h200-0.26-ready"), {})
    assert isinstance(first, int)
    assert isinstance(learned, int)
    assert learned / GIB == pytest.approx(12.29 + 8 + 1.12 + 0.22 + 0.89 + 0.5, abs=0.01)
    assert first == pytest.approx(learned, rel=0.02)
    unknown = reservation_bytes(profile_of("a/b", kv_cache_memory_bytes="8G"), GIB, None, {"HF_HOME": str(tmp_path)})
    assert isinstance(unknown, Missing)
    assert isinstance(reservation_bytes(profile_of("a/b", engine="transformers"), GIB), Missing)


def gpu(index: int, free_gib: float, *grants: Grant, refusal: str | None = None, shares: tuple[Share, ...] = ()) -> Gpu:
    total, free = 80 * GIB, round(free_gib * GIB)
    return Gpu(index, f"GPU-{index}", "NVIDIA H100", total, total - free, free, 0.0, 30, 90.0, 700.0, (),
               refusal=refusal, grants=grants, shares=shares)  # fmt: skip


def test_who_holds_a_gpu_is_named_where_it_is_too_full(m7b: Path) -> None:
    shares = (Share(Owner.SERVER, "chat", 40 * GIB), Share(Owner.FOREIGN, "alice: python", 10 * GIB))
    fit = reckon(profile_of(m7b, max_model_len=8192), gpu_room([gpu(3, 30.0, shares=shares)]))
    assert fit.verdict is Verdict.NO
    assert fit.why == (
        "it takes 74.1 GiB, 30.0 GiB can be had on GPU 3 (NVIDIA H100); held by chat 40.0 GiB, alice: python 10.0 GiB"
    )
    (smaller, *_) = advised(profile_of(m7b, max_model_len=8192), gpu_room([gpu(3, 30.0)]))
    assert 0.3 < smaller["args.gpu_memory_utilization"] <= 30 / 80


def test_memory_that_is_promised_is_not_free() -> None:
    room = gpu_room([gpu(0, 79.0, Grant("other", "you", 50 * GIB))], share=True)
    assert room.free_bytes == 30 * GIB
    assert room.refusal == ""
    assert gpu_room([gpu(0, 79.0, Grant("other", "you", 50 * GIB))]).refusal == "GPU 0 is held by other"
    assert gpu_room([gpu(0, 79.0, Grant("other", "you"))], share=True).refusal == "GPU 0 is held by other"
    assert gpu_room([gpu(0, 79.0, refusal="it is a MIG parent")]).refusal == "GPU 0 it is a MIG parent"


def test_the_fullest_of_several_gpus_sets_the_limit() -> None:
    room = gpu_room([gpu(0, 70.0), gpu(1, 20.0)])
    assert (room.count, room.free_bytes, room.indices) == (2, 20 * GIB, (0, 1))
    box = [gpu(0, 10.0), gpu(1, 70.0), gpu(2, 79.0, Grant("x", "you")), gpu(3, 60.0), gpu(4, 79.0, refusal="MIG")]
    assert [one.index for one in freest(box, 2)] == [1, 3]
    assert len(freest(box, 8)) == 4
    mixed = [gpu(0, 79.0), replace(gpu(1, 78.0), name="NVIDIA L40S"), gpu(2, 40.0)]
    assert [one.index for one in freest(mixed, 2)] == [0, 2]


def test_a_memory_node_smaller_than_the_host_sets_the_cpus_limit(tmp_path: Path) -> None:
    host = Host("box", 2, 0.1, 0.0, 64 * GIB, 60 * GIB)
    assert host_room(host, tmp_path).usable_bytes == 64 * GIB
    for node in (0, 1):
        folder = tmp_path / f"node{node}"
        folder.mkdir()
        lines = [f"Node {node} MemTotal: {16 << 20} kB", f"Node {node} MemFree: {8 << 20} kB",
                 f"Node {node} Inactive(file): {1 << 20} kB", f"Node {node} Dirty: 12 kB"]  # fmt: skip
        (folder / "meminfo").write_text("\n".join(lines))
    (tmp_path / "node1" / f"cpu{min(os.sched_getaffinity(0))}").mkdir()
    room = host_room(host, tmp_path)
    assert (room.usable_bytes, room.free_bytes) == (16 * GIB, 9 * GIB)


def test_a_bars_parts_fill_it_exactly(m7b: Path) -> None:
    fit = reckon(profile_of(m7b, max_model_len=8192, gpu_memory_utilization=0.4), replace(H200, free_bytes=100 * GIB))
    for cells in (5, 40, 76):
        parts = parts_of(fit, cells)
        assert [part.name for part in parts] == ["weights", "KV cache", "overhead", "others", "free"]
        assert sum(part.cells for part in parts) == cells
        assert all(part.cells > 0 for part in parts)
    assert sum(part.amount_bytes for part in parts_of(fit, 40)) == fit.usable_bytes
    assert parts_of(reckon(profile_of("org/nowhere")), 40) == ()


def test_the_arithmetic_adds_up_in_words(m7b: Path) -> None:
    fit = reckon(profile_of(m7b, max_model_len=8192, gpu_memory_utilization=0.4))
    text = "\n".join(fit.arithmetic)
    assert "139.8 GiB × gpu_memory_utilization 0.4" in text
    assert "−   12.2 GiB  weights (1 file)" in text
    assert "56 KiB  of KV cache a token: 28 layers × 2 KiB" in text
    assert "reckoned; its first start will tell" in text
    learned = reckon(
        profile_of(m7b, max_model_len=8192, gpu_memory_utilization=0.4), learned=figures("h200-0.26-ready")
    )
    assert "as its last start logged" in "\n".join(learned.arithmetic)
