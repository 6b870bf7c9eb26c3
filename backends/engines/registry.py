"""The engines that gpubox knows, by the name a profile gives them."""

from __future__ import annotations

from backends.engines.base import Engine
from backends.engines.transformers import TransformersEngine
from backends.engines.vllm import VllmEngine
from backends.errors import ProfileError

_ENGINES: dict[str, Engine] = {engine.name: engine for engine in (VllmEngine(), TransformersEngine())}


def engine_named(name: str) -> Engine:
    """Return the engine of that name; raises ProfileError."""
    try:
        return _ENGINES[name]
    except KeyError:
        raise ProfileError(f"engine = {name!r} is not known", f"known: {', '.join(sorted(_ENGINES))}") from None
