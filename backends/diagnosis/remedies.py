"""What to do about each cause: changes of the profile with their numbers, the best first."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from backends.diagnosis import remedies_flags, remedies_models
from backends.diagnosis.situation import HIGHEST_UTILIZATION, Situation, advice, put
from backends.starts import Remedy

Remedies = list[Remedy]

LOWEST_UTILIZATION = 0.1
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
MEASURE_GIB = 0.5
"""What vLLM's own measurements vary by."""


def _hundredths(share: float) -> float:
    return math.floor(share * 100 + 1e-9) / 100


def _higher_utilization(it: Situation, more_gib: float | None) -> Remedies:
    """Ask for more of the GPU: as much as is missing, where that is known, and only where it is enough."""
    if it.on_cpu:
        return []
    total = it.story.total_gib
    if more_gib is None or total is None:
        wanted = _hundredths(min(it.utilization + 0.05, 0.95))
        if wanted <= it.utilization:
            return []
        return [put(f"Raise gpu_memory_utilization to {wanted:g}: more room, if the GPU has it", **_share(wanted))]
    wanted = math.ceil((it.utilization + (more_gib + MEASURE_GIB) / total) * 100) / 100
    if wanted >= HIGHEST_UTILIZATION:
        return []
    return [put(f"Raise gpu_memory_utilization to {wanted:g}: that is {more_gib:.2f} GiB more", **_share(wanted))]


def _share(wanted: float) -> dict[str, float]:
    return {"gpu_memory_utilization": wanted}


def _lower_utilization(it: Situation, why: str) -> Remedies:
    wanted = _hundredths(it.utilization - 0.05)
    return [put(f"Lower gpu_memory_utilization to {wanted:g}: {why}", **_share(wanted))] if wanted >= 0.3 else []


def _more_gpus(it: Situation) -> Remedies:
    ranks = it.ranks * 2
    if it.on_cpu or ranks > 8 or (it.gpu_count is not None and ranks > it.gpu_count):
        return []
    return [Remedy(f"Split the model over {ranks} GPUs: tensor_parallel_size = {ranks}", it.split(ranks))]


def _fewer_at_once(it: Situation, otherwise: float = 256) -> Remedies:
    now = it.number("max_num_seqs", otherwise)
    wanted = int(max(8, now // 2))
    return [put(f"Serve at most {wanted} requests at once", max_num_seqs=wanted)] if wanted < now else []


def _kv_too_small(it: Situation) -> Remedies:
    needed, left = it.groups.get("needed"), it.groups.get("left")
    found: Remedies = []
    if fits := int(it.groups.get("fits", 0)):
        found.append(put(f"Lower max_model_len to {fits:,}, vLLM's own estimate of what fits", max_model_len=fits))
    elif asked := int(it.groups.get("asked", 0)):
        share = float(left or 0) / float(needed or 1)
        if (fits := int(asked * share) // 16 * 16) > 0:
            found.append(put(f"Lower max_model_len to {fits:,}, about what fits", max_model_len=fits))
    if isinstance(given := it.arg("kv_cache_memory_bytes"), int) and needed:
        wanted = math.ceil(float(needed) * 1.05 * 2**30)
        if wanted > given:
            found.append(put(f"Give the KV cache {float(needed) * 1.05:.2f} GiB", kv_cache_memory_bytes=wanted))
    elif it.on_cpu and needed:
        space = str(math.ceil(float(needed) * 1.1))
        change = {"env.VLLM_CPU_KVCACHE_SPACE": space}
        found.append(Remedy(f"Give the KV cache {space} GiB of the host's memory", change))
    else:
        more = float(needed) - float(left) if needed and left else None
        found += _higher_utilization(it, more)
    if not it.on_cpu and not str(it.arg("kv_cache_dtype") or "auto").startswith("fp8"):
        halved = bool(needed and left) and float(needed or 0) / 2 <= float(left or 0)
        if halved or not fits:
            found.append(put("Keep the KV cache in 8 bits, half the size", kv_cache_dtype="fp8"))
        else:
            both = {"kv_cache_dtype": "fp8", "max_model_len": 2 * fits}
            text = f"Keep the KV cache in 8 bits, half the size: {2 * fits:,} tokens fit"
            found.append(put(text, **both))
    return found + _more_gpus(it)


def _no_kv(it: Situation) -> Remedies:
    if it.on_cpu:
        return [Remedy("Give the KV cache 4 GiB of the host's memory", {"env.VLLM_CPU_KVCACHE_SPACE": "4"})]
    return [*_higher_utilization(it, None), *_more_gpus(it), *_smaller_weights(it)]


def _memory_busy(it: Situation) -> Remedies:
    free, total = float(it.groups["free"]), float(it.groups["total"])
    share = _hundredths(free / total - 0.005) if total else 0.0
    found: Remedies = []
    if LOWEST_UTILIZATION <= share < float(it.groups["asked"]):
        text = f"Lower gpu_memory_utilization to {share:g}, what is free now, if the model fits into {free:.0f} GiB"
        found.append(put(text, **_share(share)))
    return [*found, advice("End what holds the GPU (gpubox status says who), or start on another: --gpus")]


def _smaller_weights(it: Situation) -> Remedies:
    if it.arg("quantization"):
        return []
    return [advice("Serve a quantized variant of the model (AWQ, GPTQ, FP8): half its size, or a quarter")]


def _oom_at_load(it: Situation) -> Remedies:
    found = _others_on_the_gpu(it) + _more_gpus(it)
    size, total = it.story.checkpoint_gib, it.story.total_gib
    if not it.on_cpu:
        out = int(it.number("cpu_offload_gb", 0))
        missing = size / it.ranks - it.utilization * total + 4 if size and total else 4.0
        wanted = out + max(2, math.ceil(missing))
        text = f"Keep {wanted} GiB of the weights in the host's memory (slower; not every version heeds it)"
        found.append(put(text, cpu_offload_gb=wanted))
    return found + _smaller_weights(it)


def _others_on_the_gpu(it: Situation) -> Remedies:
    """Name a process that holds much of the GPU, where torch told of one."""
    text = it.groups.get("whole", "")
    holders = [(float(size), pid) for pid, size in re.findall(r"Process (\d+) has ([\d.]+) GiB memory in use", text)]
    size, pid = max(holders, default=(0.0, ""))
    here = re.search(r"this process has ([\d.]+) GiB", text)
    if size < 1 or (not here and len(holders) < 2):
        return []
    return [advice(f"End what else holds the GPU: pid {pid} has {size:g} GiB of it (gpubox status says whose it is)")]


def _oom_at_warm_up(it: Situation) -> Remedies:
    tried = re.search(r"with (\d+) dummy requests", it.groups.get("whole", ""))
    found = _lower_utilization(it, "what vLLM leaves aside holds the warm-up's scratch memory")
    found += _fewer_at_once(it, float(tried[1]) if tried else 256)
    if not it.arg("enforce_eager"):
        found.append(put("Do without CUDA graphs (slower by some per cent)", enforce_eager=True))
    batch = it.number("max_num_batched_tokens", 8192)
    if batch > 2048:
        found.append(put("Compute at most 2,048 tokens in one step", max_num_batched_tokens=2048))
    return _others_on_the_gpu(it) + found + _more_gpus(it)


def _oom_in_use(it: Situation) -> Remedies:
    found = _others_on_the_gpu(it) + _lower_utilization(it, "more is left for what requests need beside the KV cache")
    found += _fewer_at_once(it)
    if it.number("max_num_batched_tokens", 8192) > 2048:
        found.append(put("Compute at most 2,048 tokens in one step", max_num_batched_tokens=2048))
    sleeps = it.profile.get("sleep") or it.arg("enable_sleep_mode")
    if not sleeps and it.env("PYTORCH_CUDA_ALLOC_CONF") is None:
        change = {"env.PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        found.append(Remedy("Let torch grow its memory in place, against fragmentation", change))
    return found


def _at_wake(it: Situation) -> Remedies:
    name = it.profile.get("name") or "NAME"
    return [
        advice(f"Switch to it: gpubox switch {name} lets the other model on this GPU give way first, then starts it"),
        *_lower_utilization(it, "it needs less room to wake up in"),
    ]


def _no_sleep(it: Situation) -> Remedies:
    keys = [key for key in ("sleep", "ttl", "wake_on_request", "prime") if key in it.profile] or ["sleep"]
    return [Remedy("Do without sleep: it is switched by stop and start then", dict.fromkeys(keys))]


def _moved(_: Situation) -> Remedies:
    return [Remedy("Start it again now that the GPU is quiet; start servers on one GPU one after another", {})]


def _heads(it: Situation) -> Remedies:
    heads, ranks = int(it.groups["heads"]), int(it.groups["ranks"])
    fitting = next((n for n in range(min(ranks, heads), 0, -1) if heads % n == 0), 1)
    change = it.split(fitting)
    text = f"Split over {fitting} GPUs: tensor_parallel_size = {fitting}" if fitting > 1 else "Do not split the model"
    return [Remedy(text, change)]


def _quantized_heads(it: Situation) -> Remedies:
    found: Remedies = []
    if (ranks := it.ranks) > 1:
        stages = int(it.number("pipeline_parallel_size", 1)) * 2
        split = {**it.split(ranks // 2), "args.pipeline_parallel_size": stages}
        if isinstance(it.profile.get("gpus"), int):
            split["gpus"] = it.profile["gpus"]
        found.append(Remedy(f"Split layers over {ranks // 2} and the model's depth over {stages} GPUs", split))
        found.append(Remedy(f"Split over {ranks // 2} GPUs only", it.split(ranks // 2)))
    if not it.arg("enable_expert_parallel"):
        found.append(
            put("Spread whole experts over the GPUs, where the model has experts", enable_expert_parallel=True)
        )
    return found


def _attention(it: Situation) -> Remedies:
    found: Remedies = []
    if it.arg("attention_backend"):
        found.append(put("Let vLLM choose the attention kernels", attention_backend=None))
    if it.env("VLLM_ATTENTION_BACKEND"):
        found.append(Remedy("Let vLLM choose the attention kernels", {"env.VLLM_ATTENTION_BACKEND": None}))
    if str(it.arg("kv_cache_dtype") or "auto") != "auto":
        found.append(put("Keep the KV cache in the model's own type", kv_cache_dtype=None))
    if it.arg("attention_backend") != "TRITON_ATTN":
        found.append(put("Compute attention with Triton's kernels", attention_backend="TRITON_ATTN"))
    return found


def _few_gpus(it: Situation) -> Remedies:
    there = int(it.groups.get("there", it.gpu_count or 0))
    found: Remedies = []
    others = int(it.number("pipeline_parallel_size", 1))
    if there and it.ranks > 1 and there // others:
        fitting = 2 ** int(math.log2(there // others))
        text = f"Split over {fitting} of the {there} GPUs that it sees" if fitting > 1 else "Do not split the model"
        found.append(Remedy(text, it.split(fitting)))
    return [*found, advice("Give it more GPUs: gpus in the profile, --gpus at the start (gpubox status shows them)")]


def _port(_: Situation) -> Remedies:
    return [
        Remedy("Let gpubox choose a free port", {"port": "auto"}),
        advice("End whoever holds the port, and start again"),
    ]


def _batch(it: Situation) -> Remedies:
    least = int(it.groups["least"])
    found = [put(f"Raise max_num_batched_tokens to {least:,}", max_num_batched_tokens=least)]
    if it.arg("max_num_batched_tokens") is not None:
        found.append(put("Leave max_num_batched_tokens to vLLM", max_num_batched_tokens=None))
    return found


def _lora(it: Situation) -> Remedies:
    rank = int(it.groups["rank"])
    fitting = next((allowed for allowed in LORA_RANKS if allowed >= rank), None)
    if fitting is None:
        return [advice(f"vLLM serves adapters up to rank {LORA_RANKS[-1]}: train one of a lower rank")]
    return [put(f"Raise max_lora_rank to {fitting}", max_lora_rank=fitting)]


def _nccl(it: Situation) -> Remedies:
    found = [Remedy("Have NCCL say what it cannot do, and start again", {"env.NCCL_DEBUG": "INFO"})]
    if it.env("NCCL_DEBUG"):
        found = []
    if it.ranks > 1:
        if not it.arg("disable_custom_all_reduce"):
            found.append(put("Do without vLLM's own all-reduce", disable_custom_all_reduce=True))
        if it.env("NCCL_P2P_DISABLE") is None:
            change = {"env.NCCL_P2P_DISABLE": "1"}
            found.append(Remedy("Have the GPUs talk through host memory (slower)", change))
    return [*found, advice("Look at /dev/shm (a container needs --shm-size or --ipc=host) and at gpubox doctor")]


def _driver(_: Situation) -> Remedies:
    return [advice("gpubox doctor says what of driver and libraries is missing; a container needs --gpus all")]


def _no_space(_: Situation) -> Remedies:
    return [advice("Free space (df -h, also of /dev/shm and the hub's cache), or point HF_HOME to a larger disk")]


def _host_memory(it: Situation) -> Remedies:
    found: Remedies = []
    for name, what in (("cpu_offload_gb", "weights"), ("kv_offloading_size", "KV cache"), ("swap_space", "swap")):
        if it.number(name, 0) > 0:
            found.append(put(f"Keep no {what} in the host's memory", **{name: None}))
    if space := it.env("VLLM_CPU_KVCACHE_SPACE"):
        smaller = str(max(1, int(float(space)) // 2)) if re.fullmatch(r"[\d.]+", space) else "1"
        if smaller != space:
            change = {"env.VLLM_CPU_KVCACHE_SPACE": smaller}
            found.append(Remedy(f"Give the KV cache {smaller} GiB of the host's memory", change))
    if it.arg("max_parallel_loading_workers") is None and it.ranks > 1:
        found.append(put("Load the weights one worker after another", max_parallel_loading_workers=1))
    return [*found, advice("Give the box, or the container, more memory; end what else uses it")]


def _killed(it: Situation) -> Remedies:
    return [
        advice("See what killed it: dmesg | grep -i 'killed process', and the container's events"),
        *_host_memory(it),
    ]


def _broken_gpu(_: Situation) -> Remedies:
    return [advice("See gpubox doctor and nvidia-smi -q; another GPU (--gpus), or a restart of this one, may help")]


def _cuda_error(it: Situation) -> Remedies:
    found: Remedies = []
    if not it.arg("enforce_eager"):
        found.append(
            put("Do without CUDA graphs and compilation, to see whether they are at fault", enforce_eager=True)
        )
    if it.env("CUDA_LAUNCH_BLOCKING") is None:
        found.append(Remedy("Have the failing kernel named at its own line", {"env.CUDA_LAUNCH_BLOCKING": "1"}))
    return found


def _files(_: Situation) -> Remedies:
    return [advice("Raise the limit: ulimit -n 65536 before the keeper starts (gpubox shutdown ends it)")]


MAKERS: dict[str, Callable[[Situation], Remedies]] = {
    "kv-cache-too-small": _kv_too_small,
    "no-kv-cache": _no_kv,
    "gpu-memory-busy": _memory_busy,
    "gpu-memory-moved": _moved,
    "cuda-oom-at-load": _oom_at_load,
    "cuda-oom-at-warm-up": _oom_at_warm_up,
    "cuda-oom-in-use": _oom_in_use,
    "cuda-oom-at-wake": _at_wake,
    "no-sleep-mode": _no_sleep,
    "heads-not-divisible": _heads,
    "too-few-gpus": _few_gpus,
    "quantized-not-divisible": _quantized_heads,
    "attention-backend": _attention,
    "port-in-use": _port,
    "batch-too-small": _batch,
    "lora-rank": _lora,
    "nccl": _nccl,
    "no-driver": _driver,
    "no-space": _no_space,
    "host-memory": _host_memory,
    "killed-for-memory": _host_memory,
    "killed": _killed,
    "gpu-busy-or-broken": _broken_gpu,
    "cuda-error": _cuda_error,
    "crashed": _cuda_error,
    "too-many-files": _files,
    **remedies_models.MAKERS,
    **remedies_flags.MAKERS,
}
"""Who makes the remedies of each code."""


def remedies_for(code: str, it: Situation) -> tuple[Remedy, ...]:
    """Return what to do about a cause, the best first; what would change nothing is left out."""
    make = MAKERS.get(code)
    return tuple(make(it)) if make else ()
