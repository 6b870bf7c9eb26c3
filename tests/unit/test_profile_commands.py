"""`gpubox profiles …` as a person runs it: real processes, real files, a real editor program."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

COMMAND = "CUDA_VISIBLE_DEVICES=6 vllm serve /models/x --port 8000 --max-model-len 2048"


class Box:
    """A home of its own for the commands that a test runs."""

    def __init__(self, home: Path) -> None:
        self.profiles = home / "config/profiles"
        self.environ = {key: value for key, value in os.environ.items() if key not in ("VISUAL", "EDITOR")}
        self.environ |= {"GPUBOX_HOME": str(home), "TMPDIR": str(home)}

    def run(self, *words: str, said: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tui", *words],
            env=self.environ | environ,
            input=said,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def done(self, *words: str, said: str = "") -> str:
        """Run a command that must succeed, and return what it prints."""
        found = self.run(*words, said=said)
        assert found.returncode == 0, found.stderr
        return found.stdout

    def write(self, name: str, text: str) -> Path:
        self.profiles.mkdir(parents=True, exist_ok=True)
        path = self.profiles / f"{name}.toml"
        path.write_text(text)
        return path


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_list_shows_the_library_and_what_is_broken(box: Box) -> None:
    box.write("bad", "model = 1\n")
    found = box.run("profiles", "list")
    assert found.returncode == 0
    lines = found.stdout.splitlines()
    assert lines[0].split() == ["NAME", "ENGINE", "GPUS", "FROM", "MODEL"]
    assert lines[1].split() == ["bad", "broken", "user"]
    assert ["demo", "vllm", "cpu", "library", "demo"] in [line.split() for line in lines]
    assert "bad.toml:1: model: must be text" in found.stderr
    rows = {row["name"]: row for row in json.loads(box.done("profiles", "list", "--json"))}
    assert rows["qwen2.5-14b-instruct-tp2"]["gpus"] == 2
    assert rows["bad"]["problems"][0]["line"] == 1


def test_a_named_folder_is_searched_first(box: Box, tmp_path: Path) -> None:
    named = tmp_path / "team"
    named.mkdir()
    (named / "demo.toml").write_text('model = "org/ours"')
    assert (
        json.loads(box.done("--profile-dir", str(named), "profiles", "show", "demo", "--json"))["model"] == "org/ours"
    )
    box.done("--profile-dir", str(named), "profiles", "copy", "demo", "theirs")
    assert (named / "theirs.toml").exists()


def test_show_tells_what_is_left_to_the_defaults(box: Box) -> None:
    shown = box.done("profiles", "show", "llama-3-8b-instruct")
    for told in ("127.0.0.1, any free port", "max_model_len = 8192", "hf_token from env:HF_TOKEN", "gated"):
        assert told in shown


def test_show_counts_in_words(box: Box) -> None:
    once = "[restart]\npolicy = 'on-failure'\nmax_attempts = 1\n[logs]\nkeep = 1\n"
    box.write("once", f'model = "org/m"\n{once}')
    shown = box.done("profiles", "show", "once")
    assert "after a failure, 1 time, from" in shown
    assert "of 1 start, " in shown


def test_show_tells_that_a_server_sleeps(box: Box) -> None:
    box.write("quiet", 'model = "org/m"\nsleep = true\nttl = 30\nwake_on_request = true\n')
    assert "sleeps after 30 idle min, and to give way; wakes for a request, too" in box.done(
        "profiles", "show", "quiet"
    )
    assert "sleeps" not in box.done("profiles", "show", "demo")


def test_validate_fails_for_problems_only(box: Box) -> None:
    good = box.write("good", 'model = "m"\n[args]\nmax_model_length = 1\n')
    found = box.run("profiles", "validate", "good", str(good))
    assert found.returncode == 0
    assert found.stdout.count("did you mean max_model_len?") == 2
    box.write("bad", "modell = 1\n")
    found = box.run("profiles", "validate")
    assert found.returncode == 3
    assert "✓ demo" in found.stdout
    assert "bad.toml:1: modell: no such key; did you mean model?" in found.stdout
    found = box.run("profiles", "validate", "nowhere", "--json")
    assert found.returncode == 3
    assert "no such profile" in json.loads(found.stdout)[0]["problems"][0]["message"]


def test_an_error_is_a_line_and_what_to_do(box: Box) -> None:
    found = box.run("profiles", "show", "dmo")
    assert (found.returncode, found.stdout) == (3, "")
    assert found.stderr == "gpubox: dmo: no such profile\n  → did you mean demo?\n"


def test_new_copy_and_rm(box: Box) -> None:
    path = Path(box.done("profiles", "new", "mine", "--model", "org/m").strip())
    assert path == box.profiles / "mine.toml"
    assert tomllib.loads(path.read_text())["model"] == "org/m"
    box.done("profiles", "new", "second", "--from", "qwen2.5-7b-instruct", "--model", "org/n")
    second = tomllib.loads((box.profiles / "second.toml").read_text())
    assert (second["model"], second["args"]["max_model_len"]) == ("org/n", 2048)
    assert "description" not in second
    assert box.run("profiles", "new", "mine", "--from", "demo").returncode == 3
    assert box.run("profiles", "new", "third").returncode == 2
    box.done("profiles", "copy", "mine", "other")
    assert (box.profiles / "other.toml").read_text() == path.read_text()
    box.done("profiles", "rm", "mine", "other", "second")
    assert os.listdir(box.profiles) == []
    assert box.run("profiles", "rm", "demo").returncode == 3


def test_a_folder_that_cannot_be_made_is_told_in_a_line(box: Box) -> None:
    box.profiles.parent.parent.mkdir(exist_ok=True)
    box.profiles.parent.write_text("a file where the folder should be")
    found = box.run("profiles", "new", "a", "--model", "m")
    assert found.returncode == 3
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("words", [[COMMAND], shlex.split(COMMAND)])
def test_import_and_command_are_a_round_trip(box: Box, words: list[str]) -> None:
    found = box.run("profiles", "import", "--name", "x", "--", *words)
    assert found.returncode == 0
    assert found.stdout.strip() == str(box.profiles / "x.toml")
    assert "start it: gpubox --headless --profile x --gpus 6" in found.stderr
    command = box.done("profiles", "command", "x", "--gpus", "6")
    assert shlex.split(command.replace("\\\n", "")) == [
        "CUDA_DEVICE_ORDER=PCI_BUS_ID", *shlex.split("CUDA_VISIBLE_DEVICES=6 vllm serve /models/x --host 127.0.0.1"),
        *shlex.split("--port 8000 --max-model-len 2048"),
    ]  # fmt: skip
    before = (box.profiles / "x.toml").read_text()
    assert box.run("profiles", "import", "--name", "x", said=command).returncode == 3
    box.done("profiles", "import", "--name", "x", "--force", said=command)
    assert (box.profiles / "x.toml").read_text() == before


def test_a_dry_import_writes_nothing(box: Box) -> None:
    found = json.loads(box.done("profiles", "import", "--dry-run", "--json", "vllm serve m --api-key k3y"))
    assert found["profile"]["secrets"] == {"api_key": "env:VLLM_API_KEY"}
    assert found["path"] is None
    assert not box.profiles.exists()
    assert 'api_key = "env:VLLM_API_KEY"' in box.done("profiles", "import", "--dry-run", "vllm serve m --api-key k3y")


EDITOR = """\
import pathlib, sys
turns = pathlib.Path({turns!r})
left = turns.read_text().split("---\\n")
pathlib.Path(sys.argv[-1]).write_text(left[0])
turns.write_text("---\\n".join(left[1:]))
"""


def editor(tmp_path: Path, *texts: str) -> str:
    """Return a command that stands for a person: each run leaves the next of `texts` in the file."""
    (tmp_path / "turns").write_text("---\n".join(texts))
    script = tmp_path / "my editor.py"
    script.write_text(EDITOR.format(turns=str(tmp_path / "turns")))
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} --wait"


def test_edit_shows_problems_and_lets_one_mend_them(box: Box, tmp_path: Path) -> None:
    box.write("a", 'model = "m"\n')
    person = editor(tmp_path, 'modell = "n"\n', '# mended\nmodel = "n"\n')
    found = box.run("profiles", "edit", "a", said="\n", VISUAL=person, EDITOR="false")
    assert found.returncode == 0, found.stderr
    assert "a.toml:1: modell: no such key; did you mean model?" in found.stderr
    assert (box.profiles / "a.toml").read_text() == '# mended\nmodel = "n"\n'
    assert list(tmp_path.glob("gpubox-*")) == []


def test_edits_that_are_not_valid_are_kept_beside(box: Box, tmp_path: Path) -> None:
    path = box.write("a", 'model = "m"\n')
    found = box.run("profiles", "edit", "a", said="n\n", EDITOR=editor(tmp_path, "hours of work\n"))
    assert found.returncode == 3
    assert path.read_text() == 'model = "m"\n'
    (draft,) = tmp_path.glob("gpubox-*/a.toml")
    assert draft.read_text() == "hours of work\n"
    assert str(draft) in found.stderr


def test_editing_one_of_the_library_makes_it_ones_own(box: Box, tmp_path: Path) -> None:
    box_editor = editor(tmp_path, 'model = "demo"\nsource = "demo"\ngpus = "cpu"\n')
    assert box.run("profiles", "edit", "demo", EDITOR=box_editor).returncode == 0
    assert json.loads(box.done("profiles", "show", "demo", "--json"))["origin"] == "user"


def test_an_editor_that_changes_nothing_or_fails_saves_nothing(box: Box) -> None:
    box.write("a", 'model = "m"\n')
    found = box.run("profiles", "edit", "a", EDITOR="true")
    assert (found.returncode, found.stdout) == (0, "")
    assert "unchanged" in found.stderr
    assert box.run("profiles", "edit", "a", EDITOR="false").returncode == 3
    assert box.run("profiles", "edit", "a", EDITOR="no-such-editor").returncode == 2


def test_the_commands_import_neither_textual_nor_rich(box: Box) -> None:
    script = (
        "import sys; from tui.cli import app; app(['profiles', 'list'], standalone_mode=False)\n"
        "print([name for name in ('textual', 'rich', 'openai', 'httpx') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], env=box.environ, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
