"""From a profile to a request to start it: for flags and for the screen; imports neither textual nor pydantic."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends import paths
from backends.errors import GpuboxError, ProfileError
from backends.snapshots import Missing, StartRequest

if TYPE_CHECKING:
    from backends.fit.estimate import Fit
    from backends.snapshots import Box
    from profiles.errors import InvalidProfileError
    from profiles.schema import Profile
    from profiles.store import Store


MEMORY_STEP_BYTES = 256 << 20
"""Whether something fits is reckoned anew when a GPU's free memory has changed by so much."""


@dataclass(frozen=True, slots=True)
class LaunchIntent:
    """What to start, and what to lay over the profile; None takes what the profile says, port 0 any free one.

    `asleep` asks for a warm spare, which sleeps as soon as it is ready.
    """

    profile: str
    gpus: tuple[str, ...] | None = None
    port: int | None = None
    sets: tuple[str, ...] = ()
    envs: tuple[str, ...] = ()
    name: str | None = None
    sleep: bool | None = None
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class Launchable:
    """A valid profile, ready to be started; `data` is what its file says, `digest` its text's SHA-256."""

    profile: Profile
    data: dict[str, Any]
    digest: str | None = None

    def merged(self, intent: LaunchIntent) -> tuple[Profile, dict[str, Any]]:
        """Lay an intent's settings over the profile; raises ProfileError where the result is none."""
        from profiles.arguments import with_overrides
        from profiles.errors import InvalidProfileError
        from profiles.schema import parse_profile

        try:
            content = with_overrides(self.data, intent.sets, intent.envs)
            if intent.sleep is not None and intent.sleep != self.profile.sleep:
                content = slept(content, sleep=intent.sleep)
            return parse_profile(content, self.profile.name), content
        except InvalidProfileError as wrong:
            raise profile_error(wrong) from wrong

    def needed(self, intent: LaunchIntent) -> int:
        """Return how many GPUs the launch takes; 0 is the CPU."""
        gpus = self.merged(intent)[0].gpus
        return 0 if gpus == "cpu" else gpus

    def command(self, intent: LaunchIntent) -> str:
        """Return the shell command that the launch amounts to, in one line."""
        from profiles.commands import export_command

        profile, _ = self.merged(intent)
        if intent.port is not None:
            profile = profile.model_copy(update={"port": intent.port or "auto"})
        command = export_command(profile, None if intent.gpus == ("auto",) else intent.gpus, model_here(profile))
        return command.replace(" \\\n ", "")

    def request(self, intent: LaunchIntent) -> StartRequest:
        """Return what the keeper is asked for."""
        _, content = self.merged(intent)
        environ = dict(os.environ)
        return StartRequest(content, environ, intent.name, intent.gpus, intent.port, self.digest, intent.asleep)


def slept(content: dict[str, Any], *, sleep: bool) -> dict[str, Any]:
    """Return a profile's content with its server able to sleep, or not: then without what goes with sleep."""
    kept = {key: value for key, value in content.items() if sleep or key not in ("ttl", "wake_on_request", "prime")}
    return kept | {"sleep": sleep}


def open_store(profile_dir: Path | None) -> Store:
    """Return the profiles that are searched: a folder that was named, the user's own, the library."""
    from profiles.store import LIBRARY, Place, Store

    named = [Place("folder", profile_dir)] if profile_dir else []
    return Store([*named, Place("user", paths.profile_dir()), Place("library", LIBRARY)])


def read_launchable(store: Store, name: str) -> Launchable:
    """Read one profile; raises ProfileError with every problem."""
    from profiles.errors import InvalidProfileError

    try:
        loaded = store.load(name)
    except InvalidProfileError as wrong:
        raise profile_error(wrong) from wrong
    return Launchable(loaded.profile, loaded.data, loaded.digest)


def model_here(profile: Profile) -> str | None:
    """Return the folder of a model that gpubox makes itself; None where the profile names the model."""
    if profile.source != "demo":
        return None
    from backends.demo.model import demo_model_dir

    return str(demo_model_dir())


def fit_of(profile: Profile, box: Box, chosen: tuple[str, ...]) -> Fit | str:
    """Reckon how a profile fits on the chosen GPUs, or say why not; reads the model's headers: not for the UI loop."""
    from backends.fit.checkpoint import read_checkpoint
    from backends.fit.choices import fit_here

    try:
        return fit_here(profile, box, chosen, os.environ, read_checkpoint(profile, os.environ))
    except GpuboxError as problem:
        return problem.message


def memory_state(box: Box) -> tuple[object, ...]:
    """Return what of the box's memory decides whether something fits, coarse enough not to change each second."""
    free = (None if isinstance(gpu.memory_free_bytes, Missing) else gpu.memory_free_bytes for gpu in box.gpus)
    return tuple(None if one is None else one // MEMORY_STEP_BYTES for one in free)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn what the profiles package raises, and a disk that refuses, into an error of one clear line."""
    from profiles.errors import InvalidProfileError

    try:
        yield
    except InvalidProfileError as wrong:
        raise profile_error(wrong) from wrong
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        raise ProfileError(
            f"{where}{problem.strerror or problem}", "nothing is lost: mend that, or try again"
        ) from None


def profile_error(wrong: InvalidProfileError) -> ProfileError:
    """Return the error that people see: one line and what to do, or a line for each problem."""
    if len(wrong.problems) > 1:
        return ProfileError("\n".join([f"{len(wrong.problems)} problems", *(f"  {p}" for p in wrong.problems)]))
    problem = wrong.problems[0]
    return ProfileError(str(problem).removesuffix(f"; {problem.suggestion}"), problem.suggestion)
