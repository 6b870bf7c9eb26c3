"""What a line of an engine's log is, once its wrapping is off: stamps, containers, journals, colours, process, level.

Nothing here knows of failures. vLLM's own prefixes have changed from version to version, so each is optional.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")
_WRAPPING = (
    re.compile(r"\[(?:pod|job|deployment|statefulset)/[^\]\s]+\] ?"),
    re.compile(r"(?:\| )?[\w.-]+\s+\| ?"),
    re.compile(
        r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?(?: (?:stdout|stderr) [FP])? (?!- )"
    ),
    re.compile(r"(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)? )?[\w.-]+ [\w@.:/-]+\[\d+\]: "),
)
"""kubectl --prefix, docker compose, a stamp (gpubox, docker -t, CRI, logger's), journald."""

_PROCESS = re.compile(
    r"\((?P<name>[A-Za-z_][\w .:/-]*?)?(?: (?:rank|local_rank|dp_rank)=\d+)* ?pid=(?P<pid>\d+)[^)]*\) ?"
)
_ELSEWHERE = re.compile(r"\((?:APIServer|EngineCore|Worker|VllmWorker|RayWorker)[\w =]* pid=\d+\)")
_FOREIGN_CELLS = 120
_LOGGING = re.compile(
    r"(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)? - )?(?P<source>[\w.]+) - "
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) - "
)
_RANK = re.compile(r"\[rank(?P<rank>\d+)\]: ")
_LEVEL = re.compile(
    r"(?P<level>TRACE|DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)? "
    r"(?:\[(?P<source>[^\]]+)\]|(?P<old_source>[\w./-]+:\d+)\]) ?"
)
_UVICORN = re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL):\s+")
_GROUP = re.compile(r"\s*(?:\| |\+-[-+ ]*(?=\S)|\|$)")
_ENGINE_NAME = re.compile(r"engine.?core|worker|^rank\d", re.I)
_API_NAME = re.compile(r"api.?server", re.I)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output: `number` counts from 1 in its file; `process` is empty where the line does not tell it.

    `level` and `source` (`core.py:123`) are those of a logger's line, and empty where no logger wrote it.
    """

    number: int
    text: str
    process: str = ""
    level: str = ""
    source: str = ""

    @property
    def stream(self) -> tuple[str, str]:
        """What tells the lines of one writer from those of others in between."""
        return self.process, self.source

    @property
    def is_logged(self) -> bool:
        """Whether a logger wrote it, uvicorn's included."""
        return bool(self.level)


def role_of(process: str) -> str:
    """Return `engine`, `api` or, where a process's name does not tell, an empty text."""
    if _API_NAME.search(process):
        return "api"
    return "engine" if _ENGINE_NAME.search(process) else ""


def read_line(number: int, raw: str) -> Iterator[Line]:
    """Take the wrapping off a raw line; one that rewrote itself in place (a progress bar) is several."""
    raw = _unwrapped(raw.rstrip("\r\n"))
    pieces = raw.split("\r") if "\r" in raw else [raw]
    for piece in pieces:
        for part in piece.split("\n"):
            if part.strip() or len(pieces) == 1:
                yield _plain(number, part)


def _unwrapped(raw: str) -> str:
    if raw.startswith('{"'):
        raw = _of_json(raw)
    raw = _CONTROL.sub(lambda found: "\r" if found[0] == "\r" else "", raw) if _CONTROL.search(raw) else raw
    for _ in range(4):
        for wrapping in _WRAPPING:
            if found := wrapping.match(raw):
                raw = raw[found.end() :]
                break
        else:
            break
    return raw


def _of_json(raw: str) -> str:
    """Return the text in a line of docker's json-file driver, or in a logger's JSON."""
    try:
        value = json.loads(raw)
    except ValueError:
        return raw
    for key in ("log", "message", "msg", "MESSAGE"):
        if isinstance(value, dict) and isinstance(text := value.get(key), str):
            return text.rstrip("\n").replace("\r\n", "\n")
    return raw


def _plain(number: int, text: str) -> Line:
    process = level = source = ""
    if not text.startswith("(") and (found := _ELSEWHERE.search(text, 0, _FOREIGN_CELLS)):
        text = text[found.start() :]  # Whoever ran the engine put something of its own before each line.
    while found := _PROCESS.match(text):
        process = f"{(found['name'] or '').strip()} {found['pid']}".strip()
        text = text[found.end() :]
    if found := _LEVEL.match(text):
        level, source = found["level"], found["source"] or found["old_source"] or ""
        text = text[found.end() :]
        while found := _PROCESS.match(text):
            process = f"{(found['name'] or '').strip()} {found['pid']}".strip()
            text = text[found.end() :]
    elif found := _LOGGING.match(text):
        level, source = found["level"], found["source"]
        text = text[found.end() :]
    elif found := _UVICORN.match(text):
        level, source = found["level"], "uvicorn"
        text = text[found.end() :]
    if found := _RANK.match(text):
        process = process or f"rank{found['rank']}"
        text = text[found.end() :]
    if text[:1] in (" ", "|", "+") and (found := _GROUP.match(text)):
        text = text[found.end() :]
    return Line(number, text.rstrip(), process, level, source)
