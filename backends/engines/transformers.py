"""`transformers serve`, 5.x: a reference for vLLM, and a server for what that no longer loads (bitsandbytes)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backends.engines.base import HttpGet, Placement, Plan, Readiness, StageMark, Step
from backends.engines.python import find_python
from backends.engines.sources import source_environ
from backends.engines.stages import TRANSFORMERS, read_mark, stage_names
from backends.errors import ProfileError
from backends.snapshots import ModelKind

if TYPE_CHECKING:
    from profiles.schema import Profile

REMEDY = (
    "pip install 'gpubox[train]' fastapi, "
    'or let the profile name the interpreter that has it: python = "/path/to/python"'
)


class TransformersEngine:
    """Runs `transformers serve MODEL`: it loads the model before it listens, and has no /metrics."""

    name = "transformers"
    metrics_path: str | None = None
    stages: Sequence[str] = stage_names(TRANSFORMERS)

    def model_name(self, profile: Profile) -> str:
        """Return the model as it was given: a server pinned to one model refuses every other name."""
        from backends.demo.model import demo_model_dir

        return str(demo_model_dir()) if profile.source == "demo" else profile.model

    def can_sleep(self, profile: Profile) -> bool:
        """Return False: it is stopped and started instead."""
        return False

    def plan(self, profile: Profile, placement: Placement) -> Plan:
        """Return the commands and environment that serve `profile`; raises ProfileError where it is not installed."""
        from backends.demo.model import build_argv
        from profiles.schema import args_to_argv

        python = find_python("transformers", "transformers", profile.python, placement.environ, REMEDY)
        command = Path(python).parent / "transformers"
        if not command.exists():
            raise ProfileError(f"there is no `transformers` command beside {python}", REMEDY)
        steps = [Step("prepare", build_argv(python))] if profile.source == "demo" else []
        serve = [str(command), "serve", self.model_name(profile), "--host", profile.host, "--port", str(placement.port)]
        log_level = {} if "log_level" in profile.args else {"log_level": "info"}
        steps.append(Step("boot", (*serve, *args_to_argv(log_level | profile.args))))
        return Plan(tuple(steps), source_environ(profile))

    def mark(self, line: str) -> StageMark | None:
        """Return what a line of the log says of the start's progress."""
        return read_mark(line, TRANSFORMERS)

    async def probe(self, http: HttpGet, model_name: str) -> Readiness:
        """Ask /health, then for one token: /v1/models lists the hub's cache, not what is served, and may answer 500."""
        try:
            if (status := (await http.get("/health"))[0]) != 200:
                return Readiness(False, f"/health answers {status}")
            chat = {"model": model_name, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
            if (await http.post("/v1/chat/completions", chat))[0] == 200:
                return Readiness(True, "serves", kind=ModelKind.CHAT)
            completion = {"model": model_name, "max_tokens": 1, "prompt": "hi"}
            if (status := (await http.post("/v1/completions", completion))[0]) == 200:
                return Readiness(True, "serves", kind=ModelKind.COMPLETION)
        except OSError as problem:
            return Readiness(False, str(problem))
        return Readiness(False, f"/v1/completions answers {status}")
