"""Which interpreter runs an engine, where the profile does not name one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from backends.errors import ProfileError


def find_python(module: str, command: str, named: str | None, environ: Mapping[str, str], remedy: str) -> str:
    """Return the interpreter that has `module`: the one the profile names, gpubox's own, or that of `command` on PATH.

    Raises ProfileError with `remedy` where none of them has it. Nothing is imported, so this is quick.
    """
    if named:
        path = Path(named).expanduser()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise ProfileError(
                f"python = {named!r} is not a program that can be run", "name an interpreter's full path"
            )
        return str(path)
    if importlib.util.find_spec(module):
        return sys.executable
    script = shutil.which(command, path=environ.get("PATH"))
    if script and (python := _interpreter_of(Path(script))):
        return python
    raise ProfileError(f"{module} is not installed for {sys.executable}, and no `{command}` is on the PATH", remedy)


def _interpreter_of(script: Path) -> str | None:
    """Return the Python that a console script names in its first line."""
    try:
        with script.open("rb") as file:
            first = file.readline(512).decode(errors="replace").strip()
    except OSError:
        return None
    if not first.startswith("#!"):
        return None
    words = first[2:].split()
    return words[0] if words and "python" in Path(words[0]).name and Path(words[0]).exists() else None
