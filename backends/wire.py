"""Reading what the keeper sends, without pydantic: building its validators takes 0.1 s, which every command would pay.

The keeper is our own, so values are taken as they come; only shapes are told apart. Keys from the future are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Reader = Callable[[Any], Any]


class WireError(ValueError):
    """What came over the socket is not what was asked for: the keeper is of another version."""


def read_as(kind: Any, data: bytes | str) -> Any:
    """Turn JSON into a `kind`: a frozen dataclass, a tuple of them, or one of a union of them; raises WireError."""
    try:
        return _reader(kind)(json.loads(data))
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise WireError(f"the keeper sent something else: {problem!r}") from problem


@cache
def _reader(kind: Any) -> Reader:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _union_reader(args)
    if origin is tuple:
        read_one = _reader(args[0])
        return lambda value: tuple(read_one(one) for one in value)
    if origin is dict:
        read_one = _reader(args[1])
        return lambda value: {key: read_one(one) for key, one in value.items()}
    if is_dataclass(kind):
        return _dataclass_reader(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind
    return lambda value: value


def _dataclass_reader(kind: Any) -> Reader:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind)}
    return lambda value: kind(**{key: readers[key](one) for key, one in value.items() if key in readers})


def _union_reader(members: tuple[Any, ...]) -> Reader:
    """Tell members apart: an object is the dataclass that has its `type`, or the first whose keys are all there."""
    classes: list[Any] = [member for member in members if is_dataclass(member)]
    others = [_reader(member) for member in members if member is not NoneType and member not in classes]
    otherwise: Reader = others[0] if others else _unknown
    tagged = {tag: _reader(one) for one in classes if (tag := _tag(one)) is not None}
    by_keys = [(_required(one), _reader(one)) for one in classes]

    def read_one(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, dict) and classes:
            if value.get("type") in tagged:
                return tagged[value["type"]](value)
            fitting = (reader for needed, reader in by_keys if needed <= value.keys())
            return next(fitting, otherwise)(value)
        return otherwise(value)

    return read_one


def _unknown(value: Any) -> Any:
    raise TypeError(f"neither shape fits {value!r:.100}")


def _tag(kind: Any) -> str | None:
    hint = get_type_hints(kind).get("type")
    return get_args(hint)[0] if get_origin(hint) is Literal else None


def _required(kind: Any) -> set[str]:
    return {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}
