"""Keys are read from where a profile says they are, and from nowhere that others can read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profiles.errors import InvalidProfileError
from profiles.schema import Profile, parse_profile, resolve_secrets


def profile_with(**secrets: str) -> Profile:
    return parse_profile({"name": "p", "model": "m", "secrets": secrets}, "p.toml")


def key_file(folder: Path, content: bytes = b"k3y\n", mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_each_secret_goes_into_its_own_variable(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    profile = profile_with(api_key="env:MY_KEY", hf_token=f"file:{path}", WANDB_API_KEY="env:W")
    found = resolve_secrets(profile, {"MY_KEY": " a ", "W": "w"})
    assert found == {"VLLM_API_KEY": "a", "HF_TOKEN": "k3y", "WANDB_API_KEY": "w"}


def test_resolved_keys_are_not_shown(tmp_path: Path) -> None:
    profile = profile_with(api_key=f"file:{key_file(tmp_path)}")
    assert "k3y" not in repr(resolve_secrets(profile, {}))
    assert "k3y" not in repr(profile)


def test_a_file_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    key_file(tmp_path)
    assert resolve_secrets(profile_with(hf_token="file:~/key"), {}) == {"HF_TOKEN": "k3y"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, mode=mode)
    with pytest.raises(InvalidProfileError, match=f"chmod 600 {path}"):
        resolve_secrets(profile_with(api_key=f"file:{path}"), {})


@pytest.mark.parametrize("content", [b"", b" \n", b"a\nb", b"\xff\xfe", b"x" * 100_000])
def test_a_file_must_hold_one_key(tmp_path: Path, content: bytes) -> None:
    path = key_file(tmp_path, content)
    with pytest.raises(InvalidProfileError, match="does not hold one key"):
        resolve_secrets(profile_with(api_key=f"file:{path}"), {})


def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(InvalidProfileError):
        resolve_secrets(profile_with(api_key=f"file:{tmp_path}/pipe"), {})


def test_all_that_is_missing_is_told_at_once() -> None:
    profile = profile_with(api_key="env:NOT_SET", hf_token="file:/nowhere/key", W="env:EMPTY")
    with pytest.raises(InvalidProfileError) as caught:
        resolve_secrets(profile, {"EMPTY": ""})
    api_key, hf_token, w = caught.value.problems
    assert str(api_key).startswith("profile p: secrets.api_key: $NOT_SET is not set; export NOT_SET=")
    assert "/nowhere/key cannot be read" in str(hf_token)
    assert w.where == "secrets.W"
