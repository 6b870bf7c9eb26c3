"""Gathers what a shell command says of an engine: its words, its environment, its container."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from profiles import shell
from profiles.command_flags import add_argument, read_flags
from profiles.containers import Container, read_container
from profiles.errors import RefusedError
from profiles.secrets import VARIABLES, check_reference, looks_secret
from profiles.sleeping import DEV_MODE, SLEEP_FLAG

VLLM_PORT = 8000
API_SERVER = "vllm.entrypoints.openai.api_server"

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_PROGRAMS = re.compile(r"vllm|transformers|python[\d.]*|docker|podman")
_WRAPPERS = frozenset(
    ("nohup", "exec", "time", "setsid", "sudo", "nice", "ionice", "taskset", "numactl", "stdbuf", "uv", "uvx", "conda")
)
_HUB_CACHE = "/root/.cache/huggingface"
_SECRETS = {variable: key for key, variable in VARIABLES.items()} | {"HUGGING_FACE_HUB_TOKEN": "hf_token"}


class CommandReader:
    """Reads one text; afterwards the attributes hold what it said, and `notes` what was left out or changed."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.known = {"HOME": str(Path.home())} | dict(environ)
        self.engine = ""
        self.model = ""
        self.served_name: str | None = None
        self.sleep = False
        self.host: str | None = None
        self.port: int | None = None
        self.python: str | None = None
        self.restart: dict[str, Any] = {}
        self.args: dict[str, Any] = {}
        self.environ: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self.visible: str | None = None
        self.gpu_count: int | None = None
        self.container: Container | None = None
        self.notes: list[str] = []

    def read(self, text: str) -> None:
        """Read a text; raises RefusedError where it starts no engine, or cannot be understood."""
        for command in shell.split(text):
            assignments, words = _split_assignments(command.words)
            words = [field for word in words for field in shell.fields(word, self.known)]
            if words and words[0] == "export":
                self._assign(_split_assignments(words[1:])[0], exported=True)
            elif not words:
                self._assign(assignments, exported=False)
            elif self.engine or not (engine := self._unwrap(words)):
                self._note(f"not taken over: {shell.as_written(words[0])} …")
            else:
                self._take_environ(assignments)
                self._take_program(engine[0], engine[1:])
                if command.dropped:
                    what = shell.as_written(" ".join(command.dropped))
                    self._note(f"dropped: {what} (gpubox keeps the log, and its servers outlive the terminal)")
        if not self.engine:
            raise RefusedError("holds no `vllm serve`, `docker run` of vLLM or `transformers serve`", "paste all of it")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _expand(self, word: str) -> str:
        return shell.expand(word, self.known)

    def _assign(self, assignments: Sequence[tuple[str, str]], *, exported: bool) -> None:
        """Remember variables that are set before the command; those that are exported reach the engine."""
        if exported:
            self._take_environ(assignments)
        for name, word in assignments:
            if not looks_secret(name, ""):
                self.known[name] = self._expand(word)

    def _unwrap(self, words: Sequence[str]) -> list[str]:
        """Return the words from the program's own on, past `env`, `nohup` and the like; empty where there is none."""
        first = Path(words[0]).name
        if _PROGRAMS.fullmatch(first):
            return list(words)
        if first != "env" and first not in _WRAPPERS:
            return []
        for index, word in enumerate(words):
            if _PROGRAMS.fullmatch(Path(word).name):
                self._take_environ(_split_assignments([w for w in words[:index] if _ASSIGNMENT.fullmatch(w)])[0])
                if first != "env":
                    self._note(f"dropped: {first} (gpubox starts its engines itself)")
                return list(words[index:])
        return []

    def _take_program(self, program: str, words: list[str]) -> None:
        match Path(program).name, words:
            case ("vllm" | "transformers") as engine, ["serve", *flags]:
                self._take_python(program, beside=True)
                self._take_flags(engine, flags)
            case (("docker" | "podman"), (["run", *options] | ["container", "run", *options])):
                self._take_container(read_container(options, self._expand))
            case _ if words[(module := _module_at(words)) :][:1] == [API_SERVER]:
                self._take_python(program)
                self._take_flags("vllm", words[module + 1 :])
            case _:
                said = shell.as_written(" ".join([program, *words[:2]]))
                raise RefusedError(f"`{said}` starts no server that is known here", "`vllm serve MODEL` does")

    def _take_python(self, program: str, *, beside: bool = False) -> None:
        """Note which interpreter the engine ran with, where the command says so by a path."""
        program = self._expand(program)
        if "/" in program and self.container is None:
            # Not resolved: a virtual environment's python is a link out of it.
            path = Path.cwd() / program
            self.python = str(path.with_name("python") if beside else path)

    def _take_environ(self, assignments: Sequence[tuple[str, str]]) -> None:
        for name, word in assignments:
            if name == "CUDA_VISIBLE_DEVICES":
                self.visible = self._expand(word)
            elif name in _SECRETS or looks_secret(name, ""):
                self._take_secret(_SECRETS.get(name, name), word)
            elif name != "CUDA_DEVICE_ORDER":
                self.environ[name] = self._expand(word)

    def _take_secret(self, key: str, word: str) -> None:
        """Refer to a key; where the command holds it, say where it should go instead."""
        reference = shell.reference(word)
        if reference is not None:
            self.secrets[key] = check_reference(reference)
        elif word:
            variable = VARIABLES.get(key, key)
            self.secrets[key] = f"env:{variable}"
            self._note(f"the key itself was not stored: export {variable} where you start gpubox, or use file:/path")

    def _take_flags(self, engine: str, words: Sequence[str]) -> None:
        """Take over the engine's own words: the model, what gpubox sets itself, and the rest as arguments."""
        positional, flags = read_flags(words, engine)
        self.engine = engine
        models = [self._expand(word) for word in positional]
        for flag in flags:
            match flag.path, flag.values:
                case ["model"], [word]:
                    models.append(self._expand(word))
                case ["host"], [word]:
                    self.host = self._expand(word)
                case ["port"], [word]:
                    self.port = _port(self._expand(word))
                case ["served_model_name"], [word, *others]:
                    self.served_name = self._expand(word)
                    if others:
                        self._note(f"served under its first name only, not as {', '.join(map(self._expand, others))}")
                case [("api_key" | "hf_token") as key], values:
                    self._take_secret(key, values[0] if values else shell.variable("HF_TOKEN"))
                    if len(values) > 1:
                        self._note("of several API keys only the first is asked for")
                case ["uds"], _:
                    self._note("dropped: --uds (gpubox chooses the sockets of its engines itself)")
                case [head], [] if head == SLEEP_FLAG and engine == "vllm":
                    self.sleep = flag.on
                case ["device_ids"], values:
                    self.visible = ",".join(map(self._expand, values))
                case _:
                    add_argument(self.args, flag, self._expand)
        if len(models) != 1:
            names = f"names several models ({', '.join(models)})" if models else "names no model"
            raise RefusedError(names, "is a value not in quotes?" if models else "vllm serve MODEL")
        self.model = models[0]
        if self.sleep:
            self._note(f"--{SLEEP_FLAG.replace('_', '-')} became sleep = true, which sets {DEV_MODE}, too")

    def _take_container(self, container: Container) -> None:
        self.container = container
        if container.dropped:
            self._note(f"dropped: {' '.join(container.dropped)} (gpubox starts engines without a container)")
        self._note(f"image {container.image}: gpubox runs a vLLM that is installed here; python = … names another one")
        for text in container.environ:
            name, equals, word = text.partition("=")
            if equals:
                self._take_environ([(name, word)])
            elif name in _SECRETS or looks_secret(name, ""):
                self._take_environ([(name, shell.variable(name))])
            else:
                self._note(f"{name} comes from the environment in which gpubox is started")
        if devices := re.search(r"device=([\w,-]+)", container.gpus or ""):
            self.visible = devices[1]
        elif (container.gpus or "").isdecimal():
            self.gpu_count = int(container.gpus or "")
        self._take_restart(container.restart or "no")
        words = ([container.entrypoint] if container.entrypoint else []) + container.words
        if words and _PROGRAMS.fullmatch(Path(words[0]).name):
            self._take_program(words[0], words[1:])
        elif "vllm" in container.image and not container.entrypoint:
            self._take_flags("vllm", words)
        else:
            raise RefusedError(f"image {container.image} is not known here", "give the command that runs inside it")
        self._take_address(container)
        self._take_mounts(container)

    def _take_restart(self, text: str) -> None:
        policy, _, attempts = text.partition(":")
        if policy in ("always", "unless-stopped", "on-failure"):
            self.restart = {"policy": "on-failure"}
            if attempts.isdecimal() and int(attempts) > 0:
                self.restart["max_attempts"] = int(attempts)
            self._note(f'--restart {text} became policy = "on-failure": what was stopped stays stopped')

    def _take_address(self, container: Container) -> None:
        """Take the address that leads into the container for the engine's own."""
        if container.on_host_network:
            self.port = self.port or VLLM_PORT
            return
        self.host, outside = container.host_port(self.port or VLLM_PORT)
        self.port = outside

    def _take_mounts(self, container: Container) -> None:
        """Turn the container's paths into this box's."""
        for host, inside in container.mounts:
            if inside != _HUB_CACHE:
                self._note(f"what is under {inside} in the container is under {host} here")
            elif Path(host) != Path(self.known["HOME"]) / ".cache/huggingface":
                self.environ["HF_HOME"] = host
        self.args = {k: container.on_host(v) if isinstance(v, str) else v for k, v in self.args.items()}
        self.environ = {k: container.on_host(v) for k, v in self.environ.items()}


def _split_assignments(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the `NAME=value`s that words begin with, and the other words."""
    assignments = []
    for word in words:
        if not (match := _ASSIGNMENT.fullmatch(word)):
            break
        assignments.append((match[1], match[2]))
    return assignments, list(words[len(assignments) :])


def _module_at(words: Sequence[str]) -> int:
    """Return where the module's name is in `python … -m MODULE …`, or a place past the end."""
    options = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    return options if options > 0 and words[options - 1] == "-m" else len(words)


def _port(text: str) -> int:
    if not text.isdecimal():
        raise RefusedError(f"--port {text} is not a number")
    return int(text)
