"""What to do where the command line is at fault: unknown flags, values that are none, kernels chosen by a flag."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

from backends.diagnosis.situation import Situation, advice, put, written
from backends.starts import Remedy

Remedies = list[Remedy]


def _snake(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _known(it: Situation) -> set[str]:
    """Return the flags of this very version, which its usage text lists; else those of the version that we know."""
    from profiles.flags import VLLM_REPEATED, VLLM_SWITCHES, VLLM_VALUED

    told = {_snake(flag) for flag in it.story.flags}
    return told if len(told) > 20 else set(VLLM_SWITCHES | VLLM_VALUED | VLLM_REPEATED)


def _unknown(it: Situation) -> Remedies:
    words = it.groups.get("flags", "").split()
    flags = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
    found, known = [], _known(it)
    removed: dict[str, Any] = {}
    for flag in dict.fromkeys(flags):
        remedy = _replaced(it, flag, known, words)
        removed[_snake(flag)] = None
        if remedy is not None:
            found.append(remedy)
    names = ", ".join(sorted(removed))
    if removed:
        found.append(put(f"Delete {names}: this version of the engine has it no more, or not yet", **removed))
    return found or [advice("Delete what it does not know from the profile's args")]


def _replaced(it: Situation, flag: str, known: Iterable[str], words: list[str]) -> Remedy | None:
    """Return the change to the nearest real flag, with the value that was meant for the unknown one."""
    from profiles.flags import GONE, RENAMED

    name, known = _snake(flag), set(known)
    value = it.arg(name)
    if value is None:
        value = _given(flag, words)
    if name in GONE:
        return None
    near = RENAMED.get(name)
    if near not in known:
        near = next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)), None)
    if near is None or near == name or it.arg(near) is not None:
        return None
    change = {name: None, near: True if value is None else value}
    return put(f"Write {near} = {written(change[near])} instead of {name}", **change)


def _given(flag: str, words: list[str]) -> Any:
    """Return the value that follows a flag on a command line, as TOML would write it."""
    from profiles.arguments import toml_value

    for at, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return toml_value(word.partition("=")[2])
        if word == flag and at + 1 < len(words) and not words[at + 1].startswith("--"):
            return toml_value(words[at + 1])
    return None


def _bad_value(it: Situation) -> Remedies:
    name = _snake(it.groups.get("flag", "").split("/")[-1])
    why = it.groups.get("why", "")
    choices = re.findall(r"'([^']+)'", why.partition("choose from")[2]) or re.findall(
        r"[\w.-]+", why.partition("choose from")[2]
    )
    given = re.search(r"invalid [\w_]+(?: value)?: '?([^'\s]+)'?", why)
    found: Remedies = []
    if given and choices:
        aliases = {"fp16": "half", "bf16": "bfloat16", "fp32": "float", "f16": "half", "int8": "fp8"}
        wanted = aliases.get(given[1].lower(), "")
        near = [wanted] if wanted in choices else difflib.get_close_matches(given[1], choices, n=1, cutoff=0.3)
        if near:
            found.append(put(f'Did you mean {name} = "{near[0]}"?', **{name: near[0]}))
    if could := re.findall(r"--[\w-]+", why.partition("could match")[2]):
        value = it.arg(name)
        if value is not None and len(could) == 1:
            found.append(put(f"Write {_snake(could[0])}", **{name: None, _snake(could[0]): value}))
    if name:
        found.append(put(f"Leave {name} to the engine", **{name: None}))
    return found


def _jit(it: Situation) -> Remedies:
    whole = it.groups.get("whole", "") + it.groups.get("files", "")
    found: Remedies = []
    if "flashinfer" in whole.lower():
        if it.env("VLLM_USE_FLASHINFER_SAMPLER") != "0":
            change = {"env.VLLM_USE_FLASHINFER_SAMPLER": "0"}
            found.append(Remedy("Sample without FlashInfer, which builds its kernels at the start", change))
        if it.arg("attention_backend") != "FLASH_ATTN":
            found.append(put("Compute attention with kernels that are built already", attention_backend="FLASH_ATTN"))
    if "deep_gemm" in whole and it.env("VLLM_USE_DEEP_GEMM") != "0":
        found.append(Remedy("Do without DeepGEMM's kernels", {"env.VLLM_USE_DEEP_GEMM": "0"}))
    if not found and not it.arg("enforce_eager"):
        found.append(put("Do without compilation and CUDA graphs (slower)", enforce_eager=True))
    tools = "Install what builds kernels: a C compiler, Python's headers (python3-dev), ninja, CUDA's nvcc"
    return [*found, advice(tools)]


def _module(it: Situation) -> Remedies:
    what = it.groups.get("module") or it.groups.get("library") or it.groups.get("program") or "it"
    if what in ("vllm", "transformers"):
        return [advice(f'Name the interpreter that has {what}: python = "/path/to/python" in the profile')]
    return [advice(f"Install {what} for the engine's Python, or name another: python in the profile")]


MAKERS: dict[str, Callable[[Situation], Remedies]] = {
    "unknown-flag": _unknown,
    "bad-flag-value": _bad_value,
    "jit-build-failed": _jit,
    "module-missing": _module,
}
"""Who makes the remedies of each code."""
