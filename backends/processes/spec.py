"""What a shim is told to run: `spec.json`, read and checked by hand since the shim has the standard library only."""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False  # The shim must not pay for importing `typing`.
if TYPE_CHECKING:
    from typing import Any, TypedDict

    class StepSpec(TypedDict):
        """One command; `label` is what is shown while it runs."""

        label: str
        argv: list[str]

    class Spec(TypedDict):
        """One launch; docs/architecture.md says what each key means."""

        schema: int
        name: str
        steps: list[StepSpec]
        environ: dict[str, str]
        cwd: str
        log: str
        log_max_bytes: int
        log_parts: int
        drop_lines_with: str
        facts: str
        progress: str
        locks: list[str]
        grants: list[str]
        term_again_s: float
        kill_after_s: float


SCHEMA = 1
_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "steps": list,
    "environ": dict,
    "cwd": str,
    "log": str,
    "log_max_bytes": int,
    "log_parts": int,
    "drop_lines_with": str,
    "facts": str,
    "progress": str,
    "locks": list,
    "grants": list,
    "term_again_s": (int, float),
    "kill_after_s": (int, float),
}


def read_spec(path: str) -> Spec:
    """Read a spec; raises OSError where it cannot be read, ValueError with one line where it is wrong."""
    with open(path, "rb") as file:
        spec: Any = json.load(file)
    if not isinstance(spec, dict) or spec.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not a spec of schema {SCHEMA}")
    for key, kind in _KINDS.items():
        if not isinstance(spec.get(key), kind):
            raise ValueError(f"{path}: {key} is missing, or not of the right kind")
    for step in spec["steps"]:
        argv = step.get("argv") if isinstance(step, dict) else None
        if not argv or not all(isinstance(part, str) for part in argv) or not isinstance(step.get("label"), str):
            raise ValueError(f"{path}: each of steps needs a label and an argv of strings")
    if not spec["steps"]:
        raise ValueError(f"{path}: steps is empty")
    if spec["log_max_bytes"] <= 0 or spec["log_parts"] < 0:
        raise ValueError(f"{path}: log_max_bytes must be above 0, log_parts not below 0")
    if spec["term_again_s"] <= 0 or spec["kill_after_s"] < 0:
        raise ValueError(f"{path}: term_again_s must be above 0, kill_after_s not below 0")
    checked: Any = spec
    return checked  # type: ignore[no-any-return]


def write_json(path: str, value: object, durable: bool = True) -> None:
    """Put `value` at `path` (mode 0600) at once or not at all; `durable` outlasts a power cut. Raises OSError."""
    temporary = f"{path}.{os.getpid()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(json.dumps(value).encode())
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    if durable:
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
