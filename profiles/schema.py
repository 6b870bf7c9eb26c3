"""What a profile says: which engine serves which model, with which arguments, on how many GPUs.

Unknown keys and contradictions are refused, and every problem is told with its key path and what to do.
What is not said has a default; `model_fields_set` tells the two apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic import ValidationInfo as Info

from profiles.errors import InvalidProfileError, ProfileProblem, RefusedError, did_you_mean
from profiles.flags import APPENDED, JSON_LISTS, OWNED_ARGS, STORE_TRUE
from profiles.lines import line_of
from profiles.secrets import (
    check_environ_name,
    check_environ_value,
    check_reference,
    check_secret_name,
    looks_secret,
)
from profiles.secrets import resolve_secrets as resolve_secrets
from profiles.sleeping import LONGEST_TTL_MIN, check_needs_sleep, check_sleep

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def is_path(model: str) -> bool:
    """Tell a folder's path from a hub's id."""
    return model.startswith(("/", "~", "./", "../")) or model in (".", "..")


def parallel_size(args: Mapping[str, Any]) -> int:
    """Return how many GPUs of this box vLLM takes with these arguments: tensor × pipeline × data parallel size."""

    def size(*names: str) -> int:
        found = next((args[name] for name in names if name in args), 1)
        return found if isinstance(found, int) and found > 0 else 1

    world = size("tensor_parallel_size") * size("pipeline_parallel_size") * size("prefill_context_parallel_size")
    one_rank = "data_parallel_rank" in args or args.get("data_parallel_external_lb") is True
    replicas = 1 if one_rank else size("data_parallel_size_local", "data_parallel_size")
    return max(1, world * replicas // size("nnodes"))


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise RefusedError(f"{value!r} cannot be a name", "use a-z, 0-9, '.', '_', '-', at most 64, no '.' first")
    return value


def _line(value: str) -> str:
    if not value.strip() or not value.isprintable() or value.startswith("-"):
        raise RefusedError("must be one line of text, with no '-' first")
    return value


def _model(value: str) -> str:
    if not is_path(_line(value)):
        return value
    path = Path(value).expanduser()
    if not path.is_absolute():
        raise RefusedError("is a relative path, but an engine runs in its own folder", "write it from / or ~ on")
    return str(path)


def _endpoint(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RefusedError("is not the address of a hub", "write it so: https://hub.example.org")
    if parts.password or parts.username:
        raise RefusedError("holds a key, which a profile must not", "use [secrets] hf_token")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[\w.:-]+", value, re.ASCII):
        raise RefusedError(f"{value!r} is not an address to listen on", 'use "127.0.0.1" or "0.0.0.0"')
    return value


def _port(value: object) -> object:
    if value == "auto" or (type(value) is int and 0 < value < 65536):
        return value
    raise RefusedError("is not a port", 'use a number from 1 to 65535, or "auto"')


def _gpus(value: object) -> object:
    if value == "cpu" or (type(value) is int and value > 0):
        return value
    remedy = 'give a count such as 2, or "cpu"; which GPUs is said at launch: --gpus 6,7'
    raise RefusedError("is not a number of GPUs", remedy)


def _python(value: str) -> str:
    path = Path(value).expanduser()
    if not path.is_absolute():
        raise RefusedError("must be an interpreter's full path", 'such as "~/vllm/bin/python"')
    return str(path)


def _arg_names_once(value: object) -> object:
    """Refuse `max_model_len` beside `max-model-len`: one of them would vanish."""
    if isinstance(value, dict):
        seen: dict[str, str] = {}
        for key in value:
            if isinstance(key, str) and (other := seen.setdefault(_snake(key), key)) != key:
                raise RefusedError(f"{other} and {key} are the same argument", "delete one of them")
    return value


def _snake(key: str) -> str:
    return key.replace("-", "_")


def _arg_name(value: str) -> str:
    name = _snake(value)
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise RefusedError("is not an argument's name", "write it so: max_model_len")
    if remedy := OWNED_ARGS.get(name):
        raise RefusedError("is set by gpubox itself", remedy)
    return name


def _arg_value(value: Any) -> Any:
    if value == []:
        raise RefusedError("is an empty list", "delete it, or give a value")
    _check_json(value)
    return value


def _check_json(value: object) -> None:
    """Refuse what an engine cannot be told, however deep it is in a table."""
    match value:
        case bool() | int():
            pass
        case float() if math.isfinite(value):
            pass
        case str() if looks_secret("", value):
            raise RefusedError("holds a key, which a profile must not", 'use [secrets] NAME = "env:NAME"')
        case str() if "\0" in value:
            raise RefusedError("holds a NUL")
        case str():
            pass
        case list():
            for item in value:
                _check_json(item)
        case dict() if all(isinstance(key, str) for key in value):
            for item in value.values():
                _check_json(item)
        case _:
            raise RefusedError(f"is a {type(value).__name__}", "use text, a number, true, false, a list or a table")


_Args = Annotated[
    dict[Annotated[str, AfterValidator(_arg_name)], Annotated[Any, AfterValidator(_arg_value)]],
    BeforeValidator(_arg_names_once),
]
_Environ = dict[Annotated[str, AfterValidator(check_environ_name)], Annotated[str, AfterValidator(check_environ_value)]]
_References = dict[Annotated[str, AfterValidator(check_secret_name)], Annotated[str, AfterValidator(check_reference)]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Restart(_Part):
    """What to do after a failure: `backoff_s` doubles with each attempt; there are `max_attempts`."""

    policy: Literal["never", "on-failure"] = "never"
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    backoff_s: Annotated[float, Field(gt=0, le=3600)] = 5.0


class Logs(_Part):
    """How much log is kept: the newest `keep` starts, and files of `max_mb` MiB within a start."""

    keep: Annotated[int, Field(ge=1, le=1000)] = 10
    max_mb: Annotated[int, Field(ge=1, le=4096)] = 64


class Profile(_Part):
    """Which engine serves which model, with which arguments, on how many GPUs.

    `served_name` is what clients ask for: by default the hub's id, or (on vLLM) a local path's last part. `gpus` is a
    count or "cpu": by default what the parallel sizes among `args` multiply to. `args` has snake_case keys. `secrets`
    holds references (`env:NAME`, `file:/path`), never values; `profiles.secrets.resolve_secrets` reads them.
    With `share` or `sleep`, other servers that do, too, may have its GPUs. One that sleeps gives way to others in about
    a second: after `ttl` idle minutes by itself; it wakes for a request where it may (`wake_on_request`), and `prime`
    lets it sleep and wake once after its start, so that the first time is as fast as later ones.
    """

    name: Annotated[str, AfterValidator(_name)]
    description: str = ""
    engine: Literal["vllm", "transformers"] = "vllm"
    model: Annotated[str, AfterValidator(_model)]
    source: Literal["hub", "modelscope", "local", "demo"] = Field(
        default_factory=lambda data: "local" if is_path(data.get("model", "")) else "hub"
    )
    hub_endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    served_name: Annotated[str, AfterValidator(_line)] = Field(default_factory=lambda data: default_served_name(data))
    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: Annotated[int | Literal["auto"], BeforeValidator(_port)] = "auto"
    python: Annotated[str, AfterValidator(_python)] | None = None
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 5.0
    start_timeout_s: Annotated[float, Field(gt=0, le=604800)] | None = None
    args: _Args = {}
    env: _Environ = {}
    secrets: _References = {}
    restart: Restart = Restart()
    logs: Logs = Logs()
    gpus: Annotated[int | Literal["cpu"], BeforeValidator(_gpus)] = Field(
        default_factory=lambda data: parallel_size(data.get("args", {})) if data.get("engine") == "vllm" else 1
    )
    share: bool = False
    sleep: bool = False
    ttl: Annotated[float, Field(gt=0, le=LONGEST_TTL_MIN)] | None = None
    wake_on_request: bool = False
    prime: bool = False

    @property
    def shares(self) -> bool:
        """Whether its server is granted a part of its GPUs, in turn with others that are, instead of all of them."""
        return self.share or self.sleep

    @field_validator("source")
    @classmethod
    def _source_fits_the_model(cls, value: str, info: Info) -> str:
        model = str(info.data.get("model", ""))
        if (value == "local") != is_path(model) and model:
            what = "a path" if is_path(model) else f'"{model}", which is not a path'
            raise RefusedError(f'is "{value}", but the model is {what}', "delete source, or correct model")
        return value

    @field_validator("hub_endpoint")
    @classmethod
    def _endpoint_needs_a_hub(cls, value: str | None, info: Info) -> str | None:
        if value is not None and info.data.get("source", "hub") != "hub":
            raise RefusedError("is for models from the hub", 'delete it, or set source = "hub"')
        return value

    @field_validator("served_name")
    @classmethod
    def _transformers_names_it_itself(cls, value: str, info: Info) -> str:
        if info.data.get("engine") == "transformers" and value != info.data.get("model", value):
            raise RefusedError("cannot be chosen: transformers serve answers to the model's own name", "delete it")
        return value

    @field_validator("secrets")
    @classmethod
    def _key_needs_vllm(cls, value: dict[str, str], info: Info) -> dict[str, str]:
        if "api_key" in value and info.data.get("engine") == "transformers":
            raise RefusedError("hold an api_key, but transformers serve asks for none", "delete it")
        return value

    @field_validator("share")
    @classmethod
    def _share_says_how_much(cls, value: bool, info: Info) -> bool:
        sized = info.data.get("args", {}).keys() & {"gpu_memory_utilization", "kv_cache_memory_bytes"}
        if value and not (sized and info.data.get("engine") == "vllm" and info.data.get("gpus") != "cpu"):
            raise RefusedError(
                "is for vLLM on GPUs, with its part of the memory said",
                "set gpu_memory_utilization or kv_cache_memory_bytes among args",
            )
        return value

    @field_validator("sleep")
    @classmethod
    def _sleep_is_possible(cls, value: bool, info: Info) -> bool:
        return check_sleep(value, info.data)

    @field_validator("ttl", "wake_on_request", "prime")
    @classmethod
    def _needs_sleep(cls, value: float | None, info: Info) -> float | None:
        return check_needs_sleep(value, info.data)

    @field_validator("gpus")
    @classmethod
    def _gpus_fit_the_args(cls, value: int | str, info: Info) -> int | str:
        if value == "cpu" or info.data.get("engine") != "vllm" or "args" not in info.data:
            return value
        if value != (used := parallel_size(info.data["args"])):
            remedy = f"set gpus = {used}, or tensor_parallel_size among args"
            raise RefusedError(f"is {value}, but the parallel sizes among args make {used}", remedy)
        return value


def default_served_name(data: Mapping[str, Any]) -> str:
    """Return what clients ask for where a profile does not say it: the model's id, or on vLLM a path's last part."""
    model = str(data.get("model", ""))
    return Path(model).name or model if is_path(model) and data.get("engine") == "vllm" else model


def parse_profile(data: Mapping[str, Any], where: str, text: str = "") -> Profile:
    """Check a profile's content; `where` names it in problems, and `text`, its TOML, gives them line numbers.

    Raises InvalidProfileError with every problem.
    """
    try:
        return Profile.model_validate(dict(data))
    except ValidationError as wrong:
        errors = [error for error in wrong.errors() if error["type"] != "default_factory_not_called"]
    problems = [_problem(error, where, text) for error in errors]
    raise InvalidProfileError(sorted(problems, key=lambda problem: problem.line or 0))


_MESSAGES = {
    "string_type": ("must be text", 'in quotes: "…"'),
    "int_type": ("must be a whole number", ""),
    "float_type": ("must be a number", ""),
    "bool_type": ("must be true or false", ""),
    "dict_type": ("must be a table", ""),
    "model_type": ("must be a table", ""),
}


def _problem(error: Mapping[str, Any], where: str, text: str) -> ProfileProblem:
    """Turn one of pydantic's errors into a problem; values are never repeated, since they may be secrets."""
    path = [str(part) for part in error["loc"] if part != "[key]"]
    kind, context = error["type"], error.get("ctx", {})
    message, suggestion = _MESSAGES.get(kind, (str(error["msg"]), ""))
    if isinstance(refused := context.get("error"), RefusedError):
        message, suggestion = refused.message, refused.suggestion
    elif kind == "extra_forbidden":
        message, suggestion = "no such key", _meant(path)
    elif kind == "missing":
        message, suggestion = "is missing", f'add {path[-1]} = "…"'
    elif kind == "literal_error":
        message = f"must be {context['expected']}".replace("'", '"')
        known = re.findall(r"'([^']*)'", context["expected"])
        suggestion = did_you_mean(error["input"], known) if isinstance(error["input"], str) else ""
    return ProfileProblem(where, ".".join(path), message, suggestion, line_of(text, path))


def _meant(path: Sequence[str]) -> str:
    """Return what an unknown key may have been meant to be."""
    from profiles.flags import RENAMED, TRANSFORMERS_VALUED, VLLM_REPEATED, VLLM_SWITCHES, VLLM_VALUED

    tables: dict[str, type[_Part]] = {"restart": Restart, "logs": Logs}
    part = tables[path[0]] if len(path) > 1 else Profile
    key = _snake(path[-1])
    if part is Profile and key in VLLM_SWITCHES | VLLM_REPEATED | VLLM_VALUED | TRANSFORMERS_VALUED | RENAMED.keys():
        return OWNED_ARGS.get(key, f"engine arguments go under [args]: {RENAMED.get(key, key)}")
    return did_you_mean(key, part.model_fields, f"known are {', '.join(part.model_fields)}")


def args_to_argv(args: Mapping[str, Any]) -> list[str]:
    """Return an engine's arguments as a command line has them, in their order.

    `max_model_len = 2048` → `--max-model-len 2048`; true → the flag, false → `--no-FLAG`; a list → several values after
    one flag; a table → JSON.
    """
    argv: list[str] = []
    for key, value in args.items():
        flag = "--" + key.replace("_", "-")
        match value:
            case True:
                argv.append(flag)
            case False if key not in STORE_TRUE:
                argv.append("--no-" + flag[2:])
            case False:
                pass
            case list() if key in APPENDED:
                for item in value:
                    argv += _with_value(flag, _word(item))
            case list() if key not in JSON_LISTS:
                words = [_word(item) for item in value]
                argv += [flag, *words] if not words[0].startswith("-") else [f"{flag}={words[0]}", *words[1:]]
            case _:
                argv += _with_value(flag, _word(value))
    return argv


def _with_value(flag: str, word: str) -> list[str]:
    """Join a value that looks like a flag to its flag."""
    return [f"{flag}={word}"] if word.startswith("-") else [flag, word]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
