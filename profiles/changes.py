"""Changing single keys of a profile: in its data, and in its TOML with comments and order kept.

A change is a dotted key (`args.max_model_len`, `port`) and its new value; None removes the key.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

from profiles.lines import line_of

_HEADER = re.compile(r"\s*\[")


def changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a profile's content with changes made; `max-model-len` and `max_model_len` are one argument."""
    result = copy.deepcopy(dict(data))
    for dotted, value in changes.items():
        table_name, _, key = dotted.rpartition(".")
        table = result.setdefault(table_name, {}) if table_name else result
        key = _spelled(table, key, table_name)
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
        if table_name and not table:
            del result[table_name]
    return result


def changed_text(text: str, changes: Mapping[str, Any]) -> str:
    """Return a profile's TOML with changes made, comments and order as they were.

    Where a text is written in a way that cannot be edited line by line, it is written anew, without its comments.
    Raises tomllib.TOMLDecodeError where the text is no TOML.
    """
    data = tomllib.loads(text)
    wanted = _without_empty(changed(data, changes))
    lines = text.split("\n")
    edited = ""
    try:
        for dotted, value in changes.items():
            _edit(lines, dotted, value)
        edited = "\n".join(lines)
        done = _without_empty(tomllib.loads(edited)) == wanted
    except ValueError:
        done = False
    return edited if done else tomli_w.dumps(wanted)


def differences(data: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return what turns a profile's content into another, as changes."""
    mine, its = _flat(data), _flat(other)
    found = {key: value for key, value in its.items() if key not in mine or mine[key] != value}
    return found | {key: None for key in mine if key not in its}


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner.replace('-', '_') if key == 'args' else inner}": v for inner, v in value.items()}
        else:
            flat[key] = value
    return flat


def _without_empty(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value != {}}


def _spelled(table: Mapping[str, Any], key: str, table_name: str) -> str:
    """Return a key as the table spells it."""
    if table_name != "args":
        return key
    return next((there for there in table if there.replace("-", "_") == key), key)


def _edit(lines: list[str], dotted: str, value: Any) -> None:
    """Change, remove or add one key in a text's lines."""
    text = "\n".join(lines)
    data = tomllib.loads(text)
    table_name, _, name = dotted.rpartition(".")
    table = data.get(table_name, {}) if table_name else data
    key = _spelled(table, name, table_name)
    path = [table_name, key] if table_name else [key]
    if key in table:
        first = (line_of(text, path) or 1) - 1
        if not re.match(rf"\s*(?:[\w.-]+\s*\.\s*)?[\"']?{re.escape(key)}[\"']?\s*=", lines[first]):
            raise ValueError(f"{dotted} has no line of its own")
        last = _last_line(lines, first)
        if value is None:
            del lines[first : last + 1]
        else:
            comment = _comment_of(lines[first]) if first == last else ""
            lines[first : last + 1] = [f"{lines[first].partition('=')[0].rstrip()} = {_toml(value)}{comment}"]
    elif value is not None:
        _add(lines, table_name, f"{key} = {_toml(value)}")


def _last_line(lines: list[str], first: int) -> int:
    """Return where the value ends that begins at a line: the first line up to which all is TOML."""
    for last in range(first, len(lines)):
        try:
            tomllib.loads("\n".join(lines[first : last + 1]))
        except tomllib.TOMLDecodeError:
            continue
        return last
    return first


def _comment_of(line: str) -> str:
    """Return a line's comment with the blanks before it; a '#' within text is none."""
    whole = tomllib.loads(line)
    for found in re.finditer(r"\s*#", line):
        try:
            if tomllib.loads(line[: found.start()]) == whole:
                return line[found.start() :]
        except tomllib.TOMLDecodeError:
            continue
    return ""


def _add(lines: list[str], table_name: str, line: str) -> None:
    """Add a line to a table after its last one; where there is no such table, make it."""
    headers = [at for at, text in enumerate(lines) if _HEADER.match(text) and _is_outside_text(lines, at)]
    start = -1
    if table_name:
        own = (at for at in headers if re.match(rf"\s*\[\s*{re.escape(table_name)}\s*\]", lines[at]))
        found = next(own, None)
        if found is None:
            while lines and not lines[-1].strip():
                lines.pop()
            lines += ["", f"[{table_name}]", line, ""]
            return
        start = found
    end = next((at for at in headers if at > start), len(lines))
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    lines.insert(end, line)


def _is_outside_text(lines: list[str], at: int) -> bool:
    """Whether what comes before a line is whole: no value of several lines is open there."""
    try:
        tomllib.loads("\n".join(lines[:at]))
    except tomllib.TOMLDecodeError:
        return False
    return True


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return tomli_w.dumps({"v": value}).partition(" = ")[2].strip()
