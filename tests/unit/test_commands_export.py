"""A profile becomes the command that a shell would run, and importing that gives the profile again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.commands import export_command, import_command
from profiles.flags import (
    APPENDED,
    FLOATS,
    JSON_LISTS,
    OWNED_ARGS,
    STORE_TRUE,
    VLLM_REPEATED,
    VLLM_SWITCHES,
    VLLM_VALUED,
)
from profiles.schema import Profile, args_to_argv, parse_profile
from profiles.secrets import looks_secret
from profiles.store import LIBRARY, Entry, Place, Store


def profile_of(**content: Any) -> Profile:
    return parse_profile({"name": "p", "model": "org/m"} | content, "test")


def again(profile: Profile) -> Profile:
    return parse_profile(import_command(export_command(profile), profile.name, {}).profile, "test")


def test_a_short_command_is_one_line() -> None:
    profile = profile_of(model="/models/x", served_name="/models/x", port=8000, args={"max_model_len": 2048})
    assert export_command(profile) == "vllm serve /models/x --host 127.0.0.1 --port 8000 --max-model-len 2048"


def test_a_long_one_has_a_line_for_each_part() -> None:
    profile = profile_of(
        served_name="chat",
        args={"tensor_parallel_size": 2, "hf_overrides": {"a": 1}, "lora_modules": ["a=/x y"]},
        env={"A": "b c"},
        secrets={"hf_token": "env:HF_TOKEN", "api_key": "file:~/my key"},
    )
    assert export_command(profile, (6, 7)).split(" \\\n  ") == [
        "CUDA_DEVICE_ORDER=PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES=6,7",
        "A='b c'",
        'HF_TOKEN="$HF_TOKEN"',
        "VLLM_API_KEY=\"$(cat ~/'my key')\"",
        "vllm serve org/m",
        "--served-model-name chat",
        "--host 127.0.0.1",
        "--tensor-parallel-size 2",
        "--hf-overrides '{\"a\": 1}'",
        "--lora-modules 'a=/x y'",
    ]


def test_each_engine_and_interpreter_has_its_form() -> None:
    module = "-m vllm.entrypoints.openai.api_server --model org/m"
    assert export_command(profile_of(python="/v/bin/python")).startswith(f"/v/bin/python {module}")
    assert export_command(profile_of(gpus="cpu")).startswith(f"CUDA_VISIBLE_DEVICES= python {module}")
    assert export_command(profile_of(), ("cpu",)).startswith("CUDA_VISIBLE_DEVICES= ")
    transformers = profile_of(engine="transformers", python="/v/bin/python")
    assert export_command(transformers) == "/v/bin/transformers serve org/m --host 127.0.0.1"
    demo = export_command(profile_of(model="demo", source="demo"), model="/made/here")
    assert demo == "vllm serve /made/here --served-model-name demo --host 127.0.0.1"


def test_one_that_sleeps_is_told_with_what_it_takes_and_comes_back() -> None:
    sleeper = profile_of(sleep=True, port=8000, args={"max_model_len": 2048})
    command = export_command(sleeper)
    assert command.split(" \\\n  ") == [
        "VLLM_SERVER_DEV_MODE=1",
        "vllm serve org/m",
        "--host 127.0.0.1",
        "--port 8000",
        "--enable-sleep-mode",
        "--max-model-len 2048",
    ]
    assert again(sleeper) == sleeper


def test_routes_that_run_code_are_opened_to_nobody_elsewhere() -> None:
    command = export_command(profile_of(sleep=True, host="0.0.0.0"))
    assert "--enable-sleep-mode" in command
    assert "VLLM_SERVER_DEV_MODE" not in command


# The demo's model has a path only where it was made.
SERVED = [entry for entry in Store([Place("library", LIBRARY)]).entries() if entry.name != "demo"]


@pytest.mark.parametrize("entry", SERVED, ids=lambda entry: entry.name)
def test_the_library_goes_to_commands_and_back(entry: Entry) -> None:
    assert entry.profile is not None
    kept = {"model", "engine", "served_name", "host", "port", "gpus", "args", "env", "secrets"}
    assert again(entry.profile).model_dump(include=kept) == entry.profile.model_dump(include=kept)


FAKE = """\
#!{python}
import json, os, sys
json.dump({{"argv": sys.argv[1:], "environ": dict(os.environ)}}, open({out!r}, "w"))
"""


def test_a_real_shell_starts_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "vllm").write_text(FAKE.format(python=sys.executable, out=str(tmp_path / "out")))
    (tmp_path / "vllm").chmod(0o755)
    (tmp_path / "my key").write_text("from a file\n")
    profile = profile_of(
        model="/a b/$m",
        port=8000,
        args={"chat_template": 'it\'s {{ $x }} "q" \\ `t`\nline', "hf_overrides": {"é": "'"}, "seed": -1, "zz": ""},
        env={"NOTE": "a 'b' $HOME\nc"},
        secrets={"api_key": f"file:{tmp_path}/my key", "hf_token": "env:TOKEN"},
    )
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TOKEN": "a  token"}
    subprocess.run(["sh", "-c", export_command(profile, ("3",))], env=environ, check=True)
    said = json.loads((tmp_path / "out").read_text())
    address = ["--served-model-name", "$m", "--host", "127.0.0.1", "--port", "8000"]
    assert said["argv"] == ["serve", "/a b/$m", *address, *args_to_argv(profile.args)]
    for name, value in {
        "NOTE": "a 'b' $HOME\nc",
        "VLLM_API_KEY": "from a file",
        "HF_TOKEN": "a  token",
        "CUDA_VISIBLE_DEVICES": "3",
    }.items():
        assert said["environ"][name] == value


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\1\2"), max_size=8).filter(
    lambda text: not text.lstrip().startswith("{")
)
TABLE = st.dictionaries(
    TEXT, st.one_of(st.integers(), st.booleans(), st.floats(-1e9, 1e9), TEXT, st.lists(st.integers())), min_size=1
)


def named(names: frozenset[str], value: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.sampled_from(sorted(names - OWNED_ARGS.keys())), value)


UNKNOWN = frozenset(f"zz_{letter}" for letter in "abcdef")
PLAIN_VALUE = st.one_of(st.integers(), st.floats(-1e9, 1e9), TEXT)
WORDS = st.lists(TEXT.filter(lambda text: not text.startswith("-")), min_size=1, max_size=3)
ARGS = st.lists(
    st.one_of(
        named(VLLM_SWITCHES - STORE_TRUE, st.booleans()),
        named(STORE_TRUE, st.just(True)),
        named(VLLM_VALUED - FLOATS - JSON_LISTS - APPENDED, PLAIN_VALUE | TABLE),
        named(FLOATS, st.floats(0, 1)),
        named(VLLM_REPEATED, WORDS),
        named(APPENDED, WORDS),
        named(JSON_LISTS, st.lists(TEXT, min_size=1)),
        named(UNKNOWN, PLAIN_VALUE | TABLE | st.booleans()),
    ),
    max_size=6,
    unique_by=lambda pair: pair[0],
).map(dict)
ENVIRON = st.dictionaries(
    st.from_regex(r"X_[A-Z]{1,4}", fullmatch=True).filter(lambda n: not looks_secret(n, "")), TEXT
)


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(
    args=ARGS,
    environ=ENVIRON,
    model=st.sampled_from(["org/m", "/a b/m'x", "/m/$x", "~/m", "gpt2"]),
    served_name=st.sampled_from([None, "chat", "org/m", "a b"]),
    port=st.sampled_from(["auto", 8000]),
    secrets=st.sampled_from([{}, {"api_key": "env:K"}, {"hf_token": "file:/a b", "W_KEY": "env:W"}]),
)
def test_importing_what_was_exported_gives_the_profile_again(
    args: dict[str, Any], environ: dict[str, str], model: str, served_name: str | None, port: Any, secrets: Any
) -> None:
    said = {"served_name": served_name} if served_name else {}
    # The count of GPUs follows from the arguments.
    profile = profile_of(model=model, args=args, env=environ, port=port, secrets=secrets, **said)
    back = again(profile)
    assert args_to_argv(back.args) == args_to_argv(profile.args)
    kept = {"model", "source", "served_name", "port", "host", "env", "secrets", "gpus"}
    assert back.model_dump(include=kept) == profile.model_dump(include=kept)
    assert export_command(back) == export_command(profile)
