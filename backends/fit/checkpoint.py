"""Where a profile's model lies on this machine, and what its files say of it; nothing is downloaded or loaded."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.fit.headers import DTYPE_BYTES, Piece, read_headers
from backends.snapshots import Missing

if TYPE_CHECKING:
    from profiles.schema import Profile

INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's configuration, and its tensors as its files have them; `files` is how many these are."""

    folder: Path
    config: dict[str, Any]
    pieces: tuple[Piece, ...] | Missing
    files: int = 0

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration: models that see or hear nest it."""
        for key in ("text_config", "llm_config", "language_config", "thinker_config"):
            if isinstance(nested := self.config.get(key), dict):
                inner = nested.get("text_config")
                return {**self.config, **nested, **(inner if isinstance(inner, dict) else {})}
        return self.config


def read_checkpoint(profile: Profile, environ: Mapping[str, str]) -> Checkpoint | Missing:
    """Read what is known of a profile's model, in the environment of whoever starts it.

    Missing says why nothing is: not downloaded, or broken. Where only the weights are, `pieces` says so.
    """
    if profile.model.endswith(".gguf"):
        return Missing("GGUF files are not read")
    folders = model_folders(profile, {**environ, **profile.env})
    if isinstance(folders, Missing):
        return folders
    config = next((folder / "config.json" for folder in folders if (folder / "config.json").is_file()), None)
    if config is None:
        return Missing(f"{folders[0]} has no config.json")
    parsed = _read_json(config)
    if isinstance(parsed, Missing):
        return parsed
    overrides = profile.args.get("hf_overrides")
    if isinstance(overrides, dict):
        parsed = parsed | overrides
    found: tuple[tuple[Piece, ...] | Missing, int] = (
        Missing(f"{config.parent} holds no weights: download it first"),
        0,
    )
    for folder in folders:
        files = _weight_files(folder)
        if isinstance(files, Missing):
            found = (files, 0)
        elif files:
            found = (_read_weights(files, _stamp(files), _config_dtype(parsed)), len(files))
            break
    return Checkpoint(config.parent, parsed, *found)


def model_folders(profile: Profile, environ: Mapping[str, str]) -> tuple[Path, ...] | Missing:
    """Return the folders that may hold a profile's files, the weights' own first; Missing where none is there."""
    if profile.source == "demo":
        from backends.demo.model import demo_model_dir

        folder = demo_model_dir()
        return (folder,) if folder.is_dir() else Missing("the demo model is made at its first start")
    if profile.source == "local":
        folder = Path(profile.model)
        return (folder,) if folder.is_dir() else Missing(f"there is no folder {folder}")
    caches = _modelscope_folders(profile.model, environ) if profile.source == "modelscope" else _hub(profile, environ)
    there = tuple(folder for folder in caches if folder.is_dir())
    return there or Missing(f"{profile.model} is not on this machine: download it first (hf download {profile.model})")


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Return the folder of the hub's cache, as huggingface_hub finds it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if path := environ.get(name):
            return Path(path).expanduser()
    home = environ.get("HF_HOME")
    if not home:
        cache = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".cache")
        home = str(Path(cache) / "huggingface")
    return Path(home).expanduser() / "hub"


def _hub(profile: Profile, environ: Mapping[str, str]) -> list[Path]:
    download = profile.args.get("download_dir")
    caches = [Path(download).expanduser()] if isinstance(download, str) else []
    revision = str(profile.args.get("revision", "main"))
    return [
        folder
        for cache in (*caches, hub_cache(environ))
        if (folder := _snapshot(cache / f"models--{profile.model.replace('/', '--')}", revision))
    ]


def _snapshot(repository: Path, revision: str) -> Path | None:
    """Return the folder of one revision: `refs/NAME` holds the commit whose files `snapshots/COMMIT` links to."""
    commit = revision
    with contextlib.suppress(OSError):
        commit = (repository / "refs" / revision).read_text().strip()
    folder = repository / "snapshots" / commit
    return folder if re.fullmatch(r"[\w.-]+", commit) and folder.is_dir() else None


def _modelscope_folders(model: str, environ: Mapping[str, str]) -> list[Path]:
    home = Path(environ.get("HOME", "~")).expanduser()
    cache = Path(environ.get("MODELSCOPE_CACHE") or home / ".cache" / "modelscope" / "hub")
    owner, _, name = model.rpartition("/")
    names = dict.fromkeys((name.replace(".", "___"), name))
    return [base / owner / called for base in (cache / "models", cache, cache / "hub" / "models") for called in names]


def _weight_files(folder: Path) -> tuple[Path, ...] | Missing:
    """Return the files that an engine would load: those of the index, else all safetensors, else PyTorch's own."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as problem:
        return Missing(f"{folder} cannot be listed: {problem.strerror}")
    if INDEX in names:
        index = _read_json(folder / INDEX)
        if isinstance(index, Missing):
            return index
        listed = index.get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            return Missing(f"{INDEX} is broken: it has no weight_map")
        wanted = sorted(set(listed.values()))
    else:
        tensors = [name for name in names if name.endswith(".safetensors")]
        wanted = [name for name in tensors if not name.startswith("consolidated")] or tensors
        wanted = wanted or [name for name in names if re.fullmatch(r"pytorch_model.*\.bin", name)]
    lost = [name for name in wanted if not (folder / name).is_file()]
    if lost:
        return Missing(f"the download is not complete: {lost[0]} of {len(wanted)} files is not there")
    return tuple(folder / name for name in wanted)


def _stamp(files: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    """Tell files from those that replace them."""
    stats = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        stats.append((status.st_size, status.st_mtime_ns))
    return tuple(stats)


@lru_cache(maxsize=64)
def _read_weights(
    files: tuple[Path, ...], stamp: tuple[tuple[int, int], ...], dtype: str
) -> tuple[Piece, ...] | Missing:
    """Read headers once for as long as the files stay as they are."""
    if files[0].suffix == ".safetensors":
        return read_headers(files)
    # A pickle's tensors are stored one after another, with next to nothing between them.
    size = sum(length for length, _ in stamp)
    return (Piece("other", "split", dtype, False, round(size / DTYPE_BYTES[dtype]), size),)


def _config_dtype(config: Mapping[str, Any]) -> str:
    said = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return {"bfloat16": "BF16", "float16": "F16"}.get(said, "F32")


def _read_json(path: Path) -> dict[str, Any] | Missing:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return Missing(f"{path.name} is too large to be one")
        parsed = json.loads(path.read_bytes())
    except OSError as problem:
        return Missing(f"{path} cannot be read: {problem.strerror}")
    except ValueError:
        return Missing(f"{path} is broken: it is not JSON; delete it and download it again")
    return parsed if isinstance(parsed, dict) else Missing(f"{path} is broken: it is not a table")
