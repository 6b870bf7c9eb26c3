"""Which line a key stands on, whatever TOML form it is written in."""

from __future__ import annotations

import pytest

from profiles.lines import line_of

TEXT = '''\
# name = "not this one"
name = "a"
description = """
model = "nor this"
"""
model = "m"
"port" = 1
env = { A = "1" }
restart.policy = "never"

[args]
max-model-len = 1
hf_overrides.a."b c" = 2
x = [
  "y",
]

[args.table]
k = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (["name"], 2),
        (["model"], 6),
        (["port"], 7),
        (["env"], 8),
        (["env", "A"], 8),
        (["restart", "policy"], 9),
        (["restart"], 9),
        (["args"], 11),
        (["args", "max-model-len"], 12),
        (["args", "hf_overrides", "a", "b c"], 13),
        (["args", "x", "0"], 14),
        (["args", "table", "k"], 19),
        (["nowhere"], None),
        ([], None),
    ],
)
def test_the_line_of_a_key(path: list[str], line: int | None) -> None:
    assert line_of(TEXT, path) == line
