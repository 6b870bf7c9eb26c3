"""Whatever a config.json or a header says, an estimate is made or a reason given; nothing is raised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.fit.checkpoint import Checkpoint, read_checkpoint
from backends.fit.estimate import Fit, estimate
from backends.fit.headers import read_headers
from backends.fit.rooms import Room
from tests.unit.fit_models import GIB, QWEN_7B, profile_of

KEYS = [
    *QWEN_7B,
    *("head_dim", "kv_lora_rank", "qk_rope_head_dim", "index_head_dim", "sliding_window", "sliding_window_pattern"),
    *("layer_types", "layers_block_type", "hybrid_override_pattern", "full_attention_interval", "attn_layer_period"),
    *("attn_layer_indices", "attn_type_list", "linear_attn_config", "attn_config", "multi_query", "rope_scaling"),
    *("quantization_config", "text_config", "mamba_n_heads", "mamba_d_state", "linear_num_value_heads", "conv_L_cache"),
    *("num_experts_per_tok", "moe_intermediate_size", "v_head_dim", "max_window_layers", "mamba_expand", "dtype"),
]
MODELS = ["deepseek_v3", "gemma3_text", "qwen3_next", "mamba2", "falcon_h1", "zamba2", "qwen2", "xlm-roberta", "?"]
plain = (
    st.none() | st.booleans() | st.integers(-2, 200_000) | st.floats() | st.sampled_from(["M*-", "yarn", "full", ""])
)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["type", "factor", "full_attn_layers", *KEYS]), inner, max_size=4),
    max_leaves=6,
)
configs = st.fixed_dictionaries({"model_type": st.sampled_from(MODELS)}, optional=dict.fromkeys(KEYS[1:], values))
arguments = st.fixed_dictionaries(
    {},
    optional={
        "tensor_parallel_size": st.integers(1, 9),
        "pipeline_parallel_size": st.integers(1, 70),
        "max_model_len": st.sampled_from([1, 4096, "auto", "32k", 10**9]),
        "kv_cache_memory_bytes": st.integers(1, 10**12),
        "num_gpu_blocks_override": st.integers(1, 10**6),
        "gpu_memory_utilization": st.sampled_from([0.01, 0.5, 1.0]),
    },
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(config=configs, base=st.booleans(), args=arguments, gpus=st.sampled_from([0, 1]))
def test_no_configuration_raises(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], base: bool, args: dict[str, Any], gpus: int
) -> None:
    merged = (QWEN_7B | config) if base else config
    pieces = read_headers(())
    folder = tmp_path_factory.getbasetemp()
    profile = profile_of("a/b", **args)
    room = Room(gpus, "GPU", 24 * GIB, 20 * GIB)
    fit = estimate(profile, Checkpoint(folder, merged, pieces, 0), room, None, {})
    assert isinstance(fit, Fit)
    assert fit.why


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(header=st.dictionaries(st.text(max_size=8), values, max_size=3), config=values)
def test_no_file_raises(tmp_path: Path, header: dict[str, Any], config: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    blob = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(blob).to_bytes(8, "little") + blob)
    estimate(profile_of(tmp_path), read_checkpoint(profile_of(tmp_path), {}), Room(1, "GPU", GIB, GIB), None, {})
