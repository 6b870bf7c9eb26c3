"""What every engine must be able to tell gpubox: how to start it, when it is ready, what its log says it is doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from backends.snapshots import ModelKind
from backends.starts import StageTime

if TYPE_CHECKING:
    from profiles.schema import Profile

SCRAPE_MARK = "by=gpubox"
"""Query string of every request gpubox itself makes, so that the shim can keep them out of the log."""

ENGINE_LABEL = "boot"
"""The label of a launch's last step, which is the engine itself."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a launch; its label is the stage that is shown while it runs."""

    label: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: steps (the last is the engine) and what to add to the environment."""

    steps: tuple[Step, ...]
    environ: dict[str, str]


@dataclass(frozen=True, slots=True)
class Placement:
    """What the keeper decided: GPU indices (empty on the CPU) and the port; `environ` is that of whoever asked.

    With `uds`, a socket's path, the engine listens there: `port` is that of the front before it.
    """

    gpu_indices: tuple[int, ...]
    port: int
    environ: Mapping[str, str]
    uds: str | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """An engine's own answer: whether it serves, and what it says of itself (None where it does not say)."""

    ready: bool
    reason: str
    kind: ModelKind = ModelKind.UNKNOWN
    version: str | None = None
    max_model_len: int | None = None
    sleeping: bool = False


@dataclass(frozen=True, slots=True)
class StageMark:
    """A line of the log that tells where a start is: the stage's name, and progress within it where it is told.

    `compile_cached` and `version` (the engine's) are told by some lines; `before` is a stage that such a line tells of
    only once it is over.
    """

    name: str
    progress: float | None = None
    detail: str = ""
    compile_cached: bool | None = None
    version: str | None = None
    before: StageTime | None = None


class HttpGet(Protocol):
    """An asynchronous HTTP door to one engine: returns status and body, raises OSError where nothing answers."""

    async def get(self, path: str) -> tuple[int, bytes]:
        """GET `path`."""
        ...

    async def post(self, path: str, body: object, *, timeout_s: float | None = None) -> tuple[int, bytes]:
        """POST `body` as JSON to `path`; `timeout_s` is for an answer that may take longer than usual."""
        ...


class Engine(Protocol):
    """A program that serves a model."""

    name: str
    metrics_path: str | None
    stages: Sequence[str]

    def model_name(self, profile: Profile) -> str:
        """Return the name that requests must give for the model."""
        ...

    def can_sleep(self, profile: Profile) -> bool:
        """Whether a server of `profile` can be put to sleep (`backends.engines.sleeping`): it needs a socket then."""
        ...

    def plan(self, profile: Profile, placement: Placement) -> Plan:
        """Return the commands and environment that serve `profile`; raises ProfileError where it cannot be served."""
        ...

    def mark(self, line: str) -> StageMark | None:
        """Return what a line of the engine's log says of the start's progress, if anything."""
        ...

    async def probe(self, http: HttpGet, model_name: str) -> Readiness:
        """Ask the engine itself whether it is ready."""
        ...
