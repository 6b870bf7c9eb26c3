"""vLLM's OpenAI server: from 0.10 on, the CPU build included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.engines.base import HttpGet, Placement, Plan, Readiness, StageMark, Step
from backends.engines.python import find_python
from backends.engines.sources import source_environ
from backends.engines.stages import VLLM, read_mark, stage_names
from backends.snapshots import ModelKind

if TYPE_CHECKING:
    from profiles.schema import Profile

REMEDY = "pip install 'gpubox[vllm]', or let the profile name the interpreter that has it: python = \"/path/to/python\""


DOWNLOAD = Path(__file__).with_name("download.py")


class VllmEngine:
    """Runs `vllm.entrypoints.openai.api_server`: the `vllm` command is the same, but cannot start in the CPU build."""

    name = "vllm"
    metrics_path: str | None = "/metrics"
    stages: Sequence[str] = stage_names(VLLM)

    def model_name(self, profile: Profile) -> str:
        """Return the name that requests give."""
        return profile.served_name

    def can_sleep(self, profile: Profile) -> bool:
        """Whether the profile asks for it; it never does for the CPU."""
        return profile.sleep

    def plan(self, profile: Profile, placement: Placement) -> Plan:
        """Return the commands and environment that serve `profile`; raises ProfileError where vLLM is not found.

        What puts it to sleep, and runs code in it, is open to whoever reaches it: so it is there on a socket only.
        """
        from backends.demo.model import build_argv, demo_model_dir
        from profiles.schema import args_to_argv
        from profiles.sleeping import DEV_MODE, SLEEP_FLAG, without_expandable_segments

        python = find_python("vllm", "vllm", profile.python, placement.environ, REMEDY)
        steps = []
        model = profile.model
        if profile.source == "demo":
            steps.append(Step("prepare", build_argv(python)))
            model = str(demo_model_dir())
        elif profile.shares and profile.source == "hub":
            steps.append(Step("download", (python, str(DOWNLOAD), model, *_where_to(profile.args))))
        serve = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        serve += ["--served-model-name", self.model_name(profile)]
        environ = source_environ(profile)
        if placement.uds is not None:
            serve += ["--uds", placement.uds]
        else:
            serve += ["--host", profile.host, "--port", str(placement.port)]
        if placement.uds is not None and self.can_sleep(profile):
            serve += args_to_argv({SLEEP_FLAG: True})
            environ |= {DEV_MODE: "1"} | without_expandable_segments(placement.environ)
        steps.append(Step("boot", (*serve, *args_to_argv(profile.args))))
        return Plan(tuple(steps), environ)

    def mark(self, line: str) -> StageMark | None:
        """Return what a line of vLLM's log says of the start's progress."""
        return read_mark(line, VLLM)

    async def probe(self, http: HttpGet, model_name: str) -> Readiness:
        """Ask /health, /v1/models and /is_sleeping; where it serves, also what the model can be asked."""
        try:
            if (status := (await http.get("/health"))[0]) != 200:
                return Readiness(False, f"/health answers {status}")
            status, body = await http.get("/v1/models")
        except OSError as problem:
            return Readiness(False, str(problem))
        if status != 200:
            return Readiness(False, f"/v1/models answers {status}")
        card = next((card for card in _cards(body) if card.get("id") == model_name), None)
        if card is None:
            return Readiness(False, f"/v1/models does not list {model_name}")
        try:
            if _json((await http.get("/is_sleeping"))[1]).get("is_sleeping") is True:
                return Readiness(False, "asleep", sleeping=True)
            version = _json((await http.get("/version"))[1]).get("version")
            kind = await _kind(http, model_name)
        except OSError as problem:
            return Readiness(False, str(problem))
        length = card.get("max_model_len")
        return Readiness(
            True,
            "serves",
            kind=kind,
            version=version if isinstance(version, str) else None,
            max_model_len=length if isinstance(length, int) else None,
        )


async def _kind(http: HttpGet, served_name: str) -> ModelKind:
    """Ask what the model can do; nothing is generated: an embedding of one word, and a chat turned into tokens."""
    status, _ = await http.post("/v1/embeddings", {"model": served_name, "input": "hi"})
    if status == 200:
        return ModelKind.EMBEDDING
    messages = [{"role": "user", "content": "hi"}]
    status, _ = await http.post("/tokenize", {"model": served_name, "messages": messages})
    return ModelKind.CHAT if status == 200 else ModelKind.COMPLETION


def _where_to(args: Mapping[str, Any]) -> list[str]:
    """Return the download's options that the engine's arguments name."""
    named = {"revision": args.get("revision"), "cache_dir": args.get("download_dir")}
    return [f"{key}={value}" for key, value in named.items() if value is not None]


def _cards(body: bytes) -> list[dict[str, Any]]:
    data = _json(body).get("data")
    return [card for card in data if isinstance(card, dict)] if isinstance(data, list) else []


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
