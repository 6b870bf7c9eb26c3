"""What a profile must be for its server to sleep: vLLM on GPUs, with an allocator that can give memory back.

An engine that sleeps has vLLM's development routes, which are open to whoever reaches it. So it listens on a socket of
its own, and a front of gpubox's gives the rest of what it serves on the profile's address.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiles.errors import RefusedError

SLEEP_FLAG = "enable_sleep_mode"
DEV_MODE = "VLLM_SERVER_DEV_MODE"
"""Makes vLLM offer /sleep and /wake_up; and with them routes that run code (/collective_rpc)."""

ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
LONGEST_TTL_MIN = 525600.0

_NOT_BEHIND_A_FRONT = {
    "ssl_certfile": "the front asks its engine over plain HTTP: let a proxy do TLS",
    "ssl_keyfile": "the front asks its engine over plain HTTP: let a proxy do TLS",
    "data_parallel_multi_port_external_lb": "such an engine listens on several ports, and on no socket",
    "grpc": "such an engine answers no HTTP",
    "headless": "such an engine serves nobody",
}


def check_sleep(value: bool, data: Mapping[str, Any]) -> bool:
    """Return `sleep` where the rest of the profile, as far as it could be read, allows it; raises RefusedError."""
    if not value:
        return value
    if data.get("engine", "vllm") != "vllm":
        raise RefusedError(
            "is for vLLM: transformers serve cannot sleep", "delete it: it is switched by stop and start"
        )
    if data.get("gpus") == "cpu":
        raise RefusedError(
            "is for GPUs: the CPU build has no sleep mode", "delete it: it is switched by stop and start"
        )
    environ = data.get("env", {})
    for name in ALLOCATOR_SETTINGS:
        if _has_expandable_segments(environ.get(name, "")):
            raise RefusedError(
                f"frees nothing with expandable_segments in {name}", "take that out of env, or delete sleep"
            )
    if DEV_MODE in environ:
        raise RefusedError(f"sets {DEV_MODE} itself", "delete that from env")
    for key, why in _NOT_BEHIND_A_FRONT.items():
        if data.get("args", {}).get(key):
            raise RefusedError(f"does not go with {key}", why)
    return value


def check_needs_sleep(value: float | None, data: Mapping[str, Any]) -> float | None:
    """Return what makes sense only with `sleep = true`; raises RefusedError where that is not said."""
    if value and data.get("sleep") is False:
        raise RefusedError("is for servers that sleep", "set sleep = true, or delete it")
    return value


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this box alone."""
    return host in ("localhost", "::1") or host.startswith("127.")


def without_expandable_segments(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the allocator's settings in an environment that have to be others for sleep to free memory."""
    found = {name: environ[name] for name in ALLOCATOR_SETTINGS if _has_expandable_segments(environ.get(name, ""))}
    return {name: ",".join(filter(None, (_off(one) for one in text.split(",")))) for name, text in found.items()}


def _has_expandable_segments(settings: str) -> bool:
    return any(_off(setting) is None for setting in settings.split(","))


def _off(setting: str) -> str | None:
    """Return one of the allocator's settings; None for the one that keeps memory from being freed."""
    name, _, value = setting.partition(":")
    return None if name.strip() == "expandable_segments" and value.strip().lower() in ("true", "1") else setting
