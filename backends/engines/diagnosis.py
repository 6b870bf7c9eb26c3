"""Why an engine ended, in one line a person can act on: the first known cause in its log, else the first exception.

An API server that reports 'Engine core initialization failed' only wraps what a worker raised earlier, so earlier
lines win.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backends.processes.logs import tail

LINES = 5000
PORT_IN_USE = "its port is in use"


class HowItEnded(Protocol):
    """An exit code, or the signal that killed it."""

    @property
    def code(self) -> int | None:
        """Exit code."""
        ...

    @property
    def signal(self) -> int | None:
        """Signal number."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """A failure that a pattern tells; `says` may use the pattern's groups as {1}, {2} …"""

    pattern: re.Pattern[str]
    says: str


def _known(pattern: str, says: str) -> Known:
    return Known(re.compile(pattern), says)


KNOWN = (
    _known(
        r"max seq len \((\d+)\), \(([\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory "
        r"\((-?[\d.]+) GiB\)(?:.*estimated maximum model length is (\d+))?",
        "max_model_len {1} needs {2} GiB of KV cache, {3} GiB are left; set max_model_len = {4}, "
        "or raise gpu_memory_utilization",
    ),
    _known(
        r"No available memory for the cache blocks",
        "the weights leave no room for a KV cache; raise gpu_memory_utilization",
    ),
    _known(
        r"Free memory on device (?:\S+ )?\(([\d.]+)/([\d.]+) GiB\) on startup is less than "
        r"desired GPU memory utilization \(([\d.]+)",
        "{1} of {2} GiB are free on the GPU, gpu_memory_utilization {3} asks for more; lower it, or free the GPU",
    ),
    _known(
        r"Failed to load model - not enough GPU memory|CUDA out of memory\. Tried to allocate ([\d.]+ \w+)",
        "out of GPU memory; quantize the model, or give it more GPUs",
    ),
    _known(
        r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len "
        r"\((?:max_position_embeddings=)?(\d+)?",
        "max_model_len {1} is more than the model was made for ({2}); lower it",
    ),
    _known(
        r"attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)",
        "{1} attention heads cannot be split over {2} GPUs",
    ),
    _known(
        r"World size \((\d+)\) is larger than the number of available GPUs \((\d+)\)", "it needs {1} GPUs and sees {2}"
    ),
    _known(r"\[Errno 98\] Address already in use", f"{PORT_IN_USE}; choose another"),
    _known(
        r"Repo id must be in the form .*?: '([^']+)'|(\S+) is not a local folder and is not a valid model identifier",
        "there is no model at {1}{2}",
    ),
    _known(
        r"gated repo|GatedRepoError|401 Client Error",
        "the model is gated; accept its licence, and set hf_token in [secrets]",
    ),
    _known(r"We couldn't connect to '([^']+)'", "{1} cannot be reached; set hub_endpoint, or download the model first"),
    _known(r"Cannot find any model weights with `([^`]+)`", "no weights in {1}; its download may be incomplete"),
    _known(r"SafetensorError: Error while deserializing header", "a weights file is damaged; download it again"),
    _known(r"Model architectures \[(.*?)\] are not supported for now", "this version of the engine does not know {1}"),
    _known(r"Bfloat16 is only supported on GPUs", 'this GPU has no bfloat16; set dtype = "half"'),
    _known(r"error: unrecognized arguments: (.+)", "this version of the engine does not know {1}"),
    _known(r"error: (argument --\S+: .+)", "{1}"),
    _known(
        r"libcuda\.so\.1: cannot open|No CUDA GPUs are available|Failed to infer device type",
        "it finds no GPU; see `gpubox doctor`",
    ),
    _known(r"No space left on device", "the disk is full"),
    _known(r"No module named '?([\w.]+)'?$", "the engine's Python has no module {1}"),
)
"""In vLLM's and transformers' words; an earlier line wins over a later one, whatever its row."""

_EXCEPTION = re.compile(r"(?:^|\s)((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt)): (.+)$")
_WRAPPER = re.compile(r"Engine core initialization failed|See root cause above|WorkerProc initialization failed")


def find_cause(lines: list[str]) -> str | None:
    """Return the first known cause in a log's lines, else the first exception in them, else None."""
    first_exception = None
    for line in lines:
        for known in KNOWN:
            if found := known.pattern.search(line):
                return _fill(known.says, found)
        if first_exception is None and not _WRAPPER.search(line) and (found := _EXCEPTION.search(line)):
            first_exception = f"{found[1].rsplit('.', 1)[-1]}: {found[2].strip()}"
    return first_exception


def cause_of_end(log_path: Path, ended: HowItEnded | None) -> str:
    """Return one line: what the log says began the end, and the exit code or signal; an unasked exit 0 is a failure."""
    if ended is None:
        how = "it ended, nobody saw how"
    elif ended.signal is not None:
        name = signal.Signals(ended.signal).name if ended.signal in signal.valid_signals() else str(ended.signal)
        guess = ", perhaps by the kernel for want of memory" if ended.signal == signal.SIGKILL else ""
        how = f"killed by {name}{guess}"
    elif ended.code == 0:
        how = "it ended with exit code 0, though nobody asked it to"
    else:
        how = f"exit code {ended.code}"
    try:
        cause = find_cause(tail(log_path, LINES))
    except OSError as problem:
        return f"{how} (its log cannot be read: {problem})"
    return f"{cause} ({how})" if cause else how


def _fill(says: str, found: re.Match[str]) -> str:
    groups = ["", *(group or "" for group in found.groups())]
    return says.format(*groups)
