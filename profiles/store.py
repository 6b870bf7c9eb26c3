"""Where profiles are: the folder that `--profile-dir` names, the user's own, and the library shipped with the product.

A profile's name is its file's: NAME.toml. Of two with one name, the first in that order counts.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from profiles.errors import InvalidProfileError, ProfileProblem, did_you_mean
from profiles.lines import line_of
from profiles.schema import NAME, Profile, parse_profile

LIBRARY = Path(__file__).parent / "library"

Origin = Literal["folder", "user", "library"]


@dataclass(frozen=True, slots=True)
class Place:
    """A folder of profiles: one that was named, the user's own, or the library."""

    origin: Origin
    folder: Path


@dataclass(frozen=True, slots=True)
class LoadedProfile:
    """A profile, what its file says (`data`, its name included), and where that is; `digest` is the text's SHA-256."""

    profile: Profile
    data: dict[str, Any]
    path: Path
    origin: Origin
    text: str
    digest: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the list: a profile, or why it (or a whole folder) cannot be used."""

    name: str
    path: Path
    origin: Origin
    profile: Profile | None
    problems: tuple[ProfileProblem, ...] = ()


class Store:
    """The profiles of some places, in the order in which they are searched."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)

    def entries(self) -> tuple[Entry, ...]:
        """Return all profiles, by place and name; broken ones and unreadable folders with their problems."""
        rows: list[Entry] = []
        seen: set[str] = set()
        for place in self.places:
            try:
                paths = _profile_files(place)
            except OSError as problem:
                what = ProfileProblem(
                    str(place.folder), "", f"cannot be listed: {problem.strerror}", "correct its path or mode"
                )
                rows.append(Entry(str(place.folder), place.folder, place.origin, None, (what,)))
                continue
            for path in paths:
                if path.stem not in seen:
                    seen.add(path.stem)
                    rows.append(_entry(path, place.origin))
        return tuple(rows)

    def load(self, name: str) -> LoadedProfile:
        """Return the profile of that name, or the one in that file where `name` is a path.

        Raises InvalidProfileError where there is none (with the nearest name), or where it is broken.
        """
        if "/" in name or name.endswith(".toml"):
            return read_profile(Path(name).expanduser(), "folder")
        path, origin = self.find(name)
        return read_profile(path, origin)

    def write(self, profile: Profile, *, overwrite: bool = False) -> Path:
        """Write a profile as `write_text` does."""
        return self.write_text(profile.name, to_toml(profile), overwrite=overwrite)

    def write_text(self, name: str, text: str, *, overwrite: bool = False) -> Path:
        """Write a profile's text, comments and all, if it is valid, and return its path: that of `target`.

        A new file has mode 0600; one in a folder that was named keeps its own, since others may read it there.
        Raises InvalidProfileError, and OSError where it cannot be written.
        """
        path = self.target(name)
        if _is_there(path) and not overwrite:
            raise _refused(str(path), "is there already", "choose another name, or edit it")
        parse_text(text, path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_users = any(place.origin == "user" and place.folder == path.parent for place in self.places)
        _write_atomically(path, text, 0o600 if is_users else None)
        return path

    def target(self, name: str) -> Path:
        """Return where a profile of that name is written: over the one that is there, else in the first place.

        Raises InvalidProfileError where it cannot be a name, or where there is only the library.
        """
        if not NAME.fullmatch(name):
            raise _refused(repr(name), "cannot be a name", "use a-z, 0-9, '.', '_' and '-'")
        paths = [place.folder / f"{name}.toml" for place in self.places if place.origin != "library"]
        if not paths:
            raise _refused(name, "cannot be written: there is only the library", "give --profile-dir")
        return next((path for path in paths if _is_there(path)), paths[0])

    def copy(self, name: str, new_name: str) -> Path:
        """Write the profile `name`, comments and all, under another name; a broken one is copied no further."""
        source = self.load(name)
        return self.write_text(new_name, renamed(source.text, new_name))

    def rename(self, name: str, new_name: str) -> Path:
        """Give one's own profile, broken or not, another name, and return its new path; raises as `write_text` does.

        The old file goes only once the new one is there.
        """
        path, origin = self.find(name)
        if origin == "library":
            raise _refused(name, "belongs to the library and keeps its name", "copy it under another one")
        if not NAME.fullmatch(new_name):
            raise _refused(repr(new_name), "cannot be a name", "use a-z, 0-9, '.', '_' and '-'")
        new_path = path.with_name(f"{new_name}.toml")
        if os.path.lexists(new_path):
            raise _refused(str(new_path), "is there already", "choose another name")
        content = path.read_bytes()
        try:
            text = renamed(content.decode(), new_name)
        except ValueError:
            path.rename(new_path)
            return new_path
        _write_atomically(new_path, text, stat.S_IMODE(path.stat().st_mode))
        path.unlink()
        return new_path

    def remove(self, name: str) -> Path:
        """Delete a profile's file, broken or not, and return its path; those of the library stay."""
        path, origin = self.find(name)
        if origin == "library":
            raise _refused(name, "belongs to the library and cannot be removed", "your own of that name hides it")
        path.unlink()
        return path

    def find(self, name: str) -> tuple[Path, Origin]:
        """Return the file of that name's profile, broken or not; raises InvalidProfileError where there is none."""
        for place in self.places:
            path = place.folder / f"{name}.toml"
            if NAME.fullmatch(name) and _is_there(path):
                return path, place.origin
        known = [entry.name for entry in self.entries()]
        raise _refused(name, "no such profile", did_you_mean(name, known, "gpubox profiles list shows them"))


def read_profile(path: Path, origin: Origin) -> LoadedProfile:
    """Read and check one file; raises InvalidProfileError with every problem."""
    try:
        content = path.read_bytes()
        text = content.decode()
    except OSError as problem:
        raise _refused(str(path), f"cannot be read: {problem.strerror}", "correct its path or mode") from None
    except UnicodeDecodeError as problem:
        raise _refused(str(path), f"is not UTF-8 (byte {problem.start})", "save it as UTF-8") from None
    profile, data = parse_text(text, path)
    return LoadedProfile(profile, data, path, origin, text, digest_of(text))


def digest_of(text: str) -> str:
    """Return the SHA-256 of a profile's text, as hex: two files say the same where it is the same."""
    return hashlib.sha256(text.encode()).hexdigest()


def parse_text(text: str, path: Path) -> tuple[Profile, dict[str, Any]]:
    """Check a profile's TOML as if it stood in `path`, whose stem is its name; raises InvalidProfileError."""
    where = str(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        message, _, place = str(problem).partition(" (at ")
        line = re.match(r"line (\d+)", place)
        number = int(line[1]) if line else text.count("\n") + 1
        raise InvalidProfileError([ProfileProblem(where, "", message, "correct the TOML", number)]) from None
    name = path.name.removesuffix(".toml")
    if data.get("name", name) != name and isinstance(data["name"], str):
        message = f'is "{data["name"]}", but the file is called {path.name}'
        problem_line = line_of(text, ["name"])
        raise InvalidProfileError([ProfileProblem(where, "name", message, "delete the line", problem_line)])
    data = {"name": name} | data
    return parse_profile(data, where, text), data


def to_toml(profile: Profile) -> str:
    """Return a profile as TOML: what was set, nothing else."""
    data = profile.model_dump(exclude_unset=True)
    first = ("name", "description", "engine", "model", "source", "hub_endpoint", "served_name", "gpus")
    return tomli_w.dumps({key: data[key] for key in (*first, *data) if key in data})


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _profile_files(place: Place) -> list[Path]:
    """Return a place's files by name; only a folder that was named must be there. Raises OSError."""
    try:
        return sorted(path for path in place.folder.iterdir() if path.suffix == ".toml" and path.name[0] != ".")
    except FileNotFoundError:
        if place.origin == "folder":
            raise
        return []


def _entry(path: Path, origin: Origin) -> Entry:
    try:
        return Entry(path.stem, path, origin, read_profile(path, origin).profile)
    except InvalidProfileError as wrong:
        return Entry(path.stem, path, origin, None, wrong.problems)


def renamed(text: str, name: str) -> str:
    """Return a profile's text with the name that it says, if it says one, replaced; raises TOMLDecodeError."""
    if "name" not in tomllib.loads(text):
        return text
    lines = text.split("\n")
    lines[(line_of(text, ["name"]) or 1) - 1] = f'name = "{name}"'
    return "\n".join(lines)


def _write_atomically(path: Path, text: str, mode: int | None) -> None:
    """Write beside the file (that a link points to), flush, rename: readers see the old text or the new one, whole.

    Without a `mode` a file that is there keeps its own, and a new one has 0600.
    """
    path = path.resolve()
    if mode is None:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refused(where: str, message: str, suggestion: str) -> InvalidProfileError:
    return InvalidProfileError([ProfileProblem(where, "", message, suggestion)])
