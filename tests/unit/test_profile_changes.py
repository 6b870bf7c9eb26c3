"""Changes of single keys leave the rest of a profile's text as a person wrote it."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from profiles.changes import changed, changed_text, differences

TEXT = '''\
# mine
model = "a/b"  # the model
description = """
[args] is not here
"""

[args]
# long talks
max-model-len = 32768 # all of it
stop = [
  "a",
  "b", # two
]

[env]
A = "x # y" # z
'''


@pytest.mark.parametrize(
    ("changes", "gone", "there"),
    [
        ({"args.max_model_len": 6496}, ["max-model-len = 32768 # all of it"], ["max-model-len = 6496 # all of it"]),
        ({"args.max_model_len": None}, ["max-model-len = 32768 # all of it"], []),
        ({"args.kv_cache_dtype": "fp8"}, [], ['kv_cache_dtype = "fp8"']),
        ({"args.stop": None}, ["stop = [", '  "a",', '  "b", # two', "]"], []),
        ({"env.A": "q"}, ['A = "x # y" # z'], ['A = "q" # z']),
        ({"port": "auto"}, [], ['port = "auto"']),
        ({"secrets.hf_token": "env:HF_TOKEN"}, [], ["", "[secrets]", 'hf_token = "env:HF_TOKEN"']),
        ({"args.absent": None}, [], []),
        (
            {"args.max_model_len": None, "args.max_len": 5, "gpus": 2},
            ["max-model-len = 32768 # all of it"],
            ["max_len = 5", "gpus = 2"],
        ),
    ],
)
def test_only_what_changes_changes(changes: dict[str, Any], gone: list[str], there: list[str]) -> None:
    after = changed_text(TEXT, changes)
    before_lines, after_lines = TEXT.splitlines(), after.splitlines()
    kept = [line for line in before_lines if line not in gone]
    assert sorted(after_lines) == sorted(kept + there)
    assert [line for line in after_lines if line in kept and line] == [line for line in kept if line]
    assert {k: v for k, v in tomllib.loads(after).items() if v} == changed(tomllib.loads(TEXT), changes)


@pytest.mark.parametrize(
    "text", ['args = { a = 1, b = 2 }\nmodel = "m"\n', 'model = "m"\nargs.a = 1\nargs.b = 2\n', ""]
)
def test_whatever_the_text_looks_like_the_result_is_right(text: str) -> None:
    changes = {"args.a": 7, "args.c": {"x": [1, {"y": "z"}]}, "args.b": None}
    wanted = changed(tomllib.loads(text), changes)
    assert tomllib.loads(changed_text(text, changes)) == wanted
    assert wanted["args"] == {"a": 7, "c": {"x": [1, {"y": "z"}]}}


def test_differences_are_changes() -> None:
    one = {"model": "m", "args": {"max-model-len": 5, "gone": True}}
    other = {"model": "m", "args": {"max_model_len": 6}, "env": {"A": "1"}}
    assert differences(one, other) == {"args.max_model_len": 6, "env.A": "1", "args.gone": None}
