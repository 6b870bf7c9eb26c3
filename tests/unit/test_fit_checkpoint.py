"""Finding a model on this machine, and reading its headers: real files, some of them broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from backends.fit.checkpoint import Checkpoint, hub_cache, read_checkpoint
from backends.fit.headers import Piece, read_headers
from backends.snapshots import Missing
from tests.unit.fit_models import QWEN_7B, profile_of, write_model, write_tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_the_hub(cache: Path, model: str, revision: str = "main") -> Path:
    repository = cache / f"models--{model.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    write_model(folder, QWEN_7B | {"num_hidden_layers": 2})
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text(COMMIT)
    return folder


@pytest.mark.parametrize(
    ("variable", "where"),
    [
        ("HF_HUB_CACHE", "hub"),
        ("HUGGINGFACE_HUB_CACHE", "hub"),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
    ],
)
def test_a_model_of_the_hub_is_found_where_its_cache_is(tmp_path: Path, variable: str, where: str) -> None:
    folder = in_the_hub(tmp_path / where, "org/some-model")
    value = tmp_path / "hub" if variable.endswith("HUB_CACHE") or variable.startswith("HUGGING") else tmp_path
    found = read_checkpoint(profile_of("org/some-model"), {variable: str(value)})
    assert isinstance(found, Checkpoint)
    assert found.folder == folder
    assert found.files == 1
    assert not isinstance(found.pieces, Missing)


def test_the_profiles_environment_counts_before_the_askers(tmp_path: Path) -> None:
    in_the_hub(tmp_path / "here" / "hub", "org/some-model")
    profile = profile_of("org/some-model", env={"HF_HOME": str(tmp_path / "here")})
    assert isinstance(read_checkpoint(profile, {"HF_HOME": str(tmp_path / "elsewhere")}), Checkpoint)
    assert hub_cache({"HF_HOME": "/a", "HF_HUB_CACHE": "/b"}) == Path("/b")


def test_a_revision_and_a_download_dir_are_followed(tmp_path: Path) -> None:
    in_the_hub(tmp_path / "cache", "org/some-model", revision="v2")
    environ = {"HF_HUB_CACHE": str(tmp_path / "cache")}
    missing = read_checkpoint(profile_of("org/some-model"), environ)
    assert missing == Missing("org/some-model is not on this machine: download it first (hf download org/some-model)")
    assert isinstance(read_checkpoint(profile_of("org/some-model", revision="v2"), environ), Checkpoint)
    assert isinstance(read_checkpoint(profile_of("org/some-model", revision=COMMIT), environ), Checkpoint)
    elsewhere = profile_of("org/some-model", revision="v2", download_dir=str(tmp_path / "cache"))
    assert isinstance(read_checkpoint(elsewhere, {"HF_HUB_CACHE": str(tmp_path / "none")}), Checkpoint)


def test_only_the_files_of_the_index_count_and_all_must_be_there(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    sizes = [write_tensors(tmp_path / name, {f"model.layers.{n}.x.weight": (64, 64)}) for n, name in enumerate(names)]
    write_tensors(tmp_path / "consolidated.safetensors", {"layers.0.x.weight": (64, 64)})
    index = {"weight_map": {f"model.layers.{n}.x.weight": name for n, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_checkpoint(profile_of(tmp_path), {})
    assert isinstance(found, Checkpoint)
    assert not isinstance(found.pieces, Missing)
    assert sum(piece.stored_bytes for piece in found.pieces) == sum(sizes)
    (tmp_path / names[1]).unlink()
    found = read_checkpoint(profile_of(tmp_path), {})
    assert isinstance(found, Checkpoint)
    assert found.pieces == Missing(f"the download is not complete: {names[1]} of 2 files is not there")


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    def total() -> int:
        found = read_checkpoint(profile_of(tmp_path), {})
        assert isinstance(found, Checkpoint)
        assert not isinstance(found.pieces, Missing)
        return sum(piece.stored_bytes for piece in found.pieces)

    write_model(tmp_path, QWEN_7B, {"model.layers.0.x.weight": (64, 64)})
    assert total() == total() == 64 * 64 * 2
    write_tensors(tmp_path / "model.safetensors", {"model.layers.0.x.weight": (64, 128)})
    assert total() == 64 * 128 * 2


def test_what_is_not_there_or_broken_is_told_in_one_line(tmp_path: Path) -> None:
    assert read_checkpoint(profile_of(tmp_path / "no"), {}) == Missing(f"there is no folder {tmp_path / 'no'}")
    assert read_checkpoint(profile_of(tmp_path), {}) == Missing(f"{tmp_path} has no config.json")
    (tmp_path / "config.json").write_text("{broken")
    broken = read_checkpoint(profile_of(tmp_path), {})
    assert isinstance(broken, Missing)
    assert broken.reason.endswith("config.json is broken: it is not JSON; delete it and download it again")
    (tmp_path / "config.json").write_text("{}")
    empty = read_checkpoint(profile_of(tmp_path), {})
    assert isinstance(empty, Checkpoint)
    assert empty.pieces == Missing(f"{tmp_path} holds no weights: download it first")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "its header is cut short"),
        (b"\xff" * 64, "its header is cut short"),
        ((16).to_bytes(8, "little") + b"not json at all!", "its header cannot be read"),
        ((2).to_bytes(8, "little") + b"[]", "its header cannot be read"),
        ((12).to_bytes(8, "little") + b'{"a": "nope"', "its header cannot be read"),
    ],
)
def test_a_broken_header_names_its_file(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert read_headers((file,)) == Missing(f"model.safetensors is broken: {why}; delete it and download it again")


def test_a_file_that_ends_before_its_tensors_do_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_tensors(file, {"a.weight": (64, 64)})
    os.truncate(file, file.stat().st_size - 1)
    assert read_headers((file,)) == Missing(
        "model.safetensors is broken: it is cut short; delete it and download it again"
    )


def test_tensors_are_told_apart_by_where_they_go(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_tensors(
        file,
        {
            "model.embed_tokens.weight": (8, 4),
            "lm_head.weight": (8, 4),
            "model.layers.3.self_attn.k_proj.weight": (2, 4),
            "model.layers.3.self_attn.kv_a_proj_with_mqa.weight": (3, 4),
            "model.layers.3.mlp.experts.7.up_proj.weight": (5, 4),
            "model.layers.3.mlp.gate.weight": (7, 4),
            "model.layers.3.mlp.up_proj.weight": (6, 4),
            "model.layers.3.input_layernorm.weight": (4,),
            "visual.blocks.3.attn.qkv.weight": (9, 4),
            "mtp.layers.0.x.weight": (2, 2),
        },
    )
    found = read_headers((file,))
    assert not isinstance(found, Missing)
    assert set(found) == {
        Piece("embedding", "split", "BF16", False, 32, 64),
        Piece("head", "split", "BF16", False, 32, 64),
        Piece(3, "kv", "BF16", True, 8, 16),
        Piece(3, "whole", "BF16", False, 12 + 28 + 4, 88),
        Piece(3, "expert", "BF16", True, 20, 40),
        Piece(3, "split", "BF16", True, 24, 48),
        Piece("other", "split", "BF16", False, 36, 72),
        Piece("draft", "split", "BF16", False, 4, 8),
    }


def test_a_checkpoint_of_pytorch_is_told_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "float32"}))
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        file.truncate(4_000_000)
    found = read_checkpoint(profile_of(tmp_path), {})
    assert isinstance(found, Checkpoint)
    assert found.pieces == (Piece("other", "split", "F32", False, 1_000_000, 4_000_000),)
