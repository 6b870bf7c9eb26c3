"""The shell reader agrees with a real shell about what the words are."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from profiles.errors import RefusedError
from profiles.shell import expand, fields, reference, split

WRITE_WORDS = "import json, os, sys; json.dump(sys.argv[1:], open(os.environ['WORDS'], 'w'))"
ENVIRON = {"HOME": "/home/u", "A": "value", "TWO": " one\ttwo ", "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "'single $A' \"double $A\" bare$A",
        "\"it's ${A}'s\"",
        "a\\ b 'c'\"d\"e",
        "one \\\n  two \\\n\tthree",
        "\"a \\\n b\" 'c \\\n d'",
        r'"\" \$A \\ \n"',
        r"\$A \"x\"",
        "~/models x~ ~/a/b '~/c' \"~/d\"",
        '${A:-other} ${NOPE:-other} "${NOPE:-}"',
        '\'{"a": {"b": [1, 2]}}\' {"x":1}',
        "--flag=\"a b\" --empty='' ''",
        "x # a comment\n",
        "x#y 'a'#b",
        "a=b c=~/d",
        "é 日本 $ a$",
        "x > /dev/null",
        "x 2>&1 >> /dev/null",
        "x 2 2>/dev/null",
        "x </dev/null &",
        "$TWO \"$TWO\" '$TWO' ${TWO}",
    ],
)
def test_words_are_those_of_a_real_shell(text: str, tmp_path: Path) -> None:
    program = f"{shlex.quote(sys.executable)} -c {shlex.quote(WRITE_WORDS)}"
    environ = ENVIRON | {"WORDS": str(tmp_path / "words")}
    subprocess.run(["bash", "-c", f"{program} {text}\nwait"], env=environ, check=True)
    (found,) = split(f"program {text}")
    words = [field for word in found.words[1:] for field in fields(word, ENVIRON)]
    assert [expand(word, ENVIRON) for word in words] == json.loads((tmp_path / "words").read_text())


def test_commands_are_taken_apart_and_what_is_dropped_is_told() -> None:
    found = split("$ cd x && A=1 run 'a;b' > log 2>&1 &\nnext | tee out; (last)\n")
    assert [command.words for command in found] == [
        ("cd", "x"), ("A=1", "run", "a;b"), ("next",), ("tee", "out"), ("last",),
    ]  # fmt: skip
    assert found[1].dropped == ("> log", "2>&1", "&")


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("$KEY", "env:KEY"),
        ("${KEY}", "env:KEY"),
        ('"$KEY"', "env:KEY"),
        ("${KEY:-}", "env:KEY"),
        ("$(cat /run/key)", "file:/run/key"),
        ('"$(cat ~/key)"', "file:~/key"),
        ("$(< '/a b/key')", "file:/a b/key"),
        ("`cat /run/key`", "file:/run/key"),
        ("'$KEY'", None),
        ("x$KEY", None),
        ("$(pass show key)", None),
        ("$1", None),
    ],
)
def test_a_word_that_is_nothing_but_a_variable_or_a_file_is_a_reference(word: str, found: str | None) -> None:
    (command,) = split(word)
    assert reference(command.words[0]) == found


@pytest.mark.parametrize("text", ["'open", '"open', "x \\", "<<EOF\nx\nEOF", "x <(y)", "a 'b' \"c"])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="cannot be read from"):
        split(text)


@pytest.mark.parametrize(
    ("word", "said"), [("$NOPE", "not set"), ("$(date)", "cannot be known"), ("$MY_TOKEN", "a key")]
)
def test_what_is_not_known_is_refused(word: str, said: str) -> None:
    (command,) = split(word)
    with pytest.raises(RefusedError, match=said):
        expand(command.words[0], {"MY_TOKEN": "k3y"})
