"""Where an engine is to fetch models from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiles.schema import Profile


def source_environ(profile: Profile) -> dict[str, str]:
    """Return the variables that name a hub's mirror, or ModelScope; empty for the hub itself and for local paths."""
    environ = {}
    if profile.hub_endpoint:
        environ["HF_ENDPOINT"] = profile.hub_endpoint
    if profile.source == "modelscope":
        environ["VLLM_USE_MODELSCOPE"] = "True"
    return environ
