"""Reads `docker run`: what it says of the engine is taken over, what it says of the container is told as dropped."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from profiles.errors import RefusedError

_WITHOUT_VALUE = frozenset(
    ("detach", "interactive", "tty", "rm", "init", "privileged", "read-only", "publish-all", "no-healthcheck", "quiet")
)
_LONG = {"d": "detach", "i": "interactive", "t": "tty", "e": "env", "p": "publish", "v": "volume", "P": "publish-all"}
_SHORT_WITH_VALUE = frozenset("acehlmpuvw")


@dataclass(slots=True)
class Container:
    """What a `docker run` line says: words after the image, and what concerns the engine among its options."""

    image: str = ""
    words: list[str] = field(default_factory=list)
    environ: list[str] = field(default_factory=list)
    ports: list[tuple[str, str, str]] = field(default_factory=list)
    mounts: list[tuple[str, str]] = field(default_factory=list)
    gpus: str | None = None
    name: str | None = None
    restart: str | None = None
    entrypoint: str | None = None
    dropped: list[str] = field(default_factory=list)

    def on_host(self, path: str) -> str:
        """Return where a path of the container is on this box, or the path itself where nothing is mounted there."""
        for host, inside in sorted(self.mounts, key=lambda mount: -len(mount[1])):
            if path == inside or path.startswith(inside.rstrip("/") + "/"):
                return host.rstrip("/") + path[len(inside.rstrip("/")) :]
        return path

    def host_port(self, port: int) -> tuple[str | None, int | None]:
        """Return the address and port of this box that lead to a port of the container; no address means all."""
        for address, outside, inside in self.ports:
            if inside == str(port):
                return address or None, int(outside) if outside else None
        return None, None

    @property
    def on_host_network(self) -> bool:
        """Whether the container shares this box's addresses."""
        return any(option in self.dropped for option in ("--network host", "--net host"))


def read_container(words: Sequence[str], expand: Callable[[str], str]) -> Container:
    """Read the words after `docker run`; raises RefusedError where there is no image.

    Variables are expanded except among the environment and the engine's own words, where they may be keys.
    """
    container = Container()
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        for option, value in _options(word, rest):
            _take(container, option, value if option == "env" or value is None else expand(value))
    if not rest:
        raise RefusedError("docker run names no image")
    container.image, *container.words = rest
    return container


def _options(word: str, rest: list[str]) -> list[tuple[str, str | None]]:
    """Return the options of one word: `--name x`, `--name=x`, `-it`, `-p8000:8000`."""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        if equals:
            return [(name, value)]
        return [(name, None if name in _WITHOUT_VALUE else _next(word, rest))]
    options: list[tuple[str, str | None]] = []
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        name = _LONG.get(letter, letter)
        if letter in _SHORT_WITH_VALUE:
            return [*options, (name, letters.removeprefix("=") or _next(word, rest))]
        options.append((name, None))
    return options


def _next(word: str, rest: list[str]) -> str:
    if not rest:
        raise RefusedError(f"{word} needs a value")
    return rest.pop(0)


def _take(container: Container, option: str, value: str | None) -> None:
    match option, value:
        case "env", str():
            container.environ.append(value)
        case "publish", str():
            address, outside, inside = _port(value)
            container.ports.append((address, outside, inside))
        case (("volume" | "mount"), str()):
            container.mounts.append(_mount(value))
        case "gpus", str():
            container.gpus = value
        case "name", str():
            container.name = value
        case "restart", str():
            container.restart = value
        case "entrypoint", str():
            container.entrypoint = value
        case "env-file", str():
            raise RefusedError(f"--env-file {value} is not read", "write its variables as -e NAME=VALUE")
        case (("detach" | "interactive" | "tty" | "rm"), None):
            pass
        case _:
            dash = "--" if len(option) > 1 else "-"
            container.dropped.append(f"{dash}{option}" + (f" {value}" if value is not None else ""))


def _port(text: str) -> tuple[str, str, str]:
    """Return address, port outside and port inside of `[[address:]outside:]inside[/tcp]`."""
    match = re.fullmatch(r"(?:(?:\[?(?P<address>[^\]]*?)\]?:)?(?P<outside>\d*):)?(?P<inside>\d+)(?:/tcp)?", text)
    if match is None:
        raise RefusedError(f"-p {text} is not HOST:CONTAINER", "write one port, such as -p 8000:8000")
    return match["address"] or "", match["outside"] or "", match["inside"]


def _mount(text: str) -> tuple[str, str]:
    """Return host and container path of `-v host:container[:ro]` or `--mount source=…,target=…`."""
    if "=" in text and "," in text:
        parts = dict(part.partition("=")[::2] for part in text.split(","))
        host, inside = parts.get("source", parts.get("src", "")), parts.get("target", parts.get("dst", ""))
    else:
        host, _, rest = text.partition(":")
        inside = rest.partition(":")[0]
    if not host or not inside:
        raise RefusedError(f"-v {text} is not HOST:CONTAINER")
    return host, inside
