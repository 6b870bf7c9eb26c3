"""Reads an engine's flags, as argparse and vLLM's own additions to it would, into a profile's `args`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from profiles.errors import RefusedError
from profiles.flags import (
    APPENDED,
    FLOATS,
    GONE_SWITCHES,
    JSON_LISTS,
    SHORT,
    TRANSFORMERS_SWITCHES,
    TRANSFORMERS_VALUED,
    VLLM_REPEATED,
    VLLM_SWITCHES,
    VLLM_VALUED,
)

_NUMBER = re.compile(r"-\d+|-\d*\.\d+(?:e[+-]?\d+)?", re.I)


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: `path` is its name in snake_case and what its dots reach into; no values for a switch."""

    path: tuple[str, ...]
    values: tuple[str, ...]
    on: bool = True


def read_flags(words: Sequence[str], engine: str) -> tuple[list[str], list[Flag]]:
    """Return the positional words and the flags of a command line; raises RefusedError where one cannot be read.

    A flag that is not known takes the words up to the next one: the engine may be newer than the list here.
    """
    one_value = VLLM_VALUED if engine == "vllm" else TRANSFORMERS_VALUED
    positional: list[str] = []
    flags: list[Flag] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not _is_flag(word):
            positional.append(word)
            continue
        name, equals, value = _long(word, rest).partition("=")
        head, *inner = name[2:].split(".")
        head = head.replace("-", "_")
        if not head:
            raise RefusedError(f"{word} is no flag")
        switches = VLLM_SWITCHES | GONE_SWITCHES if engine == "vllm" else TRANSFORMERS_SWITCHES
        if equals:
            values = [value]
        elif not inner and head.removeprefix("no_") in switches:
            values = []
        else:
            values = _values(rest, 1 if inner or head in one_value else None)
            if not values and head != "hf_token" and (inner or head in one_value or head in VLLM_REPEATED):
                raise RefusedError(f"{word} needs a value")
        if not values and head.startswith("no_"):
            flags.append(Flag((head.removeprefix("no_"),), (), on=False))
        else:
            flags.append(Flag((head, *inner), tuple(values)))
    return positional, flags


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word)


def _long(word: str, rest: list[str]) -> str:
    """Return a flag in its long form; `-O` takes a level, or (of old) a table."""
    if word.startswith("--"):
        return word
    short = re.split(r"[.=]", word, maxsplit=1)[0]
    if long := SHORT.get(short):
        return f"--{long}{word[len(short) :]}"
    if word.startswith("-O"):
        after = word[2:].lstrip("=") or (rest[0] if rest else "")
        if word == "-O":
            return "--optimization_level" if re.fullmatch(r"\d", after) else "--compilation_config"
        return f"--compilation_config{word[2:]}" if word[2] == "." else f"--optimization_level={after}"
    raise RefusedError(f"{word} is not a flag of vLLM that is known here", "write its long form")


def _values(rest: list[str], most: int | None) -> list[str]:
    values: list[str] = []
    while rest and (most is None or len(values) < most) and not _is_flag(rest[0]):
        values.append(rest.pop(0))
    return values


def add_argument(args: dict[str, Any], flag: Flag, expand: Callable[[str], str]) -> None:
    """Add what a flag says to `args`: a later one wins, dotted ones grow a table; raises RefusedError."""
    head, *inner = flag.path
    if inner:
        _add_inner(args, flag.path, _json(expand(flag.values[0])))
    elif not flag.values:
        args[head] = flag.on
    elif head in APPENDED:
        args[head] = [*args.get(head, ()), *(value_of(head, expand(value)) for value in flag.values)]
    elif head in VLLM_REPEATED or len(flag.values) > 1:
        args[head] = [value_of(head, expand(value)) for value in flag.values]
    else:
        args[head] = value_of(head, expand(flag.values[0]))


def _add_inner(args: dict[str, Any], path: Sequence[str], value: Any) -> None:
    last = path[-1]
    table = args
    for part in path[:-1]:
        inner = table.get(part)
        if not isinstance(inner, dict):
            table[part] = inner = {}
        table = inner
    if value is None:
        raise RefusedError(f"--{'.'.join(path)} null cannot be said in TOML", "leave it out")
    if last.endswith("+"):
        items = value if isinstance(value, list) else [_json(item) for item in str(value).split(",")]
        table[last[:-1]] = [*table.get(last[:-1], ()), *items]
    else:
        table[last] = value


def value_of(head: str, text: str) -> Any:
    """Read a flag's value: numbers and tables where writing them again gives the same text, or the same number."""
    if re.fullmatch(r"-?(?:0|[1-9]\d*)", text):
        return int(text) if text != "-0" else text
    if re.fullmatch(r"-?\d*\.?\d+(?:e[+-]?\d+)?", text, re.I) and (head in FLOATS or repr(float(text)) == text):
        return float(text)
    if text.lstrip().startswith("{") or (head in JSON_LISTS and text.lstrip().startswith("[")):
        value = _json(text)
        return value if _fits_toml(value) else text
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _fits_toml(value: Any) -> bool:
    match value:
        case None:
            return False
        case list():
            return all(_fits_toml(item) for item in value)
        case dict():
            return all(_fits_toml(item) for item in value.values())
    return True
