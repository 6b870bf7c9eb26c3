"""Editing a profile: what is being written and has not been saved, what is wrong with it, and saving it.

A draft knows what the file was when it was opened: a file that somebody else has changed since is not written over.
"""

from __future__ import annotations

import contextlib
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from profiles.arguments import lint
from profiles.changes import changed_text, differences
from profiles.errors import InvalidProfileError, ProfileProblem
from profiles.lines import line_of
from profiles.schema import NAME, Profile
from profiles.store import Store, digest_of, parse_text, renamed

BLANK = """\
description = ""
engine = "vllm"
# A hub's id such as "Qwen/Qwen2.5-7B-Instruct", or a folder's full path.
model = ""
# sleep = true            # gives its GPUs away and has them back in a second
# ttl = 30                # then sleeps by itself after so many idle minutes
# wake_on_request = true  # and wakes where somebody asks it something

# The engine's own arguments: max_model_len = 2048 becomes --max-model-len 2048.
[args]
gpu_memory_utilization = 0.9
"""
"""What a profile without a template begins with."""


class ChangedOnDiskError(ValueError):
    """The file is not what it was when the draft was opened; `text` is what it says now, None where it is gone."""

    def __init__(self, path: Path, text: str | None) -> None:
        super().__init__(f"{path} {'is gone' if text is None else 'was changed'} since it was opened")
        self.path = path
        self.text = text


@dataclass(frozen=True, slots=True)
class Draft:
    """A profile that is being edited: `text` is what is saved, or what it began with where nothing is (`is_saved`).

    `path` is where it will be written, `digest` that file's SHA-256 as it was opened; None where there was none.
    `source` says where the text came from, if not from that file.
    """

    name: str
    text: str
    path: Path
    digest: str | None
    is_saved: bool = True
    source: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a text amounts to: the profile, or the problems that keep it from being one; and what looks wrong."""

    profile: Profile | None
    data: dict[str, Any]
    problems: tuple[ProfileProblem, ...]
    warnings: tuple[ProfileProblem, ...] = ()


def open_draft(store: Store, name: str) -> Draft:
    """Open a profile, broken or not; one of the library becomes one's own once it is saved.

    Raises InvalidProfileError where there is none or where it is no text, OSError where it cannot be read.
    """
    path, origin = store.find(name)
    text = _read(path)
    target = store.target(name)
    if origin == "library":
        return Draft(name, text, target, None, source="the library")
    return Draft(name, text, path, digest_of(text))


def new_draft(store: Store, name: str, template: str | None = None) -> Draft:
    """Begin a profile, from the text of another one or from nothing; nothing is written.

    Raises InvalidProfileError where the name cannot be had, OSError where the template cannot be read.
    """
    if wrong := name_problem(store, name):
        raise InvalidProfileError([ProfileProblem(name, "", wrong)])
    text = BLANK if template is None else _read(store.find(template)[0])
    with contextlib.suppress(tomllib.TOMLDecodeError):
        text = renamed(text, name)
    return Draft(name, text, store.target(name), None, is_saved=False, source=template or "")


def name_problem(store: Store, name: str) -> str:
    """Say why a new profile cannot have a name; empty where it can. One of the library's may be hidden by one's own."""
    if not NAME.fullmatch(name):
        return "use a-z, 0-9, '.', '_' and '-', at most 64" if name else "it needs a name"
    try:
        path = store.target(name)
    except InvalidProfileError as wrong:
        return str(wrong)
    return f"{name} is there already" if path.exists() or path.is_symlink() else ""


def check_text(text: str, path: Path) -> Checked:
    """Check a profile's TOML as if it stood in `path`; what looks wrong among its arguments has lines, too."""
    try:
        profile, data = parse_text(text, path)
    except InvalidProfileError as wrong:
        return Checked(None, {}, wrong.problems)
    found = lint(profile, str(path))
    return Checked(profile, data, (), tuple(replace(one, line=_line(text, data, one.where)) for one in found))


def save(store: Store, draft: Draft, text: str, *, overwrite: bool = False) -> Draft:
    """Write a draft's text, whole or not at all, with mode 0600, and return the draft as it is now.

    Raises InvalidProfileError where it is no profile, OSError where it cannot be written, and ChangedOnDiskError where
    the file is not what it was, unless `overwrite` says that this is known.
    """
    target = store.target(draft.name)
    there = _read(target) if target.exists() else None
    if not overwrite and (None if there is None else digest_of(there)) != draft.digest:
        raise ChangedOnDiskError(target, there)
    path = store.write_text(draft.name, text, overwrite=True)
    return Draft(draft.name, text, path, digest_of(text))


def unified(before: str, after: str, was: str, now: str) -> str:
    """Return the change from one text to another as a unified diff; empty where they say the same."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), was, now, lineterm="", n=2)
    return "\n".join(lines)


def against_start(text: str, data: Mapping[str, Any], started: Mapping[str, Any], was: str, now: str) -> str:
    """Return what a profile's text says other than what a server of it was started with, as a unified diff.

    Comments and order of the text are kept, so that only what differs in content shows.
    """
    return unified(changed_text(text, differences(data, started)), text, was, now)


def argument_names(engine: str) -> frozenset[str]:
    """Return the arguments of an engine that gpubox knows, in snake_case."""
    from profiles.flags import TRANSFORMERS_SWITCHES, TRANSFORMERS_VALUED, VLLM_REPEATED, VLLM_SWITCHES, VLLM_VALUED

    if engine == "transformers":
        return TRANSFORMERS_SWITCHES | TRANSFORMERS_VALUED
    return VLLM_SWITCHES | VLLM_REPEATED | VLLM_VALUED


def completion(start: str, known: frozenset[str]) -> str:
    """Return what completes a name that has been begun: the rest of the only or the shortest one that begins so."""
    found = sorted((name for name in known if name.startswith(start)), key=lambda name: (len(name), name))
    return found[0][len(start) :] if found and len(start) > 1 else ""


def _line(text: str, data: Mapping[str, Any], where: str) -> int | None:
    """Return the line of an argument, which a file may spell with dashes."""
    table, _, key = where.partition(".")
    spelled = data.get(table)
    names = spelled if isinstance(spelled, dict) else {}
    return line_of(text, [table, next((name for name in names if name.replace("-", "_") == key), key)])


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as problem:
        what = ProfileProblem(str(path), "", f"is not UTF-8 (byte {problem.start})", "save it as UTF-8")
        raise InvalidProfileError([what]) from None
