"""What is known around a failure: the profile's content, what the log says vLLM was given, and the box."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.diagnosis.story import Story
from backends.starts import Remedy

DEFAULT_UTILIZATION = 0.9
DEFAULT_NUM_SEQS = 256
HIGHEST_UTILIZATION = 0.97


@dataclass(frozen=True, slots=True)
class Situation:
    """`groups` are what the cause's pattern found; `profile` is the failed profile's content, empty where unknown.

    `gpu_count` is how many GPUs the box has, None where nobody knows.
    """

    story: Story
    groups: Mapping[str, str]
    profile: Mapping[str, Any] = field(default_factory=dict)
    gpu_count: int | None = None

    def arg(self, name: str) -> Any:
        """Return an engine argument as the profile has it, or else as the log says it was given; None: neither."""
        args = self.profile.get("args")
        if isinstance(args, Mapping):
            for key, value in args.items():
                if str(key).replace("-", "_") == name:
                    return value
        return None if isinstance(args, Mapping) and args else self.story.args.get(name)

    def number(self, name: str, otherwise: float) -> float:
        """Return a numeric argument, or `otherwise` where it is not set."""
        value = self.arg(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else otherwise

    @property
    def utilization(self) -> float:
        """The share of a GPU that was asked for."""
        return self.number("gpu_memory_utilization", DEFAULT_UTILIZATION)

    @property
    def ranks(self) -> int:
        """Over how many GPUs each layer is split."""
        return int(self.number("tensor_parallel_size", 1))

    @property
    def model(self) -> str:
        """The model that was asked for; empty where nobody says."""
        return str(self.groups.get("model") or self.profile.get("model") or self.story.args.get("model") or "")

    @property
    def on_cpu(self) -> bool:
        """Whether it runs without GPUs, as far as the profile says."""
        return self.profile.get("gpus") == "cpu"

    def env(self, name: str) -> str | None:
        """Return a variable that the profile sets."""
        environ = self.profile.get("env")
        value = environ.get(name) if isinstance(environ, Mapping) else None
        return value if isinstance(value, str) else None

    def split(self, ranks: int) -> dict[str, Any]:
        """Return the change that splits layers over so many GPUs; where the profile counts its GPUs, they follow."""
        change: dict[str, Any] = {"args.tensor_parallel_size": ranks if ranks > 1 else None}
        if isinstance(self.profile.get("gpus"), int):
            others = int(self.number("pipeline_parallel_size", 1) * self.number("data_parallel_size", 1))
            change["gpus"] = ranks * others
        return change


def put(text: str, **changes: Any) -> Remedy:
    """Return a remedy that sets engine arguments; None removes one."""
    return Remedy(text, {f"args.{name}": value for name, value in changes.items()})


def advice(text: str) -> Remedy:
    """Return a remedy that no change of the profile brings about."""
    return Remedy(text, {})


def written(value: Any) -> str:
    """Return a value as people read it in a profile."""
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
