"""How a model shall choose its tokens: the settings of a conversation, checked as they are typed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from backends.errors import UsageError
from backends.snapshots import ModelKind

Value = float | int | bool | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is asked of the engine; None (or no `stop`) leaves it to the model's own defaults.

    `stop` are texts that end the answer. `thinking` switches a reasoning model's thoughts on or off through
    `chat_template_kwargs`; a template that knows no such switch ignores it.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    thinking: bool | None = None

    def body(self, kind: ModelKind) -> dict[str, object]:
        """Return the request's fields; what is not set is left out: not every engine takes a null."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
        body = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.stop:
            body["stop"] = list(self.stop)
        if self.thinking is not None and kind is not ModelKind.COMPLETION:
            # Qwen and most others say enable_thinking, DeepSeek and Granite thinking.
            body["chat_template_kwargs"] = {"enable_thinking": self.thinking, "thinking": self.thinking}
        return body

    def told(self) -> str:
        """Return what is not left to the model, as it would be typed: 'temperature=0.2 thinking=off'."""
        return " ".join(f"{name}={written(self, name)}" for name in SETTINGS if written(self, name))


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: what it does in a few words, what it may be, and how it is read."""

    about: str
    allowed: str
    read: Callable[[str], Value]


def _number(low: float, high: float, *, above: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not (low < value or (not above and value == low)) or value > high or not math.isfinite(value):
            raise ValueError(text)
        return value

    return read


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return read


_SWITCH = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
_ESCAPED = re.compile(r"\\[nt,\\]")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\,": ",", r"\\": "\\"}


def _switch(text: str) -> bool:
    try:
        return _SWITCH[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _texts(text: str) -> tuple[str, ...]:
    parts: list[str] = re.findall(r"(?:\\.|[^,\\]|\\$)+", text)
    texts = (_ESCAPED.sub(_unescaped, part.strip(" ")) for part in parts)
    return tuple(part for part in texts if part)


def _unescaped(found: re.Match[str]) -> str:
    return _ESCAPES[found[0]]


SETTINGS: dict[str, Setting] = {
    "temperature": Setting("0 always takes the likeliest token", "0 to 2", _number(0, 2)),
    "top_p": Setting("only the likeliest tokens that make up this part", "above 0, up to 1", _number(0, 1, above=True)),
    "top_k": Setting("only this many of the likeliest tokens", "0 (all) or more", _whole(0, 10_000_000)),
    "min_p": Setting("no token below this part of the likeliest", "0 to 1", _number(0, 1)),
    "repetition_penalty": Setting("above 1 it repeats itself less", "above 0, up to 10", _number(0, 10, above=True)),
    "max_tokens": Setting("the answer's length at most", "1 or more", _whole(1, 1 << 31)),
    "seed": Setting("the same seed, the same answer", "a whole number", _whole(-(1 << 63), (1 << 63) - 1)),
    "stop": Setting("the answer ends before any of these", r"texts, with commas between; \n is a new line", _texts),
    "thinking": Setting("whether a reasoning model thinks first", "on or off", _switch),
}
"""By name, in the order in which they are shown."""


def written(sampling: Sampling, name: str) -> str:
    """Return a setting as it is typed; empty where it is left to the model."""
    value = getattr(sampling, name)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        back = {text: escaped for escaped, text in _ESCAPES.items()}
        return ",".join(re.sub(r"[\n\t,\\]", lambda found: back[found[0]], text) for text in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def changed(sampling: Sampling, name: str, text: str) -> Sampling:
    """Return the settings with one as typed, an empty text for the model's own; raises UsageError."""
    setting = SETTINGS.get(name)
    if setting is None:
        raise UsageError(f"there is no setting {name!r}", f"there are {', '.join(SETTINGS)}")
    text = text.strip(" ")
    new: dict[str, Any] = {}
    if text:
        try:
            new[name] = setting.read(text)
        except ValueError:
            raise UsageError(f"{name} cannot be {text!r}", f"{setting.allowed}; nothing for the model's own") from None
    else:
        new[name] = next(field.default for field in fields(Sampling) if field.name == name)
    return replace(sampling, **new)


def assigned(sampling: Sampling, text: str) -> Sampling:
    """Return the settings with 'temperature=0.2 stop=END, FINE' laid over them; raises UsageError."""
    parts = re.split(r"\s+(?=\w+=)", text.strip())
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"what shall {part or 'it'} be?", "/set temperature=0.2")
        sampling = changed(sampling, name.strip(), value)
    return sampling
