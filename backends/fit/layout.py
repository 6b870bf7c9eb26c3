"""What a model's architecture keeps in the KV cache: by kind of layer, as vLLM pages it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from backends.fit.settings import Settings
from backends.fit.states import state_bytes
from backends.snapshots import Missing

Kind = Literal["full", "window", "state"]

GPU_BLOCK_TOKENS = 16
CPU_BLOCK_TOKENS = 128
"""vLLM's default on the CPU (16 where the model has latent attention)."""
PADDED_BELOW = 1.5
INDEXER_BYTES = 132
"""What DeepSeek's sparse attention adds for each token and layer: a key of 128 one-byte values and its scale."""

_LATENT = frozenset(
    (
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "glm_moe_dsa",
        "glm4_moe_lite",
        "kimi_k2",
        "kimi_linear",
        "longcat_flash",
        "pangu_ultra_moe",
        "axk1",
        "bailing_hybrid",
    )
)
_ENCODERS = frozenset(
    (
        "bert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "distilbert",
        "modernbert",
        "nomic_bert",
        "new",
        "gte",
        "mpnet",
        "electra",
        "albert",
    )
)
_NAMES: dict[str, Kind] = {
    "full_attention": "full",
    "attention": "full",
    "hybrid": "full",
    "sliding_attention": "window",
    "chunked_attention": "window",
    "linear_attention": "state",
    "mamba": "state",
    "mamba2": "state",
    "conv": "state",
}


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers of one kind: how many, and what each keeps on one GPU.

    `token_bytes` is for each token (of a `window` layer: as long as it is within `window` tokens); `state_bytes` for
    each conversation, however long.
    """

    kind: Kind
    count: int
    token_bytes: float = 0.0
    window: int = 0
    state_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """A model's layers that keep something, on the GPU of a pipeline that has the most; none for an encoder.

    `block_tokens` is how many tokens a block of attention holds, `step_tokens` how many a step of the engine may add.
    """

    layers: tuple[Layers, ...]
    block_tokens: int
    step_tokens: int

    @property
    def bytes_per_token(self) -> float:
        """What a conversation that grows by a token takes more, once it is longer than any window."""
        return sum(one.count * one.token_bytes for one in self.layers if one.kind == "full")

    def tokens(self, room_bytes: float, length: int, blocks: int | None = None) -> int:
        """Return how many tokens of conversations of `length` the cache holds; `blocks` overrides its size."""
        return int(self.concurrency(room_bytes, length, blocks) * length)

    def concurrency(self, room_bytes: float, length: int, blocks: int | None = None) -> float:
        """Return how many conversations of `length` tokens the cache holds at once, as vLLM counts them."""
        needed = self._blocks_of(length)
        return (self._blocks(room_bytes) if blocks is None else blocks) / needed if needed else 0.0

    def longest(self, room_bytes: float, limit: int, blocks: int | None = None) -> int:
        """Return the longest conversation that the cache holds, at most `limit` tokens; 0 where it holds none."""
        have = self._blocks(room_bytes) if blocks is None else blocks
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._blocks_of(middle) <= have else (low, middle - 1)
        return low

    def used_bytes(self, blocks: int) -> int:
        """Return the size of so many blocks."""
        return round(blocks * self._block_bytes())

    def room_for(self, length: int) -> int:
        """Return the bytes that one conversation of `length` tokens needs."""
        return round(self._blocks_of(length) * self._block_bytes())

    def _groups(self) -> tuple[int, list[tuple[Layers, int]]]:
        """Return how many layers share a block, and each kind with how many such groups it makes.

        Layers of different kinds take blocks of one pool; the rarest kind sets the size of a group, unless the kinds
        are nearly as many: then the commonest does, and the others are padded.
        """
        counts = [one.count for one in self.layers]
        if not counts:
            return 0, []
        size = max(counts) if max(counts) < min(counts) * PADDED_BELOW else min(counts)
        return size, [(one, -(-one.count // size)) for one in self.layers]

    def _page_tokens(self) -> int:
        """Return the tokens of a block: more than usual where a page must hold a whole state."""
        largest = max((one.state_bytes for one in self.layers), default=0)
        token_bytes = max((one.token_bytes for one in self.layers if one.kind != "state"), default=0.0)
        if not largest or not token_bytes:
            return self.block_tokens
        return self.block_tokens * max(1, -(-largest // round(self.block_tokens * token_bytes)))

    def _page_bytes(self) -> float:
        tokens = self._page_tokens()
        return max((max(one.token_bytes * tokens, one.state_bytes) for one in self.layers), default=0.0)

    def _block_bytes(self) -> float:
        return self._groups()[0] * self._page_bytes()

    def _blocks(self, room_bytes: float) -> int:
        size = self._block_bytes()
        return int(max(0.0, room_bytes) // size) if size else 0

    def _blocks_of(self, length: int) -> int:
        """Return the blocks that one conversation takes, of all groups together."""
        page, needed = self._page_bytes(), 0
        for one, groups in self._groups()[1]:
            if one.kind == "state":
                needed += groups
                continue
            tokens = self._page_tokens()
            if one.token_bytes * tokens * 2 <= page:  # a smaller page becomes a longer one
                tokens *= int(page // (one.token_bytes * tokens))
            if one.kind == "window":
                needed += groups * (-(-min(one.window - 1 + self.step_tokens, length) // tokens) + 1)
            else:
                needed += groups * -(-length // tokens)
        return needed


def read_layout(
    config: Mapping[str, Any], settings: Settings, step_tokens: int, *, on_gpu: bool = True
) -> Layout | Missing:
    """Return what a model keeps on one GPU; `config` is the language model's. Missing where it does not tell."""
    if str(config.get("model_type")) in _ENCODERS:
        return Layout((), GPU_BLOCK_TOKENS, step_tokens)
    latent = is_latent(config)
    default = GPU_BLOCK_TOKENS if on_gpu or latent else CPU_BLOCK_TOKENS
    block = default if latent and not on_gpu else settings.block_size or default
    kinds = _kinds(config)
    if isinstance(kinds, Missing):
        return kinds
    token_bytes = _token_bytes(config, settings)
    if isinstance(token_bytes, Missing) and any(kind != "state" for kind, _ in kinds):
        return token_bytes
    if settings.windows_as_full:
        kinds = Counter[tuple[Kind, int]]()
        for (kind, window), count in _kinds_of(config).items():
            kinds[("full", 0) if kind == "window" else (kind, window)] += count
    layers = []
    for (kind, window), count in kinds.items():
        here = -(-count // settings.pipeline_parallel)
        if kind == "state":
            dtype = served_bytes(config, settings)
            state_dtype = settings.state_dtype_bytes or (4.0 if config.get("mamba_ssm_dtype") == "float32" else dtype)
            state = state_bytes(config, settings.tensor_parallel, dtype, state_dtype)
            layers.append(Layers("state", here, state_bytes=state))
        elif not isinstance(token_bytes, Missing):
            layers.append(Layers(kind, here, token_bytes, window))
    return Layout(tuple(layers), block, step_tokens)


def is_latent(config: Mapping[str, Any]) -> bool:
    """Whether vLLM keeps one compressed vector for all heads of a layer (MLA)."""
    return str(config.get("model_type")) in _LATENT and isinstance(config.get("kv_lora_rank"), int)


def served_bytes(config: Mapping[str, Any], settings: Settings) -> float:
    """Return the bytes of an activation and of a plain weight: a float32 checkpoint is served in 16 bits by default."""
    return settings.dtype_bytes or 2.0


def kv_heads(config: Mapping[str, Any]) -> int:
    """Return a layer's key-value heads, of all GPUs together; 0 where the configuration does not tell."""
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return 1
    attention = config.get("attn_config")
    nested = attention.get("kv_n_heads") if isinstance(attention, dict) else None
    names = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
    return _first(config, *names) or (nested if isinstance(nested, int) else 0) or heads(config)


def heads(config: Mapping[str, Any]) -> int:
    """Return a layer's attention heads; 0 where the configuration does not tell."""
    return _first(config, "num_attention_heads", "n_head", "n_heads")


def layer_count(config: Mapping[str, Any]) -> int:
    """Return how many layers a model has; 0 where the configuration does not tell."""
    return _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def hidden_size(config: Mapping[str, Any]) -> int:
    """Return how wide a model is; 0 where the configuration does not tell."""
    return _first(config, "hidden_size", "n_embd", "d_model")


def model_context(config: Mapping[str, Any]) -> int:
    """Return the longest context that a model was made for, as vLLM derives it; 0 where it does not tell."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
    length = _first(config, *names)
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, dict) or not length:
        return length
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind not in ("yarn", "linear", "dynamic") or not isinstance(factor, int | float) or not math.isfinite(factor):
        return length
    original = scaling.get("original_max_position_embeddings") if kind == "yarn" else None
    return int((original if isinstance(original, int) else length) * factor)


def _first(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _token_bytes(config: Mapping[str, Any], settings: Settings) -> float | Missing:
    """Return the bytes that a layer of attention keeps of a token on one GPU."""
    dtype = settings.kv_dtype_bytes or _checkpoint_kv_bytes(config) or served_bytes(config, settings)
    if is_latent(config):
        indexer = INDEXER_BYTES if _first(config, "index_head_dim") else 0
        return _first(config, "kv_lora_rank") * dtype + _first(config, "qk_rope_head_dim") * dtype + indexer
    all_heads, key_heads = heads(config), kv_heads(config)
    size = _first(config, "head_dim", "hidden_size_per_head", "attention_head_dim")
    if not size and all_heads:
        size = hidden_size(config) // all_heads
    if not size or not key_heads:
        return Missing("config.json does not tell the attention's heads: the KV cache cannot be told")
    here = max(1, key_heads // settings.tensor_parallel)
    return here * (size + (_first(config, "v_head_dim") or size)) * dtype


def _checkpoint_kv_bytes(config: Mapping[str, Any]) -> float | None:
    """Return the KV cache's type where a quantized checkpoint comes with scales for it."""
    quantization = config.get("quantization_config")
    scheme = quantization.get("kv_cache_scheme") if isinstance(quantization, dict) else None
    bits = scheme.get("num_bits") if isinstance(scheme, dict) else None
    return bits / 8 if isinstance(bits, int) else None


def _kinds(config: Mapping[str, Any]) -> Counter[tuple[Kind, int]] | Missing:
    found = _kinds_of(config)
    return found if found.total() else Missing("config.json does not tell the layers: the KV cache cannot be told")


def _kinds_of(config: Mapping[str, Any]) -> Counter[tuple[Kind, int]]:
    """Count a model's layers by kind and window."""
    total = layer_count(config)
    window = _first(config, "sliding_window", "attention_chunk_size") if _uses_window(config) else 0
    names = config.get("layer_types") or config.get("layers_block_type")
    if isinstance(names, list):
        found: list[Kind] = [kind for name in names if (kind := _NAMES.get(str(name)))]
        if config.get("model_type") in ("zamba2", "falcon_h1"):  # attention beside a state, not instead of it
            found = [*_either([False] * len(names), "state"), *(kind for kind in found if kind == "full")]
    else:
        found = _by_rule(config, total, window)
    if not window:
        found = ["full" if kind == "window" else kind for kind in found]
    return Counter((kind, window if kind == "window" else 0) for kind in found)


def _by_rule(config: Mapping[str, Any], total: int, window: int) -> list[Kind]:
    """Return the kinds of layers of models that say it in a way of their own."""
    pattern, model = config.get("hybrid_override_pattern"), str(config.get("model_type"))
    linear = config.get("linear_attn_config")
    if isinstance(pattern, str):  # Nemotron-H: M is a state, * attention, - neither
        return _either((letter == "*" for letter in pattern if letter in "M*"), "state")
    if model in ("mamba", "mamba2", "falcon_mamba"):
        return _either([False] * total, "state")
    if model == "falcon_h1":
        return _either([True] * total + [False] * total, "state")
    if period := _first(config, "full_attention_interval"):
        return _either(((n + 1) % period == 0 for n in range(total)), "state")
    if period := _first(config, "attn_layer_period"):
        offset = _first(config, "attn_layer_offset")
        return _either((n % period == offset for n in range(total)), "state")
    if isinstance(chosen := config.get("attn_layer_indices"), list):
        return _either((n in chosen for n in range(total)), "state")
    if isinstance(chosen := config.get("attn_type_list"), list):
        return _either((bool(kind) for kind in chosen), "state")
    if isinstance(linear, dict) and isinstance(chosen := linear.get("full_attn_layers"), list):
        return _either((n + 1 in chosen for n in range(total)), "state")
    if not window:
        return _either([True] * total, "state")
    period = _first(config, "sliding_window_pattern", "_sliding_window_pattern")
    period = period or {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}.get(model, 0)
    if period > 1:
        return _either(((n + 1) % period == 0 for n in range(total)), "window")
    full_below = _first(config, "max_window_layers") if model.startswith("qwen") else 0
    return _either((n < full_below for n in range(total)), "window")


def _either(is_full: Iterable[bool], otherwise: Kind) -> list[Kind]:
    return ["full" if full else otherwise for full in is_full]


def _uses_window(config: Mapping[str, Any]) -> bool:
    return config.get("use_sliding_window") is not False
