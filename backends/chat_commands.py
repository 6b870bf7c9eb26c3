"""What can be typed after a slash instead of a question, and what is said while it is typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.chat_files import KINDS
from backends.chat_settings import SETTINGS, Sampling, assigned, written
from backends.errors import GpuboxError, UsageError

COMMANDS = {
    "image": ("PATH", "put a picture to the next question; no path takes it back"),
    "system": ("TEXT", "the system prompt; no text for none"),
    "set": ("NAME=VALUE", "temperature, top_p, max_tokens, thinking …; nothing for the model's own"),
    "save": ("md|jsonl", "save the conversation to a file"),
    "new": ("", "begin a new conversation"),
    "help": ("", "show these commands"),
}
"""By name: what follows it, and what it does."""

_COMMAND = re.compile(r"/([a-z]*)(?:[ \t]+(.*)|)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    """A command as typed: one of COMMANDS, and what follows it."""

    name: str
    rest: str = ""


def parsed(text: str) -> Command | None:
    """Return the command that a text is, None for a question; raises UsageError for a command that there is not.

    A path (`/etc/hosts says …`), a text of several lines that begins otherwise, and a text after a space are
    questions.
    """
    match = _COMMAND.match(text.rstrip())
    if match is None:
        return None
    name, rest = match[1], (match[2] or "").strip()
    if name not in COMMANDS:
        near = [one for one in COMMANDS if name and one.startswith(name)]
        if len(near) != 1:
            hint = f"there are {', '.join(f'/{one}' for one in COMMANDS)}; a space before it makes a question of it"
            raise UsageError(f"there is no command /{name}", hint)
        name = near[0]
    return Command(name, rest)


def hints(text: str, sampling: Sampling) -> list[tuple[str, str]]:
    """Return what can follow what is typed, each with what it does; a wrong setting says what is wrong with it.

    Empty where no command is being typed.
    """
    match = _COMMAND.match(text)
    if match is None:
        return []
    name, rest = match[1], match[2]
    if rest is None:
        found = [one for one in COMMANDS if one.startswith(name)]
        return [(f"/{one} {COMMANDS[one][0]}".rstrip(), COMMANDS[one][1]) for one in found]
    if name == "set":
        return _of_settings(rest, sampling)
    return [(f"/{name} {COMMANDS[name][0]}".rstrip(), COMMANDS[name][1])] if name in COMMANDS else []


def _of_settings(rest: str, sampling: Sampling) -> list[tuple[str, str]]:
    last = re.split(r"\s+(?=\w*$|\w+=)", rest)[-1]
    name, equals, _ = last.partition("=")
    if not equals:
        return [
            (f"{one}={written(sampling, one)}", f"{setting.about} ({setting.allowed})")
            for one, setting in SETTINGS.items()
            if one.startswith(name.strip())
        ]
    try:
        assigned(sampling, rest)
    except GpuboxError as problem:
        return [(f"✗ {problem.message}", problem.hint)]
    setting = SETTINGS[name.strip()]
    return [(f"✓ {last.strip()}", f"{setting.about} ({setting.allowed})")]


def completed(text: str) -> str:
    """Return the text with what is being typed completed as far as there is no choice; the same where there is one.

    It looks at folders for `/image`: call it off the event loop.
    """
    match = _COMMAND.match(text)
    if match is None:
        return text
    name, rest = match[1], match[2]
    if rest is None:
        found = [one for one in COMMANDS if one.startswith(name)]
        if len(found) == 1:
            return f"/{found[0]} " if COMMANDS[found[0]][0] else f"/{found[0]}"
        return f"/{_common(found)}" if found else text
    if name == "set":
        return _ended(text, re.split(r"\s+", rest)[-1], [f"{one}=" for one in SETTINGS])
    if name == "save":
        return _ended(text, rest, list(KINDS))
    if name == "image" and rest:
        return _ended(text, rest, _paths(rest))
    return text


def _ended(text: str, typed: str, words: Sequence[str]) -> str:
    found = [word for word in words if word.startswith(typed)]
    return text[: len(text) - len(typed)] + _common(found) if found else text


def _paths(typed: str) -> list[str]:
    folder, _, begun = typed.rpartition("/")
    place = Path(f"{folder}/" if folder or typed.startswith("/") else ".").expanduser()
    before = typed[: len(typed) - len(begun)]
    try:
        with_names = [(one.name, one.is_dir()) for one in place.iterdir()]
    except (OSError, RuntimeError):
        return []
    shown = [(name, folder) for name, folder in with_names if begun.startswith(".") or not name.startswith(".")]
    return [f"{before}{name}{'/' if folder else ''}" for name, folder in shown]


def _common(words: Sequence[str]) -> str:
    """Return what all words begin with."""
    low, high = min(words), max(words)
    same = next((at for at, letter in enumerate(low) if high[at : at + 1] != letter), len(low))
    return low[:same]
