"""What an engine takes beside weights and KV cache: learned from its own log where there is one, else reckoned.

On a first start, activation is what the widest step of the model's forward pass holds at once, 2 bytes a value:
`tokens a step × (3 × width of the MLP ÷ tensor parallel + 4 × hidden size)`, or the sampler's logits where they are
more.
An H200 with a 7B-shaped model logged 1.12 GiB (here: 1.09), and 0.66 GiB (0.65) on each of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.fit.layout import hidden_size
from backends.fit.settings import GIB, Settings
from backends.starts import StartFigures

NON_TORCH_BYTES = GIB // 4
"""Communication buffers and the like; an H200 logged 0.22 GiB alone, 0.07 GiB on each of two."""
GRAPHS_FIXED_BYTES, GRAPHS_SPLIT_BYTES = GIB // 5, GIB * 7 // 10
"""CUDA graphs, of which the second part is divided; an H200 logged 0.89 GiB alone, 0.55 GiB on each of two."""
CONTEXT_BYTES = GIB // 2
"""What CUDA itself takes of a GPU for a process that uses it; neither part of the engine's share nor in its log."""
PEER_BYTES = GIB * 11 // 10
"""What exchanging with other GPUs takes beside the share, NCCL's and all-reduce's buffers; two H200 held so much more
than one in each of two runs."""
LOGIT_BYTES = 10
"""A logit in the model's type, in float32, and as a probability."""
CPU_PROCESS_BYTES = GIB * 6 // 10
"""Python, PyTorch and vLLM in a worker on the CPU; one of 0.32 logged 0.59 GiB beside its weights."""
LARGE_GPU_BYTES, HUGE_GPU_BYTES = 70 * GIB, 160 * GIB


@dataclass(frozen=True, slots=True)
class Overhead:
    """Bytes on each GPU (or of the host) beside weights and KV cache.

    `activation` and `non_torch` come out of the engine's share of the GPU, `graphs`, `context` and `peers` on top
    of it.
    """

    activation_bytes: int
    non_torch_bytes: int
    graphs_bytes: int
    context_bytes: int
    peers_bytes: int
    learned: bool

    @property
    def inside_bytes(self) -> int:
        """The part that lessens the KV cache."""
        return self.activation_bytes + self.non_torch_bytes

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.inside_bytes + self.graphs_bytes + self.context_bytes + self.peers_bytes


@dataclass(frozen=True, slots=True)
class Step:
    """How much an engine takes on at once: tokens in a step, and conversations."""

    tokens: int
    seqs: int


def step_of(settings: Settings, usable_bytes: int, gpu_name: str) -> Step:
    """Return vLLM's limits of a step, which by default depend on the GPU."""
    large = usable_bytes >= LARGE_GPU_BYTES and "a100" not in gpu_name.lower()
    tokens = 16384 if usable_bytes >= HUGE_GPU_BYTES else 8192 if large else 2048
    return Step(settings.max_batched_tokens or tokens, settings.max_seqs or (1024 if large else 256))


def gpu_overhead(config: Mapping[str, Any], settings: Settings, step: Step, learned: StartFigures | None) -> Overhead:
    """Return the overhead on each GPU; `config` is the language model's, empty where it is not known."""
    known = learned or StartFigures()
    graphs = 0
    if not settings.eager and settings.engine != "transformers":
        # A start without graphs logs none of them, which tells nothing of one with them.
        graphs = known.graphs_bytes or GRAPHS_FIXED_BYTES + GRAPHS_SPLIT_BYTES // settings.tensor_parallel

    def first(told: int | None, otherwise: int) -> int:
        return otherwise if told is None else told

    return Overhead(
        activation_bytes=first(known.activation_bytes, _activation(config, settings, step)),
        non_torch_bytes=first(known.non_torch_bytes, NON_TORCH_BYTES),
        graphs_bytes=graphs,
        context_bytes=CONTEXT_BYTES,
        peers_bytes=PEER_BYTES if settings.tensor_parallel > 1 and settings.engine == "vllm" else 0,
        learned=known.activation_bytes is not None,
    )


def cpu_overhead(learned: StartFigures | None) -> Overhead:
    """Return what a worker on the CPU takes of the host's memory."""
    told = learned.non_torch_bytes if learned else None
    return Overhead(0, CPU_PROCESS_BYTES if told is None else told, 0, 0, 0, told is not None)


def _activation(config: Mapping[str, Any], settings: Settings, step: Step) -> int:
    def of(*names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)

    hidden, size = hidden_size(config), settings.tensor_parallel
    width = 3 * of("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") / size
    chosen, expert = of("num_experts_per_tok", "num_experts_per_token"), of("moe_intermediate_size")
    expert = expert or (of("intermediate_size") if of("num_local_experts") else 0)
    if chosen and expert:  # each token's experts, one beside the other
        width = max(width, chosen * (max(2 * expert / size, hidden) + expert / size))
    forward = step.tokens * 2 * (width + 4 * hidden)
    return round(max(forward, step.seqs * of("vocab_size") * LOGIT_BYTES))
