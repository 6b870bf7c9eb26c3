"""What safetensors headers tell of a checkpoint's tensors, summed up by where on the GPUs they go."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from backends.snapshots import Missing

HEADER_LIMIT_BYTES = 100 << 20
"""The format's own limit; a longer one is a broken file."""

DTYPE_BYTES = {
    "F64": 8.0,
    "F32": 4.0,
    "F16": 2.0,
    "BF16": 2.0,
    "I64": 8.0,
    "U64": 8.0,
    "I32": 4.0,
    "U32": 4.0,
    "I16": 2.0,
    "U16": 2.0,
    "I8": 1.0,
    "U8": 1.0,
    "BOOL": 1.0,
    "F8_E4M3": 1.0,
    "F8_E5M2": 1.0,
    "F8_E8M0": 1.0,
}
FLOATS = frozenset(("F64", "F32", "F16", "BF16"))

Place = int | Literal["embedding", "head", "other", "draft"]
Role = Literal["split", "kv", "expert", "whole"]

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embeddings)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|output|embed_out)\.weight$")
_DRAFT = re.compile(r"(?:^|\.)(?:mtp|eagle|medusa)\w*\.")
_ENCODER = re.compile(r"(?:^|\.)(?:visual|vision\w*|audio\w*|image\w*|multi_modal_projector|mm_projector)\.")
_KV = re.compile(r"\.(?:k_proj|v_proj)\.")
_WHOLE = re.compile(r"\.(?:q_a_proj|kv_a_proj_with_mqa|fused_qkv_a_proj|gate|router|shared_expert_gate)\.|norm")


@dataclass(frozen=True, slots=True)
class Piece:
    """Tensors that go to the GPUs alike: of one layer (or of none), with one role and one type.

    `role`: `split` is divided among tensor parallel GPUs, `kv` by key-value heads, `expert` among all that share the
    experts, `whole` is on each. `linear` tells matrices that an engine may quantize. `dtype` is the file's own name.
    """

    place: Place
    role: Role
    dtype: str
    linear: bool
    elements: int
    stored_bytes: int


def read_headers(files: tuple[Path, ...]) -> tuple[Piece, ...] | Missing:
    """Sum up the tensors of safetensors files; Missing where one of them is broken or cut short."""
    sums: defaultdict[tuple[Place, Role, str, bool], list[int]] = defaultdict(lambda: [0, 0])
    for file in files:
        header = _header(file)
        if isinstance(header, Missing):
            return header
        for name, (dtype, shape, stored) in header.items():
            total = sums[_key(name, dtype, shape)]
            total[0] += prod(shape)
            total[1] += stored
    return tuple(Piece(*key, elements, stored) for key, (elements, stored) in sums.items())


def _header(file: Path) -> dict[str, tuple[str, list[int], int]] | Missing:
    """Return each tensor's type, shape and bytes: 8 bytes of length, then that much JSON."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT_BYTES):
                return _broken(file, "its header is cut short")
            parsed = json.loads(stream.read(length))
        tensors = {
            name: (
                str(said["dtype"]),
                [int(n) for n in said["shape"]],
                said["data_offsets"][1] - said["data_offsets"][0],
            )
            for name, said in parsed.items()
            if name != "__metadata__"
        }
        end = max((said["data_offsets"][1] for name, said in parsed.items() if name != "__metadata__"), default=0)
    except OSError as problem:
        return Missing(f"{file.name} cannot be read: {problem.strerror}")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return _broken(file, "its header cannot be read")
    if 8 + length + end > size:
        return _broken(file, "it is cut short")
    return tensors


def _broken(file: Path, why: str) -> Missing:
    return Missing(f"{file.name} is broken: {why}; delete it and download it again")


def _key(name: str, dtype: str, shape: list[int]) -> tuple[Place, Role, str, bool]:
    is_matrix = len(shape) >= 2
    layer = _LAYER.search(name)
    if _DRAFT.search(name):
        return "draft", "split", dtype, False
    if _ENCODER.search(name):
        return "other", "split" if is_matrix else "whole", dtype, False
    if layer is None:
        place: Place = "embedding" if _EMBEDDING.search(name) else "head" if _HEAD.search(name) else "other"
        return place, "split" if is_matrix else "whole", dtype, False
    role: Role = "split"
    if ".experts." in name:
        role = "expert"
    elif _KV.search(name):
        role = "kv"
    elif not is_matrix or _WHOLE.search(name):
        role = "whole"
    return int(layer[1]), role, dtype, is_matrix and role != "whole" and dtype in FLOATS
