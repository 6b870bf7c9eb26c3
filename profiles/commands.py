"""`vllm serve …` ⇄ profile: what people start by hand becomes a profile, and a profile the command that gpubox runs.

Importing what was exported gives the same profile again. Nothing is dropped in silence: what a profile does not hold,
and why, is in the notes.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiles.command_reader import API_SERVER, VLLM_PORT, CommandReader
from profiles.errors import InvalidProfileError, ProfileProblem, RefusedError
from profiles.schema import Profile, args_to_argv, default_served_name, is_path, parallel_size, parse_profile
from profiles.secrets import VARIABLES
from profiles.sleeping import DEV_MODE, SLEEP_FLAG, is_loopback

LONGEST_LINE = 100
WHERE = "the command"


@dataclass(frozen=True, slots=True)
class Imported:
    """A profile read off a command: its content, what was left out or changed, and the GPUs that the command named."""

    profile: dict[str, Any]
    notes: tuple[str, ...]
    gpus: str | None = None


def import_command(text: str, name: str | None = None, environ: Mapping[str, str] | None = None) -> Imported:
    """Read `vllm serve`, vLLM's api_server module, `docker run` of vLLM's image, or `transformers serve`, as typed.

    `environ` (by default this process's) gives the values of variables that the command uses. Keys are never taken
    over: the profile gets a reference. Raises InvalidProfileError where the command cannot be understood.
    """
    reader = CommandReader(os.environ if environ is None else environ)
    try:
        reader.read(text)
    except RefusedError as wrong:
        raise InvalidProfileError([ProfileProblem(WHERE, "", wrong.message, wrong.suggestion)]) from None
    content, notes = _content(reader, name)
    parse_profile(content, WHERE)
    return Imported(content, (*reader.notes, *notes), reader.visible or None)


def _content(reader: CommandReader, name: str | None) -> tuple[dict[str, Any], list[str]]:
    """Return a profile's content in its usual order, without what is the default anyway, and further notes."""
    notes: list[str] = []
    model = reader.model if reader.container is None else reader.container.on_host(reader.model)
    if is_path(model) or Path(model).is_dir():
        model = str(Path.cwd() / Path(model).expanduser())
    content: dict[str, Any] = {
        "name": name or _name(reader, model),
        "engine": reader.engine,
        "model": model,
    }
    environ = dict(reader.environ)
    if not is_path(model) and environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("true", "1"):
        content["source"] = "modelscope"
    elif not is_path(model) and "HF_ENDPOINT" in environ:
        content["hub_endpoint"] = environ.pop("HF_ENDPOINT")
    environ.pop("VLLM_USE_MODELSCOPE", None)
    served_name = reader.served_name or reader.model
    if reader.engine == "vllm" and served_name != default_served_name(content):
        content["served_name"] = served_name
    gpus, gpu_notes = _gpus(reader)
    notes += gpu_notes
    if gpus is not None:
        content["gpus"] = gpus
    if reader.host is None and reader.engine == "vllm":
        notes.append('it would listen on all addresses; the profile says 127.0.0.1 (host = "0.0.0.0" for all)')
    elif reader.host not in (None, "127.0.0.1", "localhost"):
        content["host"] = reader.host
    if reader.port is None:
        notes.append(f"it names no port: the profile takes a free one (port = {VLLM_PORT} for the engine's default)")
    else:
        content["port"] = reader.port
    if reader.sleep:
        content["sleep"] = True
        environ.pop(DEV_MODE, None)
    rest = {"python": reader.python, "args": reader.args, "env": environ, "secrets": reader.secrets}
    content |= {key: value for key, value in (rest | {"restart": reader.restart}).items() if value}
    return content, notes


def _name(reader: CommandReader, model: str) -> str:
    """Return a name for the profile: the container's, or from what the model is called."""
    said = reader.container.name if reader.container else None
    text = (said or reader.served_name or model).rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", text).strip("._-")[:64] or "imported"


def _gpus(reader: CommandReader) -> tuple[int | str | None, list[str]]:
    """Return what a profile should say of GPUs, where that is not what its arguments say anyway."""
    visible = reader.visible
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return "cpu", []
    count = len(visible.split(",")) if visible else reader.gpu_count
    if count is None:
        return None, []
    notes = [f"a profile holds a count of GPUs; launch it on these with --gpus {visible}"] if visible else []
    if reader.engine != "vllm":
        return (count if count > 1 else None), notes
    if count != (used := parallel_size(reader.args)):
        notes.append(f"it shows the engine {count} GPUs, but the parallel sizes make {used}: the profile takes {used}")
    return None, notes


def export_command(profile: Profile, gpus: Sequence[int | str] | None = None, model: str | None = None) -> str:
    """Return the shell command that starts what gpubox would: keys as `"$NAME"`, in several lines where it is long.

    `gpus` are indices in PCI order, or "cpu" alone; `model` replaces the profile's (the demo has its folder only where
    it was made). A port of `auto` is left out. A profile that sleeps gets the flag, and on an address of this box alone
    the routes for it, too: here nothing stands between them and whoever calls.
    """
    words = [[f"{name}={value}"] for name, value in _environ(profile, gpus).items()]
    model = model or profile.model
    if profile.engine == "transformers":
        program = str(Path(profile.python).parent / "transformers") if profile.python else "transformers"
        words.append([shlex.quote(program), "serve", shlex.quote(model)])
    elif profile.python or profile.gpus == "cpu":
        # vLLM's CPU build cannot start through its own `vllm` command.
        words.append([shlex.quote(profile.python or "python"), "-m", API_SERVER, "--model", shlex.quote(model)])
    else:
        words.append(["vllm", "serve", shlex.quote(model)])
    if profile.engine == "vllm" and profile.served_name != model:
        words.append(["--served-model-name", shlex.quote(profile.served_name)])
    words.append(["--host", shlex.quote(profile.host)])
    if profile.port != "auto":
        words.append(["--port", str(profile.port)])
    sleeping = {SLEEP_FLAG: True} if profile.sleep else {}
    for key, value in (sleeping | profile.args).items():
        words.append([shlex.quote(word) for word in args_to_argv({key: value})])
    lines = [" ".join(group) for group in words if group]
    return " ".join(lines) if len(" ".join(lines)) <= LONGEST_LINE else " \\\n  ".join(lines)


def _environ(profile: Profile, gpus: Sequence[int | str] | None) -> dict[str, str]:
    """Return the variables to set before the command, quoted for a shell."""
    environ: dict[str, str] = {}
    if gpus and gpus[0] != "cpu":
        environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environ["CUDA_VISIBLE_DEVICES"] = shlex.quote(",".join(str(index) for index in gpus))
    elif gpus or profile.gpus == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""
    elif profile.engine == "transformers" and profile.gpus != 1:
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in range(profile.gpus))
    if profile.hub_endpoint:
        environ["HF_ENDPOINT"] = shlex.quote(profile.hub_endpoint)
    if profile.source == "modelscope":
        environ["VLLM_USE_MODELSCOPE"] = "True"
    if profile.sleep and is_loopback(profile.host):
        environ[DEV_MODE] = "1"
    environ |= {name: shlex.quote(value) for name, value in profile.env.items()}
    for key, reference in profile.secrets.items():
        kind, _, place = reference.partition(":")
        value = f'"${place}"' if kind == "env" else f'"$(cat {_quoted_path(place)})"'
        environ[VARIABLES.get(key, key)] = value
    return environ


def _quoted_path(path: str) -> str:
    """Quote a path, but not a leading `~`, which the shell is to replace."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)
