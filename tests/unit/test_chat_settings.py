"""The settings of a conversation, the commands after a slash, and what is said while they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.chat_commands import COMMANDS, Command, completed, hints, parsed
from backends.chat_settings import SETTINGS, Sampling, assigned, changed, written
from backends.errors import UsageError


def test_several_settings_are_typed_at_once_and_told_as_they_were_typed() -> None:
    text = r"temperature=0.2 stop=END OF IT, a\,b, \n\n thinking=off seed=-7"
    sampling = assigned(Sampling(), text)
    assert sampling == Sampling(temperature=0.2, seed=-7, stop=("END OF IT", "a,b", "\n\n"), thinking=False)
    assert sampling.told() == r"temperature=0.2 seed=-7 stop=END OF IT,a\,b,\n\n thinking=off"
    assert assigned(Sampling(), sampling.told()) == sampling
    assert assigned(sampling, "temperature= stop= thinking=") == Sampling(seed=-7)
    assert Sampling().told() == ""


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("temperature", "-0.1"),
        ("temperature", "2.1"),
        ("temperature", "warm"),
        ("temperature", "nan"),
        ("top_p", "0"),
        ("top_p", "1.01"),
        ("top_k", "2.5"),
        ("top_k", "-1"),
        ("min_p", "1.5"),
        ("repetition_penalty", "0"),
        ("repetition_penalty", "inf"),
        ("max_tokens", "0"),
        ("seed", "1e3"),
        ("thinking", "maybe"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(name: str, wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        changed(Sampling(), name, wrong)
    assert caught.value.message == f"{name} cannot be {wrong!r}"
    assert SETTINGS[name].allowed in caught.value.hint


@pytest.mark.parametrize("text", ["", "temperature", "warmth=1", "=1"])
def test_what_is_no_setting(text: str) -> None:
    with pytest.raises(UsageError):
        assigned(Sampling(), text)


def test_the_edges_are_allowed() -> None:
    sampling = assigned(Sampling(), "temperature=0 top_p=1 top_k=0 min_p=1 max_tokens=1 thinking=ON")
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 1, 0, 1)
    assert (sampling.max_tokens, sampling.thinking) == (1, True)
    assert written(sampling, "thinking") == "on"


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/new", Command("new")),
        ("/new ", Command("new")),
        ("/system Be brief.\nAnd kind.", Command("system", "Be brief.\nAnd kind.")),
        ("/set temperature=1", Command("set", "temperature=1")),
        ("/i /tmp/a b.png", Command("image", "/tmp/a b.png")),
        ("/etc/hosts says what?", None),
        (" /new", None),
        ("/2 is a half", None),
        ("why /new?", None),
        ("//", None),
    ],
)
def test_a_command_is_told_from_a_question(text: str, command: Command | None) -> None:
    assert parsed(text) == command


@pytest.mark.parametrize("text", ["/", "/s", "/nonsense", "/exit now"])
def test_a_command_that_there_is_not_is_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(UsageError, match="there is no command") as caught:
        parsed(text)
    assert all(f"/{name}" in caught.value.hint for name in COMMANDS)


def test_hints_follow_what_is_typed() -> None:
    sampling = Sampling(top_p=0.5)
    assert [usage.split()[0] for usage, _ in hints("/", sampling)] == [f"/{name}" for name in COMMANDS]
    assert [usage for usage, _ in hints("/im", sampling)] == ["/image PATH"]
    assert hints("/zzz", sampling) == []
    assert hints("a question", sampling) == []
    assert [usage for usage, _ in hints("/set top", sampling)] == ["top_p=0.5", "top_k="]
    assert hints("/set top_p=0.3", sampling)[0][0] == "✓ top_p=0.3"
    assert hints("/set temperature=3", sampling)[0][0] == "✗ temperature cannot be '3'"
    assert hints("/set temperature=1 warm=3", sampling)[0][0] == "✗ there is no setting 'warm'"
    assert [usage for usage, _ in hints("/set temperature=1 se", sampling)] == ["seed="]


def test_tab_completes_as_far_as_there_is_no_choice(tmp_path: Path) -> None:
    assert completed("/im") == "/image "
    assert completed("/n") == "/new"
    assert completed("/s") == "/s"
    assert completed("/set temp") == "/set temperature="
    assert completed("/set temperature=1 max") == "/set temperature=1 max_tokens="
    assert completed("/save j") == "/save jsonl"
    assert completed("no command") == "no command"
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat one.png").touch()
    (tmp_path / "pictures" / "cat two.png").touch()
    (tmp_path / "pictures" / ".hidden").touch()
    assert completed(f"/image {tmp_path}/pic") == f"/image {tmp_path}/pictures/"
    assert completed(f"/image {tmp_path}/pictures/") == f"/image {tmp_path}/pictures/cat "
    assert completed(f"/image {tmp_path}/pictures/cat t") == f"/image {tmp_path}/pictures/cat two.png"
    assert completed(f"/image {tmp_path}/nowhere/x") == f"/image {tmp_path}/nowhere/x"
