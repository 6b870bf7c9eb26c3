"""What a profile's arguments say of memory, in numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiles.schema import Profile

GIB = 1 << 30
DEFAULT_UTILIZATION = 0.92
"""vLLM's own from 0.26 on at least; it was 0.9 in older ones."""
CPU_SPACE = "VLLM_CPU_KVCACHE_SPACE"

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DTYPES = {"half": 2.0, "float16": 2.0, "bfloat16": 2.0, "float": 4.0, "float32": 4.0}
_KV_DTYPES = {"bfloat16": 2.0, "float16": 2.0, "half": 2.0, "float32": 4.0, "int4_per_token_head": 0.5}
_ONLINE_BITS = {
    "fp8": 8.0,
    "fp8_per_tensor": 8.0,
    "fp8_per_block": 8.0,
    "ptpc_fp8": 8.0,
    "mxfp8": 8.0,
    "int8_per_channel_weight_only": 8.0,
    "experts_int8": 8.0,
    "bnb-8bit": 8.0,
    # Four bits a weight, and a scale of 32 bits for each 64 of them.
    "bitsandbytes": 4.5,
    "bnb-4bit": 4.5,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's sizes as its profile sets them; None where the engine's own default, or the model's, counts.

    `space_bytes` is the KV cache's size where it is given outright. `online_bits` are the bits a weight has once the
    engine has quantized it at load; `max_model_len` 0 asks for as much as fits.
    """

    engine: str
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False
    utilization: float = DEFAULT_UTILIZATION
    space_bytes: int | None = None
    max_model_len: int | None = None
    block_size: int | None = None
    blocks: int | None = None
    max_batched_tokens: int | None = None
    max_seqs: int | None = None
    dtype_bytes: float | None = None
    kv_dtype_bytes: float | None = None
    quantization: str | None = None
    online_bits: float | None = None
    offload_bytes: int = 0
    eager: bool = False
    windows_as_full: bool = False
    state_dtype_bytes: float | None = None

    @property
    def gpus(self) -> int:
        """How many GPUs one server takes."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


def read_settings(profile: Profile, environ: Mapping[str, str]) -> Settings:
    """Read a profile's sizes; `environ` is that of whoever starts it, over which the profile's own lies."""
    args = profile.args
    quantization = args.get("quantization")
    if profile.engine == "transformers":
        return Settings(
            "transformers",
            quantization=quantization,
            online_bits=_ONLINE_BITS.get(str(quantization)),
            dtype_bytes=_DTYPES.get(str(args.get("dtype"))),
        )
    on_cpu = profile.gpus == "cpu"
    return Settings(
        "vllm",
        tensor_parallel=_whole(args, "tensor_parallel_size") or 1,
        pipeline_parallel=_whole(args, "pipeline_parallel_size") or 1,
        data_parallel=_whole(args, "data_parallel_size_local", "data_parallel_size") or 1,
        expert_parallel=args.get("enable_expert_parallel") is True,
        utilization=_ratio(args.get("gpu_memory_utilization")),
        space_bytes=_space({**environ, **profile.env} if on_cpu else {}) or _whole(args, "kv_cache_memory_bytes"),
        max_model_len=0 if args.get("max_model_len") in ("auto", -1) else _whole(args, "max_model_len"),
        block_size=_whole(args, "block_size"),
        blocks=_whole(args, "num_gpu_blocks_override"),
        max_batched_tokens=_whole(args, "max_num_batched_tokens"),
        max_seqs=_whole(args, "max_num_seqs"),
        dtype_bytes=_DTYPES.get(str(args.get("dtype"))),
        kv_dtype_bytes=_kv_dtype(str(args.get("kv_cache_dtype", "auto"))),
        quantization=quantization,
        online_bits=_ONLINE_BITS.get(str(quantization)),
        offload_bytes=round(_number(args.get("cpu_offload_gb")) * GIB),
        eager=args.get("enforce_eager") is True,
        windows_as_full=args.get("disable_hybrid_kv_cache_manager") is True,
        state_dtype_bytes=_DTYPES.get(str(args.get("mamba_ssm_cache_dtype"))),
    )


def _whole(args: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of some arguments that is a number above zero; vLLM also reads '8k' (8,000) and '8K' (8,192)."""
    for name in names:
        value = args.get(name)
        if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)", value.strip())):
            value = int(float(match[1]) * _UNITS.get(match[2], 1))
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0


def _ratio(value: object) -> float:
    return number if 0 < (number := _number(value)) <= 1 else DEFAULT_UTILIZATION


def _space(environ: Mapping[str, str]) -> int | None:
    text = environ.get(CPU_SPACE, "")
    return int(text) * GIB if text.isdecimal() and int(text) else None


def _kv_dtype(name: str) -> float | None:
    if name == "auto":
        return None
    if name.startswith("nvfp4"):
        return 0.5625  # four bits, and a scale of eight for each sixteen values
    return _KV_DTYPES.get(name, 1.0 if name.startswith(("fp8", "int8")) else 2.0)
