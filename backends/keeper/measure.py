"""How far a download or a loading of weights is, by bytes, where the engine's log does not tell: folders and files."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.demo.model import demo_model_dir
from backends.engines.base import StageMark
from backends.engines.stages import DOWNLOAD, WEIGHTS
from profiles.schema import is_path

if TYPE_CHECKING:
    from profiles.schema import Profile

RATE_OVER_S = 10.0
ALMOST = 0.99
"""What is measured is not exact enough to say that all is there."""

_GIB, _MIB = 1 << 30, 1 << 20


def hub_folder(profile: Profile, environ: Mapping[str, str]) -> Path | None:
    """Return the folder in which the hub's library keeps the model, there or not; None where it is not from the hub."""
    if profile.source != "hub" or is_path(profile.model):
        return None
    asked = profile.args.get("download_dir")
    return (Path(asked) if isinstance(asked, str) else _cache(environ)) / f"models--{profile.model.replace('/', '--')}"


def model_folder(profile: Profile, environ: Mapping[str, str]) -> Path | None:
    """Return the folder whose weights are loaded: the hub's, a local path, or the demo model's."""
    if profile.source == "demo":
        return demo_model_dir()
    return Path(profile.model).expanduser() if is_path(profile.model) else hub_folder(profile, environ)


def lock_folders(profile: Profile, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return where the hub's library keeps its locks for the model."""
    folder = hub_folder(profile, environ)
    return () if folder is None else (folder.parent / ".locks" / folder.name,)


def _cache(environ: Mapping[str, str]) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(environ[name]).expanduser()
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"]).expanduser() / "hub"
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    cache = Path(environ["XDG_CACHE_HOME"]) if environ.get("XDG_CACHE_HOME") else home / ".cache"
    return cache / "huggingface" / "hub"


def weights_bytes(folder: Path) -> int | None:
    """Return what a model's weights take on disk; None where there are none to be seen."""
    with contextlib.suppress(OSError):
        files = list(folder.glob("*.safetensors"))
        # Mistral's models bring their weights twice; engines read one of the two.
        kept = [path for path in files if not path.name.startswith("consolidated")] or files
        return sum(path.stat().st_size for path in kept) or None
    return None


class Download:
    """A download of the hub's library: what has arrived of a model, and how fast it comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: deque[tuple[float, int]] = deque()
        self._grows = False

    def mark(self, at: float) -> StageMark | None:
        """Return how far it is at `at` (Unix seconds); None while nothing is being fetched."""
        try:
            blobs = [path for path in (self._folder / "blobs").iterdir() if path.is_file()]
            sizes = {path.name: path.stat().st_size for path in blobs}
        except OSError:
            return None
        if not any(name.endswith(".incomplete") for name in sizes):
            return None
        arrived = sum(sizes.values())
        # What an earlier download has left behind does not grow.
        self._grows = self._grows or bool(self._seen and arrived > self._seen[0][1])
        self._seen.append((at, arrived))
        while len(self._seen) > 2 and at - self._seen[1][0] >= RATE_OVER_S:
            self._seen.popleft()
        if not self._grows:
            return None
        (then, before), total = self._seen[0], self._total()
        rate = max(0, arrived - before) / (at - then) if at > then else None
        of = f" of {_amount(total)}" if total else ""
        speed = f", {_amount(rate)}/s" if rate is not None else ""
        return StageMark(DOWNLOAD, min(ALMOST, arrived / total) if total else None, f"{_amount(arrived)}{of}{speed}")

    def _total(self) -> int | None:
        """Return the size of the weights as their index tells it, once that has arrived."""
        for index in self._folder.glob("snapshots/*/*.safetensors.index.json"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                content: dict[str, Any] = json.loads(index.read_bytes())
                return int(content["metadata"]["total_size"])
        return None


class Loading:
    """Weights on their way from `folder` into memory, by what was read from disk or grew in memory since it began."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._total: int | None = None
        self._begun: tuple[int, int] | None = None

    def mark(self, disk_bytes: int, memory_bytes: int) -> StageMark | None:
        """Return how far it is; None where the weights' size is not known, or nothing has moved."""
        if self._begun is None or self._total is None:
            self._begun, self._total = (disk_bytes, memory_bytes), _of_model(self._folder)
        if not self._total:
            return None
        moved = max(disk_bytes - self._begun[0], memory_bytes - self._begun[1])
        share = min(ALMOST, moved / self._total)
        return StageMark(WEIGHTS, share, f"{_amount(moved)} of {_amount(self._total)}") if share > 0 else None


def _of_model(folder: Path) -> int | None:
    """Return the weights' size in a folder of a model, or of the hub's cache."""
    snapshots = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime)
    return weights_bytes(snapshots[-1] if snapshots else folder)


def _amount(size_bytes: float) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / _MIB:.0f} MiB"
