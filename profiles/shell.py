"""Reads shell text into commands: quotes, continuations, operators, redirections; nothing is run.

In a word, a variable or a command substitution that the shell would replace is kept apart from text that only looks
like one (in single quotes): between marks, until `expand` or `reference` says what becomes of it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from profiles.errors import RefusedError
from profiles.secrets import looks_secret

_VARIABLE, _COMMAND, _BARE = "\x00", "\x01", "\x02"
_MARKED = re.compile("[\x00\x02]([^\x00\x02]*)[\x00\x02]|\x01([^\x01]*)\x01")

_TOKEN = re.compile(
    r"""
      (?P<blank>(?:[ \t\r]|\\\r?\n)+)
    | (?P<comment>\#[^\n]*)
    | (?P<redirection>(?:\d+|&)?(?:>>|>\||<|>)(?:&(?:\d+|-)|(?P<target>&?))(?![<(]))
    | (?P<operator>&&|\|\||[;&|\n()])
    | (?P<word>(?:
          '[^']*'
        | "(?:[^"\\$]|\\.|\$\([^()]*\)|\$)*"
        | \\.
        | \$\([^()]*\)
        | \$\{[^}]*\}
        | `[^`]*`
        | [^ \t\r\n'"\\;&|<>()`]
      )+)
    """,
    re.VERBOSE | re.DOTALL,
)

_REPLACED = r"""
    | \\(?P<escaped>.)
    | \$\((?P<command>[^()]*)\)
    | \$(?:\{(?P<braced>[^}]*)\}|(?P<variable>\w+|[@*?\#$!-]))
    | `(?P<ticks>[^`]*)`
    | (?P<bare>.)
"""
_PIECE = re.compile(
    r"""'(?P<literal>[^']*)' | "(?P<quoted>(?:[^"\\$]|\\.|\$\([^()]*\)|\$)*)" """ + _REPLACED, re.VERBOSE | re.DOTALL
)
_PIECE_IN_QUOTES = re.compile(_REPLACED.replace("|", "", 1), re.VERBOSE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    """One simple command; `dropped` are its redirections and its `&`, which say nothing of what is run."""

    words: tuple[str, ...]
    dropped: tuple[str, ...]


def split(text: str) -> list[Command]:
    """Return the simple commands of a shell text, in order; raises RefusedError where a quote is not closed."""
    text = text.lstrip().removeprefix("$ ").translate({0: None, 1: None, 2: None})
    commands: list[Command] = []
    words: list[str] = []
    dropped: list[str] = []
    awaits_target = False

    def end() -> None:
        if words:
            commands.append(Command(tuple(words), tuple(dropped)))
        words.clear()
        dropped.clear()

    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise RefusedError(f"cannot be read from {text[position : position + 20]!r} on", "is a quote not closed?")
        position = token.end()
        match token.lastgroup:
            case "redirection" | "target":
                dropped.append(token[0])
                awaits_target = token["target"] is not None
            case "operator":
                if token[0] == "&":
                    dropped.append("&")
                end()
            case "word" if awaits_target:
                dropped[-1] += f" {token[0]}"
                awaits_target = False
            case "word":
                words.append(_marked(token[0]))
    end()
    return commands


def _marked(word: str) -> str:
    """Take quotes off, and set marks around what the shell would replace."""
    assignment = re.match(r"\w+=", word)
    home = assignment.end() if assignment else 0
    if re.match(r"~(?:/|$)", word[home:]):
        word = f"{word[:home]}${{HOME}}{word[home + 1 :]}"
    return "".join(_mark(piece, in_quotes=False) for piece in _PIECE.finditer(word))


def _mark(piece: re.Match[str], *, in_quotes: bool) -> str:
    match piece.lastgroup:
        case "quoted":
            return "".join(_mark(inner, in_quotes=True) for inner in _PIECE_IN_QUOTES.finditer(piece["quoted"]))
        case "escaped" if piece["escaped"] == "\n":
            return ""
        case "escaped" if in_quotes and piece["escaped"] not in '"\\$`':
            return piece[0]
        case "command" | "ticks":
            return f"{_COMMAND}{piece[piece.lastgroup]}{_COMMAND}"
        case "variable" | "braced":
            mark = _VARIABLE if in_quotes else _BARE
            return f"{mark}{piece[piece.lastgroup]}{mark}"
        case group:
            return piece[group or 0]


def as_written(word: str) -> str:
    """Return a word with its marks turned back into `$NAME` and `$(…)`, for messages."""
    return _MARKED.sub(lambda mark: f"${mark[1]}" if mark[1] is not None else f"$({mark[2]})", word)


def variable(name: str) -> str:
    """Return the word that `$NAME` is read as."""
    return f"{_VARIABLE}{name}{_VARIABLE}"


def fields(word: str, known: Mapping[str, str]) -> list[str]:
    """Return the words that a variable without quotes gives (`$ARGS`); any other word stays as it is."""
    mark = _MARKED.fullmatch(word)
    name = str(mark[1]) if mark and word.startswith(_BARE) else ""
    return known[name].split() if name in known and not looks_secret(name, "") else [word]


def reference(word: str) -> str | None:
    """Return `env:NAME` or `file:/path` for a word that is nothing but `$NAME` or `$(cat /path)`, else None."""
    mark = _MARKED.fullmatch(word)
    if mark is None:
        return None
    if mark[1] is not None:
        name = mark[1].partition(":")[0]
        return f"env:{name}" if re.fullmatch(r"[A-Za-z_]\w*", name) else None
    read = re.match(r"\s*(?:cat\s|<)\s*(.+)", mark[2])
    paths = shlex.split(read[1]) if read else []
    return f"file:{paths[0]}" if len(paths) == 1 and paths[0].startswith(("/", "~")) else None


def expand(word: str, known: Mapping[str, str]) -> str:
    """Replace a word's variables; raises RefusedError where one is not known, or is a key."""

    def value(mark: re.Match[str]) -> str:
        if mark[1] is None:
            raise RefusedError(f"$({mark[2]}) cannot be known here", "write what it gives")
        name, _, default = mark[1].partition(":-")
        if looks_secret(name, ""):
            raise RefusedError(f"${name} is a key by its name, and profiles hold no keys", "leave it out")
        if name in known:
            return known[name]
        if ":-" in mark[1]:
            return default
        raise RefusedError(f"${name} is not set", "write its value")

    return _MARKED.sub(value, word)
