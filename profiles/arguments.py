"""Engine arguments: what looks wrong among them, and what a command line sets over them.

Arguments are passed through as given, so that any version of an engine works: a finding here is a warning.
"""

from __future__ import annotations

import copy
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from profiles.errors import InvalidProfileError, ProfileProblem
from profiles.flags import (
    GONE,
    RENAMED,
    TRANSFORMERS_SWITCHES,
    TRANSFORMERS_VALUED,
    VLLM_REPEATED,
    VLLM_SWITCHES,
    VLLM_VALUED,
)
from profiles.schema import Profile

NEAR = 0.8
"""How alike an unknown argument must be to a known one to be called a slip: it may be a newer version's own."""

_VLLM_KNOWN = VLLM_SWITCHES | VLLM_REPEATED | VLLM_VALUED
_TRANSFORMERS_KNOWN = TRANSFORMERS_SWITCHES | TRANSFORMERS_VALUED

_AGAINST_GPUBOX = {
    "ssl_keyfile": "gpubox asks its engines over plain HTTP: it would never count as ready; let a proxy do TLS",
    "ssl_certfile": "gpubox asks its engines over plain HTTP: it would never count as ready; let a proxy do TLS",
    "root_path": "gpubox asks for /health and /metrics at the root",
    "grpc": "gpubox asks its engines over HTTP: it would never count as ready",
    "headless": "such an engine serves nobody: it would never count as ready",
    "config": "gpubox does not read that file: parallel sizes in it are unknown to it",
}

_LEFT_VLLM = {
    "bitsandbytes": 'vLLM dropped it after 0.26; engine = "transformers" with quantization = "bnb-4bit" has it',
    "gguf": "vLLM dropped it by 0.24",
}


def lint(profile: Profile, where: str = "") -> tuple[ProfileProblem, ...]:
    """Return what looks wrong among a profile's engine arguments; `where` names the profile, by default its name."""
    findings = []
    for key, value in profile.args.items():
        found = _vllm(key, value) if profile.engine == "vllm" else _transformers(key, value)
        if found is not None:
            message, suggestion = found
            findings.append(ProfileProblem(where or profile.name, f"args.{key}", message, suggestion))
    return tuple(findings)


def _vllm(key: str, value: object) -> tuple[str, str] | None:
    if reason := _AGAINST_GPUBOX.get(key):
        return "does not go with gpubox", reason
    if key == "quantization" and value in _LEFT_VLLM:
        return f"{value} is not in newer vLLM", _LEFT_VLLM[str(value)]
    if reason := GONE.get(key):
        return "is not in newer vLLM", reason.partition(": ")[2]
    return _shape(key, value, VLLM_SWITCHES, VLLM_VALUED) or _unknown(key, _VLLM_KNOWN, "vLLM")


def _transformers(key: str, value: object) -> tuple[str, str] | None:
    if key in _VLLM_KNOWN - _TRANSFORMERS_KNOWN:
        return "is an argument of vLLM, not of transformers serve", "delete it"
    shape = _shape(key, value, TRANSFORMERS_SWITCHES, TRANSFORMERS_VALUED)
    return shape or _unknown(key, _TRANSFORMERS_KNOWN, "transformers serve")


def _shape(key: str, value: object, switches: frozenset[str], valued: frozenset[str]) -> tuple[str, str] | None:
    if key in switches and not isinstance(value, bool):
        return "takes no value", f"write {key} = true, or false"
    if key in valued and isinstance(value, bool):
        return "takes a value", f"write {key} = …, or delete it"
    return None


def _unknown(key: str, known: frozenset[str], engine: str) -> tuple[str, str] | None:
    if key in known or key.removeprefix("no_") in known:
        return None
    meant = RENAMED.get(key) if engine == "vLLM" else None
    if meant is None:
        near = difflib.get_close_matches(key, known, n=1, cutoff=NEAR)
        meant = near[0] if near else None
    return (f"{engine} has no such argument", f"did you mean {meant}?") if meant else None


def with_overrides(data: Mapping[str, Any], sets: Sequence[str] = (), envs: Sequence[str] = ()) -> dict[str, Any]:
    """Return a profile's content with `KEY=VALUE`s over its engine arguments (`sets`) and its environment (`envs`).

    A value is read as TOML where it is some, else as bare text; a dotted key reaches into a table. The result is
    unchecked. Raises InvalidProfileError where one is no `KEY=VALUE`.
    """
    merged = copy.deepcopy(dict(data))
    problems = []
    args = {str(key).replace("-", "_"): value for key, value in _table(merged, "args").items()}
    for text in sets:
        key, equals, value = text.partition("=")
        path = [part.strip() for part in key.strip().lstrip("-").split(".")]
        if not equals or not all(path):
            problems.append(ProfileProblem(f"--set {text}", "", "is not KEY=VALUE", "such as --set max_model_len=2048"))
            continue
        table = args
        for part in path[:-1]:
            inner = table.get(_name(part, table is args))
            table[_name(part, table is args)] = inner = dict(inner) if isinstance(inner, dict) else {}
            table = inner
        table[_name(path[-1], table is args)] = toml_value(value.strip())
    environ = dict(_table(merged, "env"))
    for text in envs:
        key, equals, value = text.partition("=")
        if not equals or not key:
            name = text.partition("=")[0]
            problems.append(ProfileProblem(f"--env {name}", "", "is not NAME=VALUE", "such as --env NCCL_DEBUG=INFO"))
            continue
        environ[key] = value
    if problems:
        raise InvalidProfileError(problems)
    return merged | ({"args": args} if args else {}) | ({"env": environ} if environ else {})


def _name(part: str, is_argument: bool) -> str:
    return part.replace("-", "_") if is_argument else part


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = data.get(key, {})
    return found if isinstance(found, dict) else {}


def toml_value(text: str) -> Any:
    """Read a value as TOML writes it; what is none (and what is a date) is bare text."""
    try:
        parsed = tomllib.loads(f"value = {text}\n")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed.get("value")
    return value if len(parsed) == 1 and isinstance(value, str | int | float | bool | list | dict) else text
