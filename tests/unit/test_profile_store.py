"""Where profiles are found, and that writing one leaves the old or the new, whole."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from profiles.arguments import lint
from profiles.errors import InvalidProfileError
from profiles.schema import Profile, parse_profile
from profiles.store import LIBRARY, Entry, Place, Store, parse_text, to_toml

VALID = '# a comment\nmodel = "org/m"\n'


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, Store]:
    named, user = tmp_path / "named", tmp_path / "user"
    named.mkdir()
    user.mkdir()
    return named, user, Store([Place("folder", named), Place("user", user), Place("library", LIBRARY)])


def row(store: Store, name: str) -> Entry:
    return next(entry for entry in store.entries() if entry.name == name)


def test_the_first_place_wins(places: tuple[Path, Path, Store]) -> None:
    named, user, store = places
    (user / "demo.toml").write_text(VALID)
    assert store.load("demo").origin == "user"
    (named / "demo.toml").write_text(VALID)
    loaded = store.load("demo")
    assert (loaded.origin, loaded.path, loaded.text) == ("folder", named / "demo.toml", VALID)
    assert [entry.origin for entry in store.entries() if entry.name == "demo"] == ["folder"]


def test_the_digest_changes_with_the_text(places: tuple[Path, Path, Store]) -> None:
    named, _, store = places
    (named / "a.toml").write_text(VALID)
    before = store.load("a").digest
    (named / "a.toml").write_text(VALID + "\n")
    assert store.load("a").digest != before


def test_a_profile_can_be_named_by_its_path(places: tuple[Path, Path, Store], tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.toml"
    path.write_text(VALID)
    assert places[2].load(str(path)).profile.name == "elsewhere"


def test_an_unknown_name_brings_the_nearest(places: tuple[Path, Path, Store]) -> None:
    with pytest.raises(InvalidProfileError, match=r"dmo: no such profile; did you mean demo\?"):
        places[2].load("dmo")
    with pytest.raises(InvalidProfileError, match="no such profile"):
        places[2].find("../user/demo")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'model = "x"\n\nengine = vllm\n', "a.toml:3: Invalid value"),
        (b'model = "x\n', "a.toml:1: Illegal character"),
        (b"model = ", "a.toml:1: Invalid value"),
        (b'model = "\xff"', "is not UTF-8 (byte 9)"),
        (b'model = "m"\nname = "b"\n', 'a.toml:2: name: is "b", but the file is called a.toml; delete the line'),
        (b"", "model: is missing"),
        (b'model = "m"\n[args]\nport = 1\n', "a.toml:3: args.port: is set by gpubox itself"),
    ],
)
def test_a_broken_file_is_a_row_that_says_why(places: tuple[Path, Path, Store], content: bytes, said: str) -> None:
    named, _, store = places
    (named / "a.toml").write_bytes(content)
    entry = row(store, "a")
    assert entry.profile is None
    assert said in str(entry.problems[0])
    with pytest.raises(InvalidProfileError):
        store.load("a")


def test_a_name_that_no_server_could_have_is_refused(places: tuple[Path, Path, Store]) -> None:
    named, _, store = places
    (named / "My Model.toml").write_text(VALID)
    assert "cannot be a name" in str(row(store, "My Model").problems[0])


def test_a_folder_that_cannot_be_listed_is_a_row_too(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    store = Store([Place("folder", tmp_path / "nowhere"), Place("user", file), Place("library", LIBRARY)])
    first, second, *rest = store.entries()
    assert str(first.problems[0]).startswith(f"{tmp_path / 'nowhere'}: cannot be listed: No such file")
    assert "Not a directory" in str(second.problems[0])
    assert "demo" in [entry.name for entry in rest]
    assert store.load("demo").origin == "library"


def test_a_users_folder_that_is_not_there_yet_is_no_problem(tmp_path: Path) -> None:
    store = Store([Place("user", tmp_path / "nowhere")])
    assert store.entries() == ()


def test_editors_leftovers_are_no_profiles(places: tuple[Path, Path, Store]) -> None:
    named, _, store = places
    for name in (".a.toml", "a.toml~", "a.toml.swp", "a.txt"):
        (named / name).write_text("broken")
    assert {entry.origin for entry in store.entries()} == {"library"}


def test_writing_keeps_what_was_set_and_nothing_else(places: tuple[Path, Path, Store]) -> None:
    named, _, store = places
    content = {
        "name": "w",
        "engine": "vllm",
        "model": "org/m",
        "port": 8000,
        "args": {"tensor_parallel_size": 2, "max_model_len": 10, "hf_overrides": {"a": [1, "é"]}},
        "env": {"A": 'quote " and\nnewline'},
        "secrets": {"hf_token": "env:HF_TOKEN"},
        "restart": {"policy": "on-failure"},
    }
    path = store.write(parse_profile(content, "test"))
    assert path == named / "w.toml"
    assert tomllib.loads(path.read_text()) == content
    assert list(tomllib.loads(path.read_text())["args"]) == ["tensor_parallel_size", "max_model_len", "hf_overrides"]
    assert store.load("w").profile == parse_profile(content, "test")
    assert os.listdir(named) == ["w.toml"]


def test_nothing_is_written_over_unless_asked(places: tuple[Path, Path, Store]) -> None:
    named, user, store = places
    (user / "a.toml").write_text(VALID)
    with pytest.raises(InvalidProfileError, match="is there already"):
        store.write_text("a", VALID)
    assert store.write_text("a", 'model = "new"', overwrite=True) == user / "a.toml"
    assert os.listdir(named) == []


def test_invalid_text_is_never_written(places: tuple[Path, Path, Store]) -> None:
    named, _, store = places
    for name, text in (("a", "model = 1"), ("a", "model ="), ("../a", VALID)):
        with pytest.raises(InvalidProfileError):
            store.write_text(name, text)
    assert os.listdir(named) == []


def test_the_library_alone_cannot_be_written_to() -> None:
    with pytest.raises(InvalidProfileError, match="--profile-dir"):
        Store([Place("library", LIBRARY)]).write_text("a", VALID)


def test_new_folders_are_private(tmp_path: Path) -> None:
    store = Store([Place("user", tmp_path / "config")])
    store.write_text("a", VALID)
    assert stat.S_IMODE((tmp_path / "config").stat().st_mode) == 0o700


def test_a_linked_profile_stays_a_link(places: tuple[Path, Path, Store], tmp_path: Path) -> None:
    named, _, store = places
    target = tmp_path / "dotfiles.toml"
    target.write_text(VALID)
    (named / "a.toml").symlink_to(target)
    store.write_text("a", 'model = "new"', overwrite=True)
    assert (named / "a.toml").is_symlink()
    assert target.read_text() == 'model = "new"'


def test_a_full_disk_leaves_the_old_text(tmp_path: Path) -> None:
    """A file size limit of the process stands for the full disk: the write fails half-way."""
    (tmp_path / "a.toml").write_text(VALID)
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from profiles.store import Place, Store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "text = 'model = \"m\"\\n' + '# padding\\n' * 1000\n"
        "try:\n    Store([Place('user', Path(sys.argv[1]))]).write_text('a', text, overwrite=True)\n"
        "except OSError as problem:\n    print(problem.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"
    assert (tmp_path / "a.toml").read_text() == VALID
    assert os.listdir(tmp_path) == ["a.toml"]


def test_a_copy_keeps_comments_and_takes_the_new_name(places: tuple[Path, Path, Store]) -> None:
    named, _, store = places
    (named / "a.toml").write_text('# why\nmodel = "m" # which\nname = "a"\n')
    path = store.copy("a", "b")
    assert path.read_text() == '# why\nmodel = "m" # which\nname = "b"\n'
    assert store.load("b").profile.name == "b"
    assert store.copy("demo", "mine").read_text() == (LIBRARY / "demo.toml").read_text()


def test_only_ones_own_profiles_are_removed(places: tuple[Path, Path, Store]) -> None:
    _, user, store = places
    (user / "broken.toml").write_text("x")
    assert store.remove("broken") == user / "broken.toml"
    assert os.listdir(user) == []
    with pytest.raises(InvalidProfileError, match="library"):
        store.remove("demo")
    assert (LIBRARY / "demo.toml").exists()


def test_the_library_is_whole_and_explains_itself() -> None:
    entries = Store([Place("library", LIBRARY)]).entries()
    names = {
        "demo", "mistral-7b-instruct", "llama-3-8b-instruct", "qwen2.5-7b-instruct", "qwen2.5-14b-instruct-tp2",
        "qwen2.5-7b-gptq", "qwen2.5-7b-awq", "qwen2.5-7b-bnb-4bit", "qwen2.5-vl-7b", "qwen2.5-7b-transformers",
        "qwen2.5-7b-cpu-offload",
    }  # fmt: skip
    assert names <= {entry.name for entry in entries}
    for entry in entries:
        assert entry.profile is not None, entry.problems
        assert lint(entry.profile) == ()
        assert entry.profile.description.startswith("For ")


def test_the_librarys_figures_are_those_of_the_issue() -> None:
    store = Store([Place("library", LIBRARY)])
    qwen = store.load("qwen2.5-7b-instruct").profile
    assert (qwen.gpus, qwen.args) == (1, {"max_model_len": 2048, "gpu_memory_utilization": 0.9})
    assert store.load("qwen2.5-14b-instruct-tp2").profile.gpus == 2
    assert store.load("demo").profile.gpus == "cpu"
    assert store.load("qwen2.5-7b-bnb-4bit").profile.engine == "transformers"


def test_the_documented_profile_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs/profiles.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    profile, _ = parse_text(example, Path("example.toml"))
    assert profile.gpus == 2
    assert lint(profile) == ()
    for key in Profile.model_fields:
        assert f"`{key}`" in page or f"`[{key}]`" in page


@pytest.mark.parametrize("entry", Store([Place("library", LIBRARY)]).entries(), ids=lambda entry: entry.name)
def test_written_toml_says_the_same(entry: Entry) -> None:
    assert entry.profile is not None
    assert parse_profile(tomllib.loads(to_toml(entry.profile)), "again") == entry.profile
