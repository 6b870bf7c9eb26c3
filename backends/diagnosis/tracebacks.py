"""Tracebacks in a stream of lines: who raised what first, told apart by process though several write at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from backends.diagnosis.lines import Line, role_of

Phase = Literal["load", "warm-up", "use"]

LONGEST_TEXT = 4000
MOST_FRAMES = 60
MOST_MESSAGE_LINES = 40
MOST_STREAMS = 256
PATIENCE_LINES = 400

_BEGIN = re.compile(r"^(?P<indent>\s*)(?P<before>.*?)Traceback \(most recent call last\)")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<function>.+))?')
_CHAINED = re.compile(r"The above exception was the direct cause|During handling of the above exception")
_EXCEPTION = re.compile(r"(?P<type>[A-Za-z_][\w.]*(?:\[[^\]]*\])?)(?::(?: (?P<message>.*))?)?$")
_BARE = re.compile(
    r"(?P<type>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Failure)|Exception): (?P<message>.+)$"
)
_SCRAPS = re.compile(r"\[Previous line repeated|[\^~]+$|\.\.\.$|<\d+ lines omitted>|\s*$")
_OVER = re.compile(
    r"Process \S+:$|\[rank|\[[WEF]\d|usage: |INFO|WARNING|ERROR|CRITICAL|/\S+\.py:\d+: |Exception ignored|gpubox: |"
    r"Exception in thread|Loading .*Completed|sys:1: |\s*warnings\.warn\("
)
_FATAL = re.compile(
    r"failed to start|hit an exception|fatal error|^Process \S+:|engine is dead|terminated|died|Engine loop|"
    r"background loop|WorkerProc|initialization failed|Exception in worker|Error executing method"
)
_SOFT = re.compile(
    r"in ASGI application|Exception ignored|never retrieved|Invocation of|output_handler failed|Error parsing config|"
    r"Error in inspecting|in preprocessing|Error retrieving|Error in (?:chat|completion)|exception calling callback"
)
_ENGINE_SOURCE = re.compile(
    r"^(?:core|multiproc_executor|multiproc_worker_utils|gpu_worker|cpu_worker|worker_base|worker|gpu_model_runner|"
    r"model_runner|ray_\w+|engine)\.py:"
)
_ENGINE_FRAME = re.compile(r"v1/engine/core\.py|v1/executor/|/worker/|multiprocessing/engine\.py|/model_executor/")
_API_FRAME = re.compile(r"v1/engine/(?:core_client|async_llm|utils)\.py|engine/arg_utils\.py|uvicorn/|starlette/")

_WRAPPER = re.compile(
    r"See (?:root cause|stack trace)|Engine core initialization failed|WorkerProc initialization failed|"
    r"Worker failed with error|Engine process failed to start|EngineCore encountered an issue|EngineDeadError|"
    r"Background loop (?:has errored|is not running)|failed to be inspected\. Please check the logs|"
    r"EngineGenerateError|Executor failed|Engine loop (?:has|is)|DP Coordinator process failed|"
    r"cancelled by another|ProcessRaisedException|ChildFailedError|RayTaskError\(|ActorDiedError|"
    r"^SystemExit|^(?:asyncio\.exceptions\.)?CancelledError|^KeyboardInterrupt"
)
_SECONDARY = re.compile(
    r"^(?:\w+\.)*(?:BrokenPipeError|EOFError|ConnectionResetError|GeneratorExit|DistNetworkError)|"
    r"remote process exited|ncclRemoteError|[Cc]onnection closed by (?:remote )?peer|[Cc]onnection reset by peer|"
    r"recvValue failed|RPC call to \w+ timed out|Timed out waiting for engine|[Cc]ancelled"
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One level of a traceback."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        path = self.file.rpartition("/site-packages/")[2] or self.file
        return f"{path}:{self.line} in {self.function}"


@dataclass(frozen=True, slots=True)
class Raised:
    """One exception: `line` is where it stands in the log's part number `part`; `frames` are outermost first.

    Its message may have several lines; `numbers` tells where in the log each of them is.
    """

    type: str
    message: str
    line: int
    frames: tuple[Frame, ...]
    numbers: tuple[int, ...] = ()
    part: int = 0

    @property
    def text(self) -> str:
        """Type and message on one line, as patterns are matched: of a long one the beginning."""
        return " ".join(f"{self.type}: {self.message[:LONGEST_TEXT]}".split())

    @property
    def is_wrapper(self) -> bool:
        """Whether it only reports what somebody else raised."""
        return bool(_WRAPPER.search(self.text))

    @property
    def is_secondary(self) -> bool:
        """Whether it is what others suffer when one process has died."""
        return bool(_SECONDARY.search(self.text))


@dataclass(frozen=True, slots=True)
class Chain:
    """Exceptions that led to one another, the root first; `header` is what was said before, `began` at which line."""

    links: tuple[Raised, ...]
    process: str
    level: str
    source: str
    header: str
    began: int
    phase: Phase = "load"
    part: int = 0

    @property
    def role(self) -> str:
        """Return `engine` (its core, a worker) or `api`, where a name, a file or a frame tells; else an empty text."""
        if role := role_of(self.process) or (role_of(self.header) if self.header.startswith("Process ") else ""):
            return role
        files = [frame.file for link in self.links for frame in link.frames]
        if any(_API_FRAME.search(file) for file in files):
            return "api"
        is_engine = _ENGINE_SOURCE.match(self.source) or any(_ENGINE_FRAME.search(file) for file in files)
        return "engine" if is_engine else ""

    @property
    def is_fatal(self) -> bool:
        """Whether it ended its process: nobody caught it, or who did says so."""
        if _SOFT.search(self.header):
            return False
        if self.phase == "use" and self.role != "engine" and not self._ends_the_program:
            return False
        if not self.level or self.source == "uvicorn":
            return True
        return self.level in ("ERROR", "CRITICAL") and bool(_FATAL.search(self.header))

    @property
    def _ends_the_program(self) -> bool:
        frames = self.links[-1].frames
        return bool(frames) and frames[0].function in (
            "<module>",
            "_run_module_as_main",
            "_bootstrap",
            "_bootstrap_inner",
        )


@dataclass(slots=True)
class _Open:
    """A chain that is being read from one stream."""

    first: Line
    header: str
    phase: Phase
    part: int
    indent: int = 0
    frames: list[Frame] = field(default_factory=list)
    links: list[Raised] = field(default_factory=list)
    raised: tuple[str, int, int] | None = None
    message: list[tuple[int, str]] = field(default_factory=list)
    linked: bool = False
    waited: int = 0

    def finish_link(self) -> None:
        if self.raised is not None:
            kind, number, part = self.raised
            while len(self.message) > 1 and not self.message[-1][1].strip():
                self.message.pop()
            message = "\n".join(text for _, text in self.message)
            numbers = tuple(at for at, _ in self.message)
            self.links.append(Raised(kind, message, number, tuple(self.frames[-MOST_FRAMES:]), numbers, part))
        self.frames, self.raised, self.message, self.waited = [], None, [], 0


class TracebackReader:
    """Finds the chains of exceptions in lines, which it is fed in their order; holds no more than what is open.

    What begins is marked with `phase` and `part` as they are then; `taken` says whether the last line belonged to one.
    """

    def __init__(self) -> None:
        self.phase: Phase = "load"
        self.part = 0
        self.taken = False
        self._open: dict[tuple[str, str], _Open] = {}
        self._said: dict[str, str] = {}

    def feed(self, line: Line) -> Iterator[Chain]:
        """Take a line; yield the chains that are complete now."""
        current = self._open.get(line.stream)
        text = line.text
        self.taken = True
        if begin := _BEGIN.match(text):
            if current is None or not current.linked:
                yield from self._close(line.stream)
                if begin["before"].strip():
                    self._said[line.process] = begin["before"][:300]
                current = self._start(line)
            current.finish_link()
            current.linked, current.indent = False, len(begin["indent"])
        elif current is None:
            yield from self._outside(line)
        else:
            yield from self._inside(line, current)

    def flush(self) -> Iterator[Chain]:
        """Yield what was still open when the lines ended."""
        for stream in list(self._open):
            yield from self._close(stream)

    def _start(self, line: Line) -> _Open:
        if len(self._open) >= MOST_STREAMS:
            self._open.pop(next(iter(self._open)))
        if len(self._said) > MOST_STREAMS:
            self._said.clear()
        opened = self._open[line.stream] = _Open(line, self._said.pop(line.process, ""), self.phase, self.part)
        return opened

    def _outside(self, line: Line) -> Iterator[Chain]:
        bare = _BARE.match(line.text) if line.level in ("", "ERROR", "CRITICAL") else None
        if _FRAME.match(line.text):
            self._inside_frame(line, self._start(line))
        elif bare is not None:
            current = self._start(line)
            current.raised, current.message = (bare["type"], line.number, self.part), [(line.number, bare["message"])]
        else:
            self.taken = False
            if line.text.strip():
                self._said[line.process] = line.text[:300]
        yield from ()

    def _inside(self, line: Line, current: _Open) -> Iterator[Chain]:
        text = line.text[current.indent :] if line.text[: current.indent].isspace() else line.text
        if _CHAINED.search(text):
            current.finish_link()
            current.linked = True
        elif current.raised is None:
            if self._inside_frame(line, current) or text.startswith((" ", "\t")) or _SCRAPS.match(text):
                return
            found = _EXCEPTION.match(text)
            if found is not None and (current.frames or _BARE.match(text)) and not current.linked:
                current.raised = (found["type"], line.number, self.part)
                current.message = [(line.number, found["message"] or "")]
                return
            self.taken = False
            current.waited += 1
            if current.waited > PATIENCE_LINES:
                yield from self._close(line.stream)
        elif _OVER.match(text) or len(current.message) >= MOST_MESSAGE_LINES or self._is_new_record(line, current):
            yield from self._close(line.stream)
            yield from self.feed(line)
        else:
            current.message.append((line.number, text))

    @staticmethod
    def _is_new_record(line: Line, current: _Open) -> bool:
        """Whether an exception without a traceback is followed by something else of the same writer."""
        return not current.frames and (bool(_BARE.match(line.text)) or not line.text.startswith((" ", "\t", "- ")))

    @staticmethod
    def _inside_frame(line: Line, current: _Open) -> bool:
        found = _FRAME.match(line.text)
        if found is not None:
            current.frames.append(Frame(found["file"], int(found["line"]), (found["function"] or "").strip()))
            if len(current.frames) > 2 * MOST_FRAMES:
                del current.frames[:MOST_FRAMES]
            current.waited = 0
        return found is not None

    def _close(self, stream: tuple[str, str]) -> Iterator[Chain]:
        current = self._open.pop(stream, None)
        if current is None:
            return
        current.finish_link()
        if current.links:
            first = current.first
            yield Chain(
                tuple(current.links),
                first.process,
                first.level,
                first.source,
                current.header,
                first.number,
                current.phase,
                current.part,
            )
