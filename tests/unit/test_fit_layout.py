"""KV cache and weights by architecture, against figures reckoned by hand and logged by vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.fit.headers import read_headers
from backends.fit.layout import Layout, model_context, read_layout
from backends.fit.settings import Settings, read_settings
from backends.fit.weights import weights_bytes
from backends.snapshots import Missing
from tests.unit.fit_models import GIB, QWEN_7B, decoder_shapes, profile_of, write_model, write_tensors

KIB = 1 << 10
STEP = 8192

DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}
GEMMA_3_27B: dict[str, Any] = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "hidden_size": 5376,
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
}
QWEN3_NEXT: dict[str, Any] = {
    "model_type": "qwen3_next",
    "num_hidden_layers": 48,
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_size": 2048,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}


def layout_of(config: dict[str, Any], **settings: Any) -> Layout:
    found = read_layout(config, Settings("vllm", **settings), STEP)
    assert isinstance(found, Layout)
    return found


@pytest.mark.parametrize(
    ("config", "settings", "per_token"),
    [
        (QWEN_7B, {}, 56 * KIB),
        (QWEN_7B, {"tensor_parallel": 2}, 28 * KIB),
        (QWEN_7B, {"tensor_parallel": 7}, 14 * KIB),
        (QWEN_7B, {"kv_dtype_bytes": 1.0}, 28 * KIB),
        (QWEN_7B, {"dtype_bytes": 4.0}, 112 * KIB),
        (QWEN_7B, {"pipeline_parallel": 2}, 28 * KIB),
        (QWEN_7B | {"head_dim": 256}, {}, 112 * KIB),
        (QWEN_7B | {"use_sliding_window": False, "sliding_window": 4096}, {}, 56 * KIB),
        (
            QWEN_7B | {"quantization_config": {"kv_cache_scheme": {"num_bits": 8}}},
            {},
            28 * KIB,
        ),
        (DEEPSEEK_V3, {}, 61 * 576 * 2),
        (DEEPSEEK_V3, {"tensor_parallel": 8}, 61 * 576 * 2),
        (DEEPSEEK_V3 | {"model_type": "deepseek_v32", "index_head_dim": 128}, {}, 61 * (576 * 2 + 132)),
        (GEMMA_3_27B, {}, 10 * 2 * 16 * 128 * 2),
        (GEMMA_3_27B, {"windows_as_full": True}, 62 * 2 * 16 * 128 * 2),
        (QWEN3_NEXT, {}, 12 * 2 * 2 * 256 * 2),
        ({"model_type": "falcon", "num_hidden_layers": 32, "num_attention_heads": 71, "hidden_size": 4544,
          "multi_query": True}, {}, 32 * 2 * 64 * 2),
        ({"model_type": "mamba2", "num_hidden_layers": 64, "num_heads": 80, "head_dim": 64, "state_size": 128,
          "hidden_size": 2560}, {}, 0),
    ],
)  # fmt: skip
def test_bytes_of_kv_cache_a_token(config: dict[str, Any], settings: dict[str, Any], per_token: int) -> None:
    assert layout_of(config, **settings).bytes_per_token == per_token


def kinds(config: dict[str, Any]) -> dict[str, int]:
    return {layers.kind: layers.count for layers in layout_of(config).layers}


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        ({"layer_types": ["sliding_attention", "full_attention"] * 12, "sliding_window": 128},
         {"full": 12, "window": 12}),
        ({"layer_types": ["linear_attention"] * 3 + ["full_attention"]}, {"full": 1, "state": 3}),
        ({"model_type": "gemma2", "sliding_window": 4096, "num_hidden_layers": 26}, {"full": 13, "window": 13}),
        ({"model_type": "mistral", "sliding_window": 4096}, {"window": 28}),
        ({"model_type": "mistral", "sliding_window": None}, {"full": 28}),
        ({"model_type": "jamba", "attn_layer_period": 8, "attn_layer_offset": 4, "num_hidden_layers": 32,
          "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2}, {"full": 4, "state": 28}),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-M-M*-M-"}, {"full": 1, "state": 4}),
        ({"model_type": "kimi_linear", "linear_attn_config": {"full_attn_layers": [4, 8]}, "num_hidden_layers": 8},
         {"full": 2, "state": 6}),
    ],
)  # fmt: skip
def test_layers_are_counted_by_kind(config: dict[str, Any], counts: dict[str, int]) -> None:
    assert kinds(QWEN_7B | config) == counts


def test_a_cache_of_plain_attention_is_whole_blocks() -> None:
    layout = layout_of(QWEN_7B)
    assert layout.tokens(42.29 * GIB, 8192) == pytest.approx(791_808, rel=0.0002)  # the H200's log
    assert layout.tokens(GIB, 16) == GIB // (56 * KIB * 16) * 16
    assert layout.longest(0.35 * GIB, 32768) == pytest.approx(6496, rel=0.02)  # another log, of a failed start
    assert layout.longest(100, 32768) == 0
    assert layout.room_for(32768) == 32768 * 56 * KIB  # 1.75 GiB, as that log says


def test_latent_attention_takes_a_twentieth_of_what_heads_would() -> None:
    latent = layout_of(DEEPSEEK_V3)
    heads = layout_of({**DEEPSEEK_V3, "model_type": "unheard_of"})
    assert 20 < heads.bytes_per_token / latent.bytes_per_token < 60


def test_windows_leave_room_for_more_and_longer_conversations() -> None:
    windows, full = layout_of(GEMMA_3_27B), layout_of(GEMMA_3_27B, windows_as_full=True)
    room = 20 * GIB
    assert windows.concurrency(room, 131072) > 2 * full.concurrency(room, 131072)
    assert windows.longest(room, 1 << 20) > 2 * full.longest(room, 1 << 20)


def test_a_state_takes_the_same_however_long_a_conversation_gets() -> None:
    layout = layout_of(QWEN3_NEXT)
    state = next(layers for layers in layout.layers if layers.kind == "state")
    convolution, memory = (2 * 16 * 128 + 32 * 128) * 3, 32 * 128 * 128
    assert state.state_bytes == (convolution + memory) * 2
    many = layout.concurrency(GIB, 1 << 18)
    assert layout.tokens(GIB, 1 << 18) == pytest.approx(GIB / layout.bytes_per_token, rel=0.02)
    assert many == pytest.approx(GIB / (layout.bytes_per_token * (1 << 18)), rel=0.02)
    only = layout_of({"model_type": "mamba2", "num_hidden_layers": 64, "num_heads": 80, "head_dim": 64,
                      "state_size": 128, "n_groups": 1, "conv_kernel": 4, "hidden_size": 2560})  # fmt: skip
    assert only.concurrency(GIB, 1024) == only.concurrency(GIB, 1 << 20)


def test_blocks_are_larger_on_the_cpu_but_not_for_latent_attention() -> None:
    settings = Settings("vllm")
    plain, latent = (read_layout(config, settings, STEP, on_gpu=False) for config in (QWEN_7B, DEEPSEEK_V3))
    assert isinstance(plain, Layout)
    assert isinstance(latent, Layout)
    assert (plain.block_tokens, latent.block_tokens, layout_of(QWEN_7B).block_tokens) == (128, 16, 16)
    assert layout_of(QWEN_7B, block_size=32).block_tokens == 32


def test_an_encoder_has_no_cache_and_nonsense_is_told() -> None:
    assert layout_of({"model_type": "xlm-roberta", "num_hidden_layers": 24}).layers == ()
    for config in ({}, {"num_hidden_layers": 4}):
        found = read_layout(config, Settings("vllm"), STEP)
        assert isinstance(found, Missing)
        assert "config.json does not tell" in found.reason


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        ({}, 32768),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 65536),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 32768),
    ],
)
def test_the_context_that_a_model_was_made_for(scaling: dict[str, Any], length: int) -> None:
    assert model_context(QWEN_7B | scaling) == length


def weights(folder: Path, config: dict[str, Any], **args: Any) -> int:
    pieces = read_headers((folder / "model.safetensors",))
    assert not isinstance(pieces, Missing)
    return weights_bytes(pieces, config, read_settings(profile_of(folder, **args), {}), on_gpu=False)


SMALL = QWEN_7B | {"num_hidden_layers": 4, "vocab_size": 32000}


def test_weights_are_what_the_headers_say(tmp_path: Path) -> None:
    stored = write_model(tmp_path, SMALL)
    assert weights(tmp_path, SMALL) == stored
    assert weights(tmp_path, SMALL, dtype="float32") == 2 * stored


def test_a_checkpoint_in_32_bits_is_served_in_16(tmp_path: Path) -> None:
    stored = write_model(tmp_path, SMALL, dtype="F32")
    assert weights(tmp_path, SMALL) == stored // 2
    assert weights(tmp_path, SMALL, dtype="float32") == stored


def test_an_output_tied_to_the_input_is_held_once(tmp_path: Path) -> None:
    with_head = write_model(tmp_path, SMALL)
    without = weights(tmp_path, SMALL | {"tie_word_embeddings": True})
    assert without == with_head - 32000 * 3584 * 2


def test_tensor_parallel_divides_matrices_and_repeats_the_rest(tmp_path: Path) -> None:
    shapes = decoder_shapes(SMALL)
    write_model(tmp_path, SMALL, shapes)
    small = sum(2 * shape[0] for shape in shapes.values() if len(shape) == 1)
    keys = sum(2 * a * b for name, (a, b) in _matrices(shapes) if ".k_proj" in name or ".v_proj" in name)
    rest = sum(2 * a * b for _, (a, b) in _matrices(shapes)) - keys
    assert weights(tmp_path, SMALL, tensor_parallel_size=2) == pytest.approx((keys + rest) / 2 + small, rel=1e-6)
    # Four key-value heads on fourteen GPUs: each GPU has one of them.
    assert weights(tmp_path, SMALL, tensor_parallel_size=14) == pytest.approx(keys / 4 + rest / 14 + small, rel=1e-6)


def _matrices(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, int]]]:
    return [(name, (shape[0], shape[1])) for name, shape in shapes.items() if len(shape) == 2]


def test_pipeline_parallel_divides_layers(tmp_path: Path) -> None:
    config = SMALL | {"num_hidden_layers": 5, "vocab_size": 2048}
    stored = write_model(tmp_path, config)
    ends = 2 * 2048 * 3584 * 2
    layer = (stored - ends) / 5
    assert weights(tmp_path, config, pipeline_parallel_size=2) == pytest.approx(3 * layer + ends / 2, rel=0.001)


def test_layers_that_guess_ahead_are_not_loaded(tmp_path: Path) -> None:
    shapes = decoder_shapes(SMALL | {"num_hidden_layers": 5})
    write_model(tmp_path, SMALL, shapes)
    assert weights(tmp_path, SMALL) == write_tensors(tmp_path / "other.safetensors", decoder_shapes(SMALL))


def test_experts_are_divided_among_replicas_too(tmp_path: Path) -> None:
    shapes = {f"model.layers.0.mlp.experts.{n}.up_proj.weight": (64, 64) for n in range(8)}
    stored = write_model(tmp_path, SMALL, shapes)
    assert weights(tmp_path, SMALL, data_parallel_size=4) == stored // 4
    assert weights(tmp_path, SMALL, data_parallel_size=2, tensor_parallel_size=2) == stored // 4


def test_quantizing_at_load_shrinks_the_layers_matrices_only(tmp_path: Path) -> None:
    shapes = decoder_shapes(SMALL)
    stored = write_model(tmp_path, SMALL, shapes)
    linear = sum(2 * a * b for name, (a, b) in _matrices(shapes) if ".layers." in name)
    assert weights(tmp_path, SMALL, quantization="fp8") == stored - linear // 2
    assert weights(tmp_path, SMALL, quantization="bitsandbytes") == stored - linear + linear * 4.5 / 16


def test_a_checkpoint_that_is_quantized_already_is_taken_as_it_is(tmp_path: Path) -> None:
    stored = write_model(tmp_path, SMALL, {"model.layers.0.mlp.up_proj.qweight": (512, 512)}, dtype="I32")
    config = SMALL | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert weights(tmp_path, config, quantization="gptq_marlin") == stored
    stored = write_model(tmp_path, SMALL, {"model.layers.0.mlp.up_proj.weight": (512, 512)}, dtype="F8_E4M3")
    assert weights(tmp_path, config, quantization="fp8") == stored


def test_what_stays_in_host_memory_is_not_on_the_gpu(tmp_path: Path) -> None:
    stored = write_model(tmp_path, QWEN_7B)
    assert weights(tmp_path, QWEN_7B, cpu_offload_gb=8) == stored - 8 * GIB
    assert weights(tmp_path, QWEN_7B, cpu_offload_gb=80) == 0


@pytest.mark.parametrize(
    ("value", "number"),
    [(4096, 4096), ("8k", 8000), ("8K", 8192), ("1.5m", 1_500_000), ("auto", 0), (-1, 0), ("x", None)],
)
def test_lengths_are_read_as_vllm_reads_them(value: int | str, number: int | None) -> None:
    assert read_settings(profile_of("a/b", max_model_len=value), {}).max_model_len == number
