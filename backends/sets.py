"""Named sets of profiles, as `config.toml` has them under `[sets]`: read, checked, and the default one changed."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import paths
from backends.errors import UsageError
from profiles.errors import ProfileProblem, did_you_mean
from profiles.lines import line_of

DEFAULT = "default"
"""The set that comes up after a reboot."""

_KEYS = ("profile", "gpus", "port", "name")


@dataclass(frozen=True, slots=True)
class Member:
    """One server of a set; None takes what the profile says, `port` 0 any free one."""

    profile: str
    gpus: tuple[str, ...] | None = None
    port: int | None = None
    name: str | None = None

    @property
    def server(self) -> str:
        """The server's name."""
        return self.name or self.profile


def settings_path() -> Path:
    """Return where the user's settings are."""
    return paths.config_dir() / "config.toml"


def read_sets() -> dict[str, tuple[Member, ...]]:
    """Return the sets that the settings name; raises UsageError with a line for each problem: file, key, what to do."""
    text, data = _read()
    file = str(settings_path())
    if "sets" not in data and (near := [key for key in data if did_you_mean(key, ["sets"])]):
        problem = ProfileProblem(file, near[0], "no such key", "did you mean sets?", line_of(text, near[:1]))
        raise UsageError(str(problem))
    sets = data.get("sets", {})
    if not isinstance(sets, dict):
        problem = ProfileProblem(
            file, "sets", "must be a table", 'write [sets] and default = ["NAME"]', line_of(text, ["sets"])
        )
        raise UsageError(str(problem))
    problems: list[ProfileProblem] = []
    members: dict[str, tuple[Member, ...]] = {}
    for name, given in sets.items():
        line = line_of(text, ["sets", name])
        wrong = _wrong(f"sets.{name}", given)
        problems += [ProfileProblem(file, where, message, advice, line) for where, message, advice in wrong]
        if not wrong:
            members[name] = tuple(_member(one) for one in given)
    if problems:
        raise UsageError("\n  ".join(str(problem) for problem in problems))
    return members


def members_of(names: Sequence[str]) -> tuple[Member, ...]:
    """Return the members of the named sets, each server once; raises UsageError where there is no such set."""
    sets = read_sets()
    found: dict[str, Member] = {}
    for name in names:
        if name not in sets:
            hint = did_you_mean(name, sets, f"known: {', '.join(sorted(sets)) or 'none yet'}")
            if name == DEFAULT:
                hint = "gpubox autostart add PROFILE makes it"
            raise UsageError(f"{settings_path()} has no set {name}", hint)
        for member in sets[name]:
            found.setdefault(member.server, member)
    return tuple(found.values())


def change_default(add: Sequence[str] = (), remove: Sequence[str] = ()) -> tuple[Member, ...]:
    """Add profiles to the set that comes up after a reboot, or take them out, and leave the rest of the file as it is.

    Returns what the set then holds; raises UsageError where the file is damaged, or a profile is not in the set.
    """
    sets = read_sets()
    text, data = _read()
    given: list[Any] = list(data.get("sets", {}).get(DEFAULT, ()))
    names = [member.profile for member in sets.get(DEFAULT, ())]
    if missing := [name for name in remove if name not in names]:
        raise UsageError(f"{missing[0]} does not start after a reboot", f"known: {', '.join(names) or 'none yet'}")
    kept = [one for one, name in zip(given, names, strict=True) if name not in remove]
    kept += [name for name in dict.fromkeys(add) if name not in names]
    if kept != given:
        wanted = data | {"sets": data.get("sets", {}) | {DEFAULT: kept}}
        _write(_with_default(text, kept, wanted))
    return tuple(_member(one) for one in kept)


def write_whole(path: Path, text: str) -> None:
    """Put a whole text in place of a file, or of the file that a link points to; raises OSError."""
    path = path.resolve()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _read() -> tuple[str, dict[str, Any]]:
    path = settings_path()
    try:
        text = path.read_bytes().decode()
        return text, tomllib.loads(text)
    except FileNotFoundError:
        return "", {}
    except OSError as problem:
        raise UsageError(f"{path} cannot be read: {problem.strerror}", "correct its mode") from problem
    except UnicodeDecodeError as problem:
        raise UsageError(f"{path} is not UTF-8 (byte {problem.start})", "save it as UTF-8") from problem
    except tomllib.TOMLDecodeError as problem:
        raise UsageError(f"{path}: {problem}", "correct the TOML") from problem


def _write(text: str) -> None:
    path = settings_path()
    paths.private(path.parent)
    write_whole(path, text)


def _with_default(text: str, kept: Sequence[Any], wanted: Mapping[str, Any]) -> str:
    """Return the settings' text with another default set; raises UsageError where that cannot be done by lines."""
    new = [f"{DEFAULT} = [{', '.join(_inline(one) for one in kept)}]"]
    lines = text.split("\n") if text else []
    data = tomllib.loads(text)
    if "sets" not in data:
        lines = [*lines, *([""] if lines and lines[-1] else []), "[sets]", *new, ""]
    elif DEFAULT not in data["sets"]:
        at = line_of(text, ["sets"]) or 0
        lines[at:at] = new
    else:
        begin = (line_of(text, ["sets", DEFAULT]) or 1) - 1
        lines[begin : _end_of_value(lines, begin)] = new
    changed = "\n".join(lines)
    try:
        right = tomllib.loads(changed) == wanted
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        raise UsageError(f"{settings_path()} cannot be changed without harm", f"write into it: {new[0]}")
    return changed


def _end_of_value(lines: Sequence[str], begin: int) -> int:
    """Return the line after a key's value, which may stretch over several."""
    for end in range(begin + 1, len(lines) + 1):
        try:
            tomllib.loads("\n".join(lines[begin:end]))
        except tomllib.TOMLDecodeError:
            continue
        return end
    return begin + 1


def _inline(value: Any) -> str:
    """Return a member as TOML in one line; JSON's texts, numbers and lists are TOML's, too."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "{ " + ", ".join(f"{key} = {_inline(part)}" for key, part in value.items()) + " }"


def _wrong(where: str, given: Any) -> list[tuple[str, str, str]]:
    """Return what is wrong with a set: where, what, and what to do about it."""
    if not isinstance(given, list):
        return [(where, "must be a list of profiles", 'write ["NAME"]')]
    return [problem for number, one in enumerate(given) for problem in _wrong_member(f"{where}.{number}", one)]


def _wrong_member(where: str, one: Any) -> list[tuple[str, str, str]]:
    if isinstance(one, str):
        return [] if one else [(where, "is empty", "name a profile")]
    if not isinstance(one, dict):
        return [(where, "must be a profile's name or a table", '{ profile = "NAME", gpus = "0,1" }')]
    wrong = [
        (f"{where}.{key}", "no such key", did_you_mean(key, _KEYS, f"known are {', '.join(_KEYS)}"))
        for key in one
        if key not in _KEYS
    ]
    if not isinstance(one.get("profile"), str) or not one["profile"]:
        wrong.append((f"{where}.profile", "must be a profile's name", 'add profile = "NAME"'))
    if "gpus" in one and not _gpus(one["gpus"]):
        wrong.append((f"{where}.gpus", "must be GPUs", 'write "0,1", [0, 1], "auto" or "cpu"'))
    port = one.get("port", 0)
    if port != "auto" and (not isinstance(port, int) or isinstance(port, bool) or not 0 <= port < 65536):
        wrong.append((f"{where}.port", "is not a port", 'use 1–65535, or "auto"'))
    if "name" in one and not (isinstance(one["name"], str) and one["name"]):
        wrong.append((f"{where}.name", "must be a server's name", "delete the key to take the profile's"))
    return wrong


def _member(one: Any) -> Member:
    if isinstance(one, str):
        return Member(one)
    port = one.get("port")
    return Member(one["profile"], _gpus(one.get("gpus")), 0 if port == "auto" else port, one.get("name"))


def _gpus(given: Any) -> tuple[str, ...] | None:
    """Read `"0,1"`, `[0, 1]`, `2`, `"auto"` or `"cpu"`; None where it is none of them."""
    if isinstance(given, str):
        return tuple(part.strip() for part in given.split(",") if part.strip()) or None
    if isinstance(given, int) and not isinstance(given, bool):
        return (str(given),)
    if isinstance(given, list) and given and all(isinstance(part, int | str) for part in given):
        return tuple(str(part) for part in given)
    return None
