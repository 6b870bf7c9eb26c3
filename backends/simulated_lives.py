"""The servers that a simulated box begins with: two serve, one starts, one has failed, one sleeps beside another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

from backends.simulated_servers import SLEEP_FIRST_S, START_S, Life, Nap
from backends.snapshots import ModelKind
from backends.starts import Card, Evidence, Remedy

FIRST_PORT = 8000
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 1.02 GiB: the weights do not fit beside what the GPU holds"
OUT_OF_MEMORY_CARD = Card(
    cause="cuda-oom-at-load",
    summary="out of GPU memory while the weights were loaded: 1.02 GiB more were asked for",
    evidence=Evidence(9, f"torch.OutOfMemoryError: {OUT_OF_MEMORY}"),
    remedies=(
        Remedy("Split the model over 2 GPUs: tensor_parallel_size = 2", {"args.tensor_parallel_size": 2}),
        Remedy("Serve a quantized variant of the model (AWQ, GPTQ, FP8): half its size, or a quarter", {}),
    ),
    frames=("vllm/model_executor/layers/linear.py:201 in create_weights",),
)
PLANS = (
    # name, model, GPUs, age in seconds, full tok/s, load
    ("llama-3.3-70b", "meta-llama/Llama-3.3-70B-Instruct", (0, 1), 11_640.0, 2_900.0, 1.0),
    ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", (2,), 2_520.0, 6_400.0, 0.6),
    ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.2", (3,), 23.0, 6_100.0, 0.4),
    ("qwen2.5-14b", "Qwen/Qwen2.5-14B-Instruct", (5,), 510.0, 3_800.0, 0.0),
    ("qwen2.5-coder-7b", "Qwen/Qwen2.5-Coder-7B-Instruct", (2,), 7_300.0, 6_400.0, 0.0),
)
FAILED = "qwen2.5-14b"
SLEEPY = ("qwen2.5-7b", "mistral-7b", "qwen2.5-coder-7b")
ASLEEP, PRIMED = "qwen2.5-coder-7b", "qwen2.5-7b"
TTL_S = 600.0


def first_lives(uuids: Sequence[str], now: float, log_path: Callable[[str, float], str]) -> Iterator[Life]:
    """Make the servers that are there from the beginning, as far as the box has their GPUs."""
    ports = count(FIRST_PORT)
    for name, model, indices, age_s, pace, load in PLANS:
        port = next(ports)
        if indices[-1] < len(uuids):
            launched_at = now - age_s
            primed_at = launched_at + START_S + SLEEP_FIRST_S
            naps = {
                ASLEEP: (Nap(1, launched_at + START_S, primed_at),),
                PRIMED: (Nap(1, launched_at + START_S, primed_at, primed_at, primed_at + 0.6),),
            }
            yield Life(
                name=name,
                profile=name,
                engine="vllm",
                model=model,
                kind=ModelKind.CHAT,
                gpus=tuple(uuids[index] for index in indices),
                gpu_indices=indices,
                port=port,
                launched_at=launched_at,
                log_path=log_path(name, launched_at),
                pace=pace,
                load=load,
                fails_with=OUT_OF_MEMORY if name == FAILED else None,
                card=OUT_OF_MEMORY_CARD if name == FAILED else None,
                can_sleep=name in SLEEPY,
                ttl_s=TTL_S if name == ASLEEP else None,
                naps=naps.get(name, ()),
            )
