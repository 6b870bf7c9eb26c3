"""The state that layers without attention keep of a conversation: of one size, however long it gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def state_bytes(config: Mapping[str, Any], tensor_parallel: int, dtype_bytes: float, state_dtype_bytes: float) -> int:
    """Return the bytes of one layer's state on one GPU; 0 where the kind of layer is not known.

    A state has two parts: the last inputs of a convolution, in the model's type, and what is remembered, in its own.
    """

    def of(*names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)

    hidden, kernel = of("hidden_size", "d_model"), of("mamba_d_conv", "conv_kernel", "conv_kernel_size", "d_conv")
    remembers = of("mamba_d_state", "ssm_state_size", "state_size", "d_state")
    if value_heads := of("linear_num_value_heads"):  # gated delta net: Qwen3-Next
        key = of("linear_key_head_dim") * of("linear_num_key_heads")
        inputs = 2 * key + of("linear_value_head_dim") * value_heads
        convolution = inputs * (of("linear_conv_kernel_dim") - 1)
        memory = value_heads * of("linear_value_head_dim") * of("linear_key_head_dim")
    elif heads := of("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"):  # Mamba 2
        size = of("mamba_d_head", "mamba_head_dim", "mamba_headdim")
        size = size or of("mamba_expand", "expand") * hidden // heads
        groups = of("mamba_n_groups", "mamba_ngroups", "n_groups") or 1
        groups += 0 if groups % tensor_parallel == 0 else tensor_parallel - groups
        convolution = (heads * size + 2 * groups * remembers) * (kernel - 1)
        memory = heads * size * remembers
    elif remembers:  # Mamba 1: Jamba
        inner = of("intermediate_size") if config.get("model_type") in ("mamba", "falcon_mamba") else 0
        inner = inner or of("mamba_expand", "expand") * hidden
        convolution, memory = inner * (kernel - 1), inner * remembers
    else:  # a short convolution alone: LFM2
        convolution, memory = of("conv_dim", "hidden_size") * max(0, of("conv_L_cache") - 1), 0
    return round((convolution * dtype_bytes + memory * state_dtype_bytes) / tensor_parallel)
