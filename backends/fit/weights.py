"""How many bytes of weights each GPU holds: what is split, what is on each, what is converted on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backends.fit.headers import FLOATS, Piece
from backends.fit.layout import kv_heads, layer_count, served_bytes
from backends.fit.settings import Settings

GPU_SLACK_BYTES = 2 << 20
"""PyTorch's allocator gives out a GPU's memory in steps of 2 MiB: about half a step is lost for each of a layer's four
big matrices (seen on an H200: 2 to 4 MiB a layer)."""
SLACK_LIMIT = 0.01


def weights_bytes(
    pieces: Sequence[Piece], config: Mapping[str, Any], settings: Settings, *, on_gpu: bool = True
) -> int:
    """Return the bytes of weights on the GPU that has the most of them; `config` is the language model's."""
    layers = layer_count(config)
    ranks = _layers_per_rank(layers, settings.pipeline_parallel)
    firsts = [sum(ranks[:rank]) for rank in range(len(ranks))]
    tied = config.get("tie_word_embeddings") is True
    held = [0.0] * len(ranks)
    for piece in pieces:
        if piece.place == "draft" or (piece.place == "head" and tied):
            continue
        amount = piece_bytes(piece, config, settings) * _share(piece, config, settings)
        last = len(ranks) - 1
        if isinstance(piece.place, int):
            if layers and piece.place >= layers:  # layers beyond the model's own guess tokens ahead, where asked to
                continue
            rank = max(r for r, first in enumerate(firsts) if first <= piece.place)
            held[rank] += amount
        elif piece.place == "head":
            held[last] += amount
        else:
            held[0] += amount
            if piece.place == "embedding" and tied and last:
                held[last] += amount
    slack = [min(GPU_SLACK_BYTES * n, amount * SLACK_LIMIT) for n, amount in zip(ranks, held, strict=True)]
    most = max(amount + (lost if on_gpu else 0) for amount, lost in zip(held, slack, strict=True))
    return max(0, round(most) - settings.offload_bytes)


def piece_bytes(piece: Piece, config: Mapping[str, Any], settings: Settings) -> float:
    """Return the bytes that tensors have once they are loaded, all of them together."""
    quantized_already = bool(config.get("quantization_config"))
    if quantized_already or piece.dtype not in FLOATS:
        return piece.stored_bytes
    only_experts = settings.quantization == "experts_int8"
    if settings.online_bits and piece.linear and (piece.role == "expert" or not only_experts):
        return piece.elements * settings.online_bits / 8
    return piece.elements * served_bytes(config, settings)


def _share(piece: Piece, config: Mapping[str, Any], settings: Settings) -> float:
    size = settings.tensor_parallel
    match piece.role:
        case "whole":
            return 1.0
        case "kv":
            heads = kv_heads(config)
            return 1 / min(size, heads) if heads else 1 / size
        case "expert":
            return 1 / (size * settings.data_parallel)
        case _:
            return 1 / size


def _layers_per_rank(layers: int, ranks: int) -> list[int]:
    """Return how many layers each pipeline rank has: what is over goes to the later ones, but not to the last."""
    each, over = divmod(layers, ranks)
    counts = [each] * ranks
    for rank in range(2, over + 2):
        counts[-rank] += 1
    return counts
