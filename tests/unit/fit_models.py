"""Models made of nothing but a configuration and safetensors headers: the weights are holes in sparse files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from profiles.schema import Profile, parse_profile

GIB = 1 << 30
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4, "F8_E4M3": 1, "U8": 1}

Shapes = Mapping[str, Sequence[int]]

QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""The model whose starts on an H200 the logs tell of."""


def write_tensors(path: Path, shapes: Shapes, dtype: str = "BF16") -> int:
    """Write a safetensors file; returns the bytes of its tensors."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    blob = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    with path.open("wb") as file:
        file.write(len(blob).to_bytes(8, "little") + blob)
        file.truncate(8 + len(blob) + at)
    return at


def decoder_shapes(config: Mapping[str, Any], *, head: bool = True) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a Llama- or Qwen-like decoder."""
    hidden, width, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    size = config.get("head_dim", hidden // config["num_attention_heads"])
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if head:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": (queries, hidden),
            f"{at}self_attn.k_proj.weight": (keys, hidden),
            f"{at}self_attn.v_proj.weight": (keys, hidden),
            f"{at}self_attn.o_proj.weight": (hidden, queries),
            f"{at}mlp.gate_proj.weight": (width, hidden),
            f"{at}mlp.up_proj.weight": (width, hidden),
            f"{at}mlp.down_proj.weight": (hidden, width),
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
        }
    return shapes


def write_model(folder: Path, config: Mapping[str, Any], shapes: Shapes | None = None, dtype: str = "BF16") -> int:
    """Write a model's folder; returns the bytes of its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return write_tensors(folder / "model.safetensors", shapes or decoder_shapes(config), dtype)


def profile_of(model: Path | str, /, **data: Any) -> Profile:
    """Return a profile of that model; what is no key of a profile is an engine argument."""
    keys = {key: data.pop(key) for key in [*data] if key in Profile.model_fields}
    return parse_profile({"name": "m", "model": str(model), "args": data} | keys, "m")
