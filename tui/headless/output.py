"""How commands speak: results to standard output, everything else to standard error, errors in one line with a hint."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backends.errors import GpuboxError, UsageError

if TYPE_CHECKING:
    from typer.exceptions import TyperException


def prepare() -> None:
    """Have standard output be there, lose nothing, and show what its encoding lacks as '?'.

    Where PYTHONUNBUFFERED is set, as in many containers, Python drops the rest of a write that a signal cuts short.
    """
    if sys.stdout is None:  # `>&-`: Python opens nothing in its place
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):
        sys.stdout = open(sys.stdout.fileno(), "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(text: str) -> None:
    """Print to standard error: progress, notes."""
    print(text, file=sys.stderr, flush=True)


def complain(problem: GpuboxError) -> int:
    """Print an error and its hint; returns the exit code that belongs to it."""
    say(f"gpubox: {problem.message}")
    if problem.hint:
        say(f"  → {problem.hint}")
    return problem.exit_code


def misread(problem: TyperException) -> GpuboxError:
    """Return what is wrong with a command line that could not be read; where it only stops short, that is its help."""
    context = getattr(problem, "ctx", None)
    command = context.command_path if context else "gpubox"
    text = problem.format_message()
    if text.startswith("Usage: "):
        return UsageError(f"{command} needs a command\n\n{text}")
    return UsageError(" ".join(text.split()), f"{command} --help")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return rows in aligned columns under a head; the columns whose numbers are in `right` are set to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = (
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def end_quietly() -> None:
    """Leave without a traceback when the reader of our output has gone (`gpubox logs … | head`)."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
