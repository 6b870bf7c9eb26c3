"""Keys, which a profile only refers to: `env:NAME`, or `file:/path` of a file that nobody else may read."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import InvalidProfileError, ProfileProblem, RefusedError, did_you_mean

if TYPE_CHECKING:
    from profiles.schema import Profile

VARIABLES = {"api_key": "VLLM_API_KEY", "hf_token": "HF_TOKEN"}
"""The engine's environment variable for each secret that has a name of its own."""

LONGEST_KEY_BYTES = 65536

_ENVIRON_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(r"(?:^|_)(?:API|AUTH|ACCESS)?(?:TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS)$|_SECRET_", re.I)
_SECRET_VALUE = re.compile(r"(?:hf|gh[op])_[A-Za-z0-9]{30,}|(?:glpat|xox[bp]|sk)-(?=.*\d)[\w-]{20,}|AKIA[0-9A-Z]{16}")
_OWNED = {
    "CUDA_VISIBLE_DEVICES": "say gpus = COUNT in the profile, and which ones at launch: --gpus 6,7",
    "CUDA_DEVICE_ORDER": "delete it: gpubox hands GPUs over in PCI order",
}


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable's name or value is that of a key."""
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.fullmatch(value))


def check_environ_name(name: str) -> str:
    """Return the name of a variable that may stand in a profile; raises RefusedError with the remedy."""
    if not _ENVIRON_NAME.fullmatch(name):
        raise RefusedError("is not a variable's name")
    if remedy := _OWNED.get(name):
        raise RefusedError("is set by gpubox itself", remedy)
    if looks_secret(name, ""):
        key = next((key for key, variable in VARIABLES.items() if variable == name), name)
        raise RefusedError("is a key by its name, and profiles hold no keys", f'[secrets] {key} = "env:{name}"')
    return name


def check_environ_value(value: str) -> str:
    """Return a variable's value; raises RefusedError where it is a key."""
    if "\0" in value:
        raise RefusedError("holds a NUL")
    if looks_secret("", value):
        raise RefusedError("holds a key, which a profile must not", 'use [secrets] NAME = "env:NAME"')
    return value


def check_secret_name(name: str) -> str:
    """Return the name of a secret: `api_key`, `hf_token`, or a variable in capitals."""
    if name in VARIABLES:
        return name
    for known, variable in VARIABLES.items():
        if name == variable:
            raise RefusedError("has a name of its own here", f"write {known}")
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        remedy = did_you_mean(name, VARIABLES, "use api_key, hf_token, or a variable's name in capitals")
        raise RefusedError("no such secret", remedy)
    return name


def check_reference(value: str) -> str:
    """Return a reference to a secret; a literal is refused, and never repeated."""
    kind, _, rest = value.partition(":")
    if kind == "env" and _ENVIRON_NAME.fullmatch(rest):
        return value
    if kind == "file" and rest.startswith(("/", "~")) and "\0" not in rest:
        return value
    if kind in ("env", "file"):
        raise RefusedError("is not a reference", "write env:NAME, or file:/path from / or ~ on")
    remedy = 'export it and write "env:NAME", or keep it in a file of mode 0600 and write "file:/path"'
    raise RefusedError("must not stand in a profile itself", remedy)


class _Secrets(dict[str, str]):
    """Keys by variable, whose repr does not show them."""

    def __repr__(self) -> str:
        return f"<{', '.join(self)}>"


def resolve_secrets(profile: Profile, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the engine's variables that hold keys, read from where the profile says they are.

    Raises InvalidProfileError where one is missing, empty, or in a file that others may read.
    """
    values, problems = _Secrets(), []
    for name, reference in profile.secrets.items():
        kind, _, place = reference.partition(":")
        try:
            value = _from_environ(place, environ) if kind == "env" else _from_file(Path(place).expanduser())
        except RefusedError as wrong:
            where = f"secrets.{name}"
            problems.append(ProfileProblem(f"profile {profile.name}", where, wrong.message, wrong.suggestion))
        else:
            values[VARIABLES.get(name, name)] = value
    if problems:
        raise InvalidProfileError(problems)
    return values


def _from_environ(name: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise RefusedError(f"${name} is not set", f"export {name}=… where you start gpubox")
    return value


def _from_file(path: Path) -> str:
    try:
        # Without O_NONBLOCK, a named pipe would keep its reader for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            content = os.read(descriptor, LONGEST_KEY_BYTES + 1) if stat.S_ISREG(facts.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise RefusedError(f"{path} cannot be read: {problem.strerror}", "make it, with mode 0600") from None
    if facts.st_mode & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        raise RefusedError(f"{path} may be read by others (mode {mode:04o})", f"chmod 600 {path}")
    try:
        value = content.decode().strip()
    except UnicodeDecodeError:
        value = ""
    if not value or len(content) > LONGEST_KEY_BYTES or not value.isprintable():
        raise RefusedError(f"{path} does not hold one key", "it should hold the key alone, on one line")
    return value
