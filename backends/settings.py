"""The user's settings: `config.toml` beside the profiles, read so that a broken one keeps nobody out.

[screen]
theme = "gpubox-day"    # any theme of the palette
bell = true             # ring when a server is ready, has failed or is lost
ascii = "auto"          # true, false, or what the terminal can do

[keys]
server.stop = "ctrl+x"  # a key's id as the ? sheet tells it, and one key or a list of keys

[box]
max_sleeping_host_memory = "50%"  # host memory that sleeping servers may hold: a share of all, or "64 GiB"
"""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from backends.errors import GpuboxError
from backends.paths import config_dir, private
from profiles.errors import ProfileProblem, RefusedError, did_you_mean
from profiles.lines import line_of

Ascii = bool | Literal["auto"]
MOST_SLEEPING = "50%"
_UNITS = {"B": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:(%)|([KMGT])(i?)B|B)", re.ASCII)
KEY_HINT = 'a key as text: "x", "ctrl+x", or a list of such'


@dataclass(frozen=True, slots=True)
class ScreenSettings:
    """How the control center looks and sounds; `theme` None is the product's own."""

    theme: str | None = None
    bell: bool = False
    ascii: Ascii = "auto"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user wants; `keys` maps a binding's id to its keys, `path` is the file (None: nothing is written back).

    `problems` tells what in the file could not be used: that part has its default. `max_sleeping_host_memory` is a
    share of the host's memory ("50%") or an amount ("64 GiB").
    """

    screen: ScreenSettings = ScreenSettings()
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    path: Path | None = None
    problems: tuple[ProfileProblem, ...] = ()
    max_sleeping_host_memory: str = MOST_SLEEPING

    def max_sleeping_host_bytes(self, total_bytes: int) -> int:
        """Return how much host memory sleeping servers may hold on a host that has `total_bytes`."""
        return _amount(self.max_sleeping_host_memory, total_bytes)

    def problem(self, where: tuple[str, ...], message: str, suggestion: str = "") -> ProfileProblem:
        """Return a problem of this file found by somebody else, at the line of the key `where`."""
        try:
            text = self.path.read_text("utf-8") if self.path is not None else ""
        except (OSError, UnicodeDecodeError):
            text = ""
        return ProfileProblem(_named(self.path), ".".join(where), message, suggestion, _line(text, where))


def settings_path() -> Path:
    """The user's `config.toml`."""
    return config_dir() / "config.toml"


def read_settings(path: Path | None = None) -> Settings:
    """Read the settings; never raises: what cannot be used is left at its default, and told in `problems`."""
    path = path or settings_path()
    try:
        text = path.read_text("utf-8")
        data = tomllib.loads(text)
    except FileNotFoundError:
        return Settings(path=path)
    except OSError as problem:
        return _unread(path, f"cannot be read: {problem.strerror}", "correct its mode")
    except UnicodeDecodeError:
        return _unread(path, "is not UTF-8 text", "save it as UTF-8")
    except tomllib.TOMLDecodeError as problem:
        return _unread(path, f"is not TOML: {problem}", "the defaults are used until it is")
    screen, keys, most_sleeping, errors = _checked(data)
    problems = [_problem(error, path, text) for error in errors]
    return Settings(screen, keys, path, tuple(sorted(problems, key=lambda one: one.line or 0)), most_sleeping)


def write_theme(path: Path, theme: str) -> None:
    """Note the theme that the user has chosen, and leave all else in the file as it is, comments included.

    Raises GpuboxError where the file cannot be read as TOML, or not be written.
    """
    from profiles.changes import changed_text

    target = path.resolve()
    try:
        text = target.read_text("utf-8") if target.exists() else ""
        changed = changed_text(text, {"screen.theme": theme}).lstrip("\n")
        private(target.parent)
        _write_atomically(target, changed)
    except tomllib.TOMLDecodeError as problem:
        raise GpuboxError(
            f"the theme is not remembered: {_named(path)} is not TOML", f"{problem}; mend it and choose again"
        ) from None
    except (OSError, UnicodeDecodeError) as problem:
        raise GpuboxError(f"the theme is not remembered: {problem}", f"correct {_named(path)}") from None


def _write_atomically(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _amount(text: str, total_bytes: int) -> int:
    """Return the bytes that "50%" of a total, or "64 GiB", are; raises RefusedError where it is neither."""
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or (found[2] and float(found[1]) > 100):
        raise RefusedError("is no amount of memory", 'write it so: "64 GiB", or "50%" of all')
    number = float(found[1])
    if found[2]:
        return int(total_bytes * number / 100)
    return int(number * (1024 if found[4] else 1000) ** _UNITS[found[3] or "B"])


def _unread(path: Path, message: str, suggestion: str) -> Settings:
    line = None
    if " (at line " in message:
        message, _, place = message.partition(" (at line ")
        line = int(place.partition(",")[0])
    return Settings(path=path, problems=(ProfileProblem(_named(path), "", message, suggestion, line),))


def _checked(
    data: dict[str, Any],
) -> tuple[ScreenSettings, dict[str, tuple[str, ...]], str, list[Mapping[str, Any]]]:
    """Check a file's content; returns what can be used of it, and pydantic's errors about the rest."""
    from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

    def checked_ascii(value: object) -> object:
        if isinstance(value, bool) or value == "auto":
            return value
        raise RefusedError('must be true, false or "auto"')

    def checked_keys(value: object) -> object:
        keys = value if isinstance(value, list) else [value]
        if keys and all(isinstance(key, str) and key.strip() for key in keys):
            return tuple(key if key.isspace() else key.strip() for key in keys)
        raise RefusedError("must be a key, or a list of keys", KEY_HINT)

    def checked_amount(value: object) -> object:
        if isinstance(value, str):
            _amount(value, 0)
            return value
        raise RefusedError("is no amount of memory", 'write it so: "64 GiB", or "50%" of all')

    class Screen(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        theme: str | None = None
        bell: bool = False
        ascii: Annotated[Ascii, BeforeValidator(checked_ascii)] = "auto"

    class Box(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        max_sleeping_host_memory: Annotated[str, BeforeValidator(checked_amount)] = MOST_SLEEPING

    class File(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        screen: Screen = Screen()
        keys: dict[str, Annotated[tuple[str, ...], BeforeValidator(checked_keys)]] = {}
        box: Box = Box()

    data = {key: value for key, value in data.items() if key != "sets"}  # `backends.sets` reads those, and tells more
    if isinstance(data.get("keys"), dict):
        data = data | {"keys": _flat(data["keys"])}
    errors: list[Mapping[str, Any]] = []
    while True:
        try:
            file = File.model_validate(data)
        except ValidationError as wrong:
            found = wrong.errors()
            errors += found
            for error in found:
                _drop(data, error["loc"])
        else:
            break
    screen = ScreenSettings(file.screen.theme, file.screen.bell, file.screen.ascii)
    return screen, dict(file.keys), file.box.max_sleeping_host_memory, errors


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn `server.stop = "x"`, which TOML reads as tables within tables, into ids again."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _drop(data: dict[str, Any], path: tuple[int | str, ...]) -> None:
    """Take what is wrong out of a file's content; the first two parts of a path name it."""
    first = str(path[0])
    if len(path) > 1 and isinstance(data.get(first), dict):
        data[first].pop(path[1], None)
    else:
        data.pop(first, None)


def _problem(error: Mapping[str, Any], path: Path, text: str) -> ProfileProblem:
    where = tuple(str(part) for part in error["loc"][:2])
    kind = error["type"]
    tables = {"screen": ("theme", "bell", "ascii"), "box": ("max_sleeping_host_memory",)}
    known = ("screen", "keys", "box", "sets") if len(where) == 1 else tables.get(where[0], ())
    message, suggestion = str(error["msg"]), ""
    if isinstance(refused := error.get("ctx", {}).get("error"), RefusedError):
        message, suggestion = refused.message, refused.suggestion
    elif kind == "extra_forbidden":
        message = "no such key"
        suggestion = did_you_mean(where[-1], known, f"known are {', '.join(known)}")
    elif kind == "bool_type":
        message = "must be true or false"
    elif kind == "string_type":
        message, suggestion = "must be text", "in quotes"
    elif kind in ("model_type", "dict_type"):
        message, suggestion = "must be a table", f"[{where[0]}]"
    return ProfileProblem(_named(path), ".".join(where), message, suggestion, _line(text, where))


def _line(text: str, where: tuple[str, ...]) -> int | None:
    """Return the line of a key, an id with dots in it written with quotes or without."""
    if len(where) == 2 and where[0] == "keys" and "." in where[1]:
        parts = ["keys", *where[1].split(".")]
        plain = line_of(text, parts)
        if plain is not None and plain != line_of(text, parts[:1]):
            return plain
    return line_of(text, list(where))


def _named(path: Path | None) -> str:
    return path.name if path is not None else "config.toml"
