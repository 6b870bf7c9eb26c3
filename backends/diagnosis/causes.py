"""What engines say when they fail, in one table: an exception's own words, or a line's, and the cause they tell.

An exception is matched as `Type: message` on one line. Rows are tried in their order, so the narrower ones come first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

OUT_OF_MEMORY = "cuda-oom"
"""Stands in the table for three codes: the phase of the launch decides which."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A failure that a pattern tells; `says` may use its groups as {name}. `frames` must match a file, where it is set.

    With `in_lines`, plain lines are matched as well.
    """

    code: str
    pattern: re.Pattern[str]
    says: str
    in_lines: bool = False
    frames: re.Pattern[str] | None = None

    def summary(self, groups: Mapping[str, str]) -> str:
        """Return the cause in plain words."""
        return self.says.format_map(_Groups(groups))


class _Groups(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _rule(code: str, pattern: str, says: str, *, in_lines: bool = False, frames: str | None = None) -> Rule:
    return Rule(code, re.compile(pattern), says, in_lines, re.compile(frames) if frames else None)


RULES = (
    _rule(
        "kv-cache-too-small",
        r"max seq len \((?P<asked>\d+)\).*?\(?(?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the "
        r"available KV cache memory \((?P<left>-?[\d.]+) GiB\)(?:.*?estimated maximum model length is (?P<fits>\d+))?",
        "max_model_len {asked} needs {needed} GiB of KV cache, and {left} GiB are left for it",
    ),
    _rule(
        "kv-cache-too-small",
        r"max seq len \((?P<asked>\d+)\) is larger than the maximum number of tokens that can be stored in KV cache "
        r"\((?P<fits>\d+)\)",
        "max_model_len {asked} is more than the {fits} tokens that the KV cache holds",
    ),
    _rule(
        "no-kv-cache",
        r"No available memory for the cache blocks|[Nn]ot enough memory.*KV cache|insufficient memory.*KV cache",
        "the weights and their activations leave no memory for a KV cache",
    ),
    _rule(
        "gpu-memory-busy",
        r"Free memory on device (?:\S+ )?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than desired "
        r"GPU memory utilization \((?P<asked>[\d.]+), (?P<wanted>[\d.]+)",
        "{free} of {total} GiB are free on the GPU; gpu_memory_utilization {asked} asks for {wanted}",
    ),
    _rule(
        "gpu-memory-moved",
        r"Error in memory profiling\. Initial free memory",
        "another process freed GPU memory while vLLM measured it",
    ),
    _rule(
        "cuda-oom-at-wake",
        r"CUDA Error: out of memory at .*cumem_allocator",
        "no room on the GPU to wake up in: somebody else holds the memory",
        in_lines=True,
    ),
    _rule("no-sleep-mode", r"Sleep mode is not supported", "this build of vLLM has no sleep mode: it is for GPUs"),
    _rule(
        OUT_OF_MEMORY,
        r"(?:CUDA|HIP|XPU) out of memory|OutOfMemoryError|"
        r"CUDA(?:_| error: | driver error: | Error: )?(?:ERROR_)?(?:out of memory|OUT_OF_MEMORY)|not enough GPU memory|"
        r"CUBLAS_STATUS_ALLOC_FAILED|Cuda failure \d* ?'out of memory'",
        "out of GPU memory",
    ),
    _rule(
        "context-too-long",
        r"max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
        r"\((?P<derived>(?:[^)=]*=(?P<most>\d+))?[^)]*)\)",
        "max_model_len {asked} is more than the model was made for ({most})",
    ),
    _rule(
        "batch-too-small",
        r"max_num_batched_tokens \((?P<batch>\d+)\) (?:is smaller than max_model_len|must be greater than or equal to "
        r"max_num_seqs) \((?P<least>\d+)\)",
        "max_num_batched_tokens {batch} is less than the {least} that the other settings need",
    ),
    _rule(
        "heads-not-divisible",
        r"(?:attention heads|num_(?:attention_)?heads)\D*\((?P<heads>\d+)\) (?:must be|is not) divisible by tensor "
        r"parallel size \((?P<ranks>\d+)\)",
        "{heads} attention heads cannot be split over {ranks} GPUs",
    ),
    _rule(
        "heads-not-divisible",
        r"(?P<heads>\d+) is not divisible by (?P<ranks>\d+)$",
        "a layer of {heads} cannot be split over {ranks} GPUs",
        frames=r"distributed/utils\.py|parallel_state|linear\.py|vocab_parallel",
    ),
    _rule(
        "quantized-not-divisible",
        r"not aligned with the quantized weight shape|is not divisible by weight quantization block|"
        r"size_[kn] must (?:be )?divisible by BLOCK_SIZE|not divisible by (?:min_thread|group_size|tile)",
        "the model's quantized weights cannot be split over so many GPUs",
    ),
    _rule(
        "attention-backend",
        r"No valid attention backend found|attention backend (?P<backend>\w+) is not (?:valid|supported)|"
        r"FlashAttention only supports Ampere|(?:XFormers|FlashInfer|FlashAttention|\w+_ATTN) does not support|"
        r"[Hh]ead size \d+ is not supported|head_size not supported|Selected backend \S+ is not valid",
        "the attention kernels that were asked for do not go with this model, this GPU or this KV cache",
    ),
    _rule(
        "too-few-gpus",
        r"World size \((?P<ranks>\d+)\) is larger than the number of available GPUs \((?P<there>\d+)\)|"
        r"tensor parallel size \((?P<ranks_2>\d+)\) (?:cannot be larger|is larger) than the number of available GPUs "
        r"\((?P<there_2>\d+)\)",
        "it needs {ranks} GPUs and sees {there}",
    ),
    _rule(
        "too-few-gpus",
        r"number of required GPUs exceeds the total number of available GPUs|invalid device ordinal|"
        r"DP adjusted local rank \d+ is out of bounds",
        "it needs more GPUs than it sees",
    ),
    _rule(
        "port-in-use",
        r"(?:\[Errno 98\].*)?[Aa]ddress already in use(?!.*(?:TCPStore|EADDRINUSE, message))",
        "its port is in use",
        in_lines=True,
    ),
    _rule(
        "lora-rank",
        r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank (?P<most>\d+)",
        "the LoRA adapter has rank {rank}, max_lora_rank allows {most}",
        in_lines=True,
    ),
    _rule(
        "bad-token",
        r"Invalid (?:user token|credentials)|token (?:seems|is) invalid|LocalTokenNotFoundError",
        "the hub refuses the token",
        in_lines=True,
    ),
    _rule(
        "model-gated",
        r"access (?:a )?gated repo|GatedRepoError|Access to model (?P<model>\S+) is restricted",
        "the model is gated: its owner wants its licence accepted first",
        in_lines=True,
    ),
    _rule(
        "model-not-found",
        r"Repo id must be in the form .*?: '(?P<model>[^']+)'|(?P<model_2>[^\s'\"]+) is not a local folder and is not "
        r"a valid model identifier|RepositoryNotFoundError|404 Client Error|Repository Not Found|"
        r"Can't (?:load the configuration of|find a) '?(?P<model_3>[^'\s]+)|Invalid repository ID or local directory "
        r"specified: '(?P<model_4>[^']+)'",
        "there is no model at {model}",
    ),
    _rule(
        "bad-token",
        r"(?:401|403) (?:Client Error|Unauthorized|Forbidden)|Invalid username or password",
        "the hub refuses the token, or wants one",
        in_lines=True,
    ),
    _rule(
        "hub-unreachable",
        r"couldn't connect to '(?P<hub>[^']+)'|(?:Name or service not known|Temporary failure in name resolution|"
        r"nodename nor servname|Failed to resolve|Network is unreachable|No route to host).*|"
        r"outgoing traffic has been disabled|OfflineModeIsEnabled|Cannot reach (?P<hub_2>https?://[^\s:]+)|"
        r"LocalEntryNotFoundError|Max retries exceeded with url|(?:ReadTimeout|ConnectTimeout)",
        "the hub cannot be reached, and the model is not in the cache",
        frames=r"huggingface_hub|transformers|modelscope|requests|httpx|urllib3|transformers_utils|weight_utils|^$",
    ),
    _rule(
        "trust-remote-code",
        r"trust_remote_code=True|--trust-remote-code|contains custom code which must be executed",
        "the model brings code of its own, which vLLM does not run unasked",
    ),
    _rule(
        "weights-missing",
        r"Cannot find any model weights with `(?P<model>[^`]+)`|Error no file named .*?(?:found )?in directory "
        r"(?P<model_2>\S+)|does not appear to have (?:a file|files) named (?P<file>.*?safetensors\S*)|"
        r"FileNotFoundError: .*(?P<file_2>\S+\.(?:safetensors|bin|pt|gguf))|not initialized from checkpoint",
        "weights are missing: the download may be incomplete",
    ),
    _rule(
        "weights-damaged",
        r"SafetensorError|Error while deserializing header|MetadataIncompleteBuffer|HeaderTooLarge|InvalidHeader|"
        r"PytorchStreamReader failed|unexpected EOF, expected|invalid load key|UnpicklingError|"
        r"git-lfs|ConsistencyError|file is corrupted",
        "a weights file is damaged or cut short",
    ),
    _rule(
        "model-not-found",
        r"(?:FileNotFoundError|NotADirectoryError|OSError): .*?(?P<model>/\S+?)[/']*(?:config\.json)|"
        r"does not appear to have a file named config\.json|Can't load (?:tokenizer|config) for '(?P<model_2>[^']+)'",
        "the folder {model} holds no model",
    ),
    _rule(
        "unknown-architecture",
        r"Model architectures \[(?P<name>.*?)\] (?:are not supported|failed to be inspected)|"
        r"model type `(?P<name_2>\S+)` but Transformers does not recognize|Cannot find model module\W+(?P<name_3>\w+)|"
        r"has no vLLM implementation and|Unrecognized (?:model|configuration class)|No supported config format",
        "this version of the engine does not know the architecture {name}",
    ),
    _rule(
        "quantization-mismatch",
        r"Quantization method specified in the model config \((?P<model>[^)]+)\) does not match the quantization "
        r"method specified in the `quantization` argument \((?P<asked>[^)]+)\)",
        "the model is quantized with {model}, and quantization says {asked}",
    ),
    _rule(
        "quantization-mismatch",
        r"(?:Unknown|Invalid) quantization method: (?P<unknown>\w+)(?:\. Must be one of (?P<choices>\[.*?\]))?",
        "this version of vLLM does not know the quantization {unknown}",
    ),
    _rule(
        "quantization-mismatch",
        r"Cannot find the config file for (?P<absent>\w+)",
        "quantization says {absent}, and the model's files say nothing of it",
    ),
    _rule(
        "dtype-unsupported",
        r"[Bb]float16 is only supported on GPUs|(?P<dtype>[\w.]+) is not supported for quantization method "
        r"(?P<method>[\w-]+)\. Supported dtypes: \[(?P<choices>[^\]]*)\]|"
        r"type '?torch\.(?P<dtype_2>\w+)'? is not supported",
        "this GPU or this quantization cannot work with the dtype",
    ),
    _rule(
        "quantization-unsupported",
        r"(?P<method>[\w-]+) quantization is currently not supported in (?P<where>\w+)|quantization method "
        r"(?P<method_2>[\w-]+) is not supported for the current GPU",
        "this GPU cannot work with the model's quantization",
    ),
    _rule(
        "no-chat-template",
        r"default chat template is no longer allowed|does not have a chat template|chat_template is not set|"
        r"supplied chat template (?:string )?\((?P<path>[^)]*)\)|ChatTemplateResolutionError",
        "the model has no chat template",
        in_lines=True,
    ),
    _rule(
        "no-space",
        r"No space left on device|\[Errno 28\]|Disk quota exceeded|\[Errno 122\]|Not enough free disk space",
        "the disk is full",
        in_lines=True,
    ),
    _rule(
        "jit-build-failed",
        r"Ninja build failed|Error (?:building|compiling) (?:extension|objects)|[Cc]ould not find (?:nvcc|"
        r".*ptxas)|nvcc fatal|"
        r"fatal error: \S+: No such file|Failed to find C compiler|ptxas (?:fatal|error)|CompilationError|"
        r"PTXASError|InductorError|BackendCompilerFailed|NVRTC|CUDA_HOME environment variable is not set|"
        r"(?:FileNotFoundError|CalledProcessError): .*(?:'nvcc'|'ninja'|ninja|/nvcc|/gcc|/cc1plus|'gcc'|/g\+\+|/ld)\b",
        "a kernel could not be built on this machine",
        in_lines=True,
    ),
    _rule(
        "jit-build-failed",
        r"CalledProcessError|FileNotFoundError|PermissionError|RuntimeError: Error|AssertionError",
        "a kernel could not be built on this machine",
        frames=r"flashinfer/jit|triton/(?:runtime/build|backends/nvidia|compiler)|cpp_extension|deep_gemm/.*jit|"
        r"tilelang/jit",
    ),
    _rule(
        "no-driver",
        r"libcuda\.so\S*:? cannot open|No CUDA GPUs are available|Found no NVIDIA driver|Failed to infer device type|"
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient|forward compatibility was "
        r"attempted|no CUDA-capable device|(?:libnvidia-ml|NVML Shared Library|NVMLError)|"
        r"[Dd]river/library version mismatch|"
        r"Unexpected error from cudaGetDeviceCount|CUDA unknown error",
        "it finds no GPU: the driver, or libcuda, is missing or too old",
        in_lines=True,
    ),
    _rule(
        "nccl",
        r"NCCL (?:error|WARN|Error)|DistBackendError|Failed to load NCCL library|nccl(?:System|Internal|"
        r"Unhandled|InvalidUsage)|"
        r"ProcessGroupNCCL|Watchdog caught collective operation timeout|libnccl",
        "the GPUs' communication (NCCL) failed",
        in_lines=True,
    ),
    _rule(
        "gpu-busy-or-broken",
        r"CUDA-capable device\(s\) is/are busy or unavailable|uncorrectable ECC error|device has fallen off|Xid",
        "the GPU is held by another process alone, or is broken",
        in_lines=True,
    ),
    _rule(
        "cuda-error",
        r"no kernel image is available|illegal memory access|device-side assert|unspecified launch failure|misaligned "
        r"address|CUBLAS_STATUS_\w+|CUDA error: (?P<what>[^.\n]{3,80})|CUDNN_STATUS_\w+",
        "a kernel failed on the GPU",
        in_lines=True,
    ),
    _rule(
        "host-memory",
        r"can't allocate memory|Cannot allocate memory|\[Errno 12\]|^MemoryError|bad_alloc|"
        r"Not enough (?:CPU|host) memory|/dev/shm",
        "the host's memory is not enough",
        in_lines=True,
    ),
    _rule("too-many-files", r"Too many open files|\[Errno 24\]", "too many open files"),
    _rule("permission", r"PermissionError: (?P<what>.*)", "a file or folder may not be used: {what}"),
    _rule(
        "module-missing",
        r"No module named '?(?P<module>[\w.]+)'?|(?P<library>lib[\w.+-]+\.so[\w.]*): cannot open shared object|"
        r"(?P<program>[\w./-]+): command not found",
        "something is missing in the engine's Python: {module}",
        in_lines=True,
    ),
    _rule(
        "bad-flag-value",
        r"(?:error|ArgumentError): argument (?P<flag>[-\w/]+): (?P<why>.+)",
        "{flag}: {why}",
        in_lines=True,
    ),
    _rule(
        "unknown-flag",
        r"error: unrecognized arguments: (?P<flags>.+)",
        "this version of the engine does not know {flags}",
        in_lines=True,
    ),
    _rule("bad-flag-value", r"error: ambiguous option: (?P<flag>\S+) (?P<why>.+)", "{flag} {why}", in_lines=True),
    _rule(
        "bad-configuration",
        r"ValidationError: .*?(?:Value error, |Assertion failed, )(?P<why>.*?)(?: \[type=|$)",
        "the engine refuses its configuration: {why}",
    ),
    _rule(
        "bad-configuration",
        r"ValidationError: \d+ validation errors? for \w+ (?P<why>\S+ .*?)(?: \[type=|$)",
        "the engine refuses its configuration: {why}",
    ),
)

DEATHS = (
    _rule(
        "killed-for-memory",
        r"Out of memory: Killed process (?P<pid>\d+) \((?P<program>[^)]*)\)|Memory cgroup out of memory|"
        r"oom-kill|OOMKilled",
        "the kernel killed it, since the memory of the host or the container was full",
    ),
    _rule(
        "killed",
        r"(?P<who>Worker proc \S+|RayWorkerProc\S*|(?:Engine|API|DP)\w*(?: proc(?:ess)?)? ?\S*) died unexpectedly"
        r"(?: \(exit code: (?P<exit>-?\d+|None)\))?|"
        r"Worker (?P<who_2>\w+) pid \d+ died, exit code: (?P<exit_2>-9|-[^1]\d*)",
        "{who} died without a word; perhaps the kernel killed it for want of memory",
    ),
    _rule("killed", r"(?P<who>engine core) exited unexpectedly", "the {who} died without a word"),
    _rule("killed", r"^(?:bash: line \d+: +\d+ |\S+: line \d+: +\d+ )?(?P<word>Killed)\b", "something killed it"),
    _rule(
        "crashed",
        r"Fatal Python error: (?P<what>.+)|(?P<what_2>Segmentation fault|Bus error|Illegal instruction|core dumped|"
        r"terminate called .*)",
        "the engine's machine code crashed: {what}",
    ),
)
"""Lines that tell of a process's death, but not of what began it: they count where nothing else does."""


def match(text: str, files: tuple[str, ...] = (), *, in_lines: bool = False) -> tuple[Rule, dict[str, str]] | None:
    """Return the first row that an exception's text and frames (or a plain line) match, and what its groups hold."""
    for rule in RULES:
        if in_lines and not rule.in_lines:
            continue
        if (found := rule.pattern.search(text)) and (
            rule.frames is None or any(rule.frames.search(file) for file in files or ("",))
        ):
            return rule, groups_of(found)
    return None


def match_death(text: str) -> tuple[Rule, dict[str, str]] | None:
    """Return the first row of DEATHS that a line matches, and what its groups hold."""
    for rule in DEATHS:
        if found := rule.pattern.search(text):
            return rule, groups_of(found)
    return None


def groups_of(found: re.Match[str]) -> dict[str, str]:
    """Return a match's groups; `name_2` counts as `name`."""
    groups = {name: value for name, value in found.groupdict().items() if value}
    return {re.sub(r"_\d$", "", name): value.strip() for name, value in groups.items()}
