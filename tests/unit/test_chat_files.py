"""Pictures that are read, and conversations that are saved: real files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from backends import paths
from backends.chat_answer import Answer
from backends.chat_conversations import Conversation, Exchange
from backends.chat_errors import AnswerCutError
from backends.chat_files import as_text, save
from backends.chat_image import LIMIT_BYTES, Image, read_image
from backends.chat_settings import Sampling
from backends.errors import UsageError
from backends.snapshots import ModelKind

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (b"GIF89a", "image/gif"),
    ],
)
def test_a_pictures_type_is_told_by_its_first_bytes(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / "a picture.txt"
    path.write_bytes(data)
    image = read_image(f'  "{path}" ')
    assert image == Image("a picture.txt", kind, data)
    assert image.url.startswith(f"data:{kind};base64,")


def test_what_is_no_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "large.png").write_bytes(PNG)
    os.truncate(tmp_path / "large.png", LIMIT_BYTES + 1)
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, told in (
        ("text.png", "text.png is no picture that models take"),
        ("large.png", "large.png is too large: 20 MiB"),
        ("pipe.png", "is no file"),
        ("", "cannot be read: Is a directory"),
        ("missing.png", "cannot be read: No such file or directory"),
    ):
        with pytest.raises(UsageError, match=told) as caught:
            read_image(f"~/{name}" if name else str(tmp_path))
        assert caught.value.hint
    with pytest.raises(UsageError, match="which picture"):
        read_image("  ")


def talk() -> Conversation:
    whole = Answer("It *is*.", "hm", 0.12, 1.0, 7, 48, False, 103.0, "stop")
    cut = Answer("Half", "", 0.2, 0.5, 60, 2, True, 4.0, None, cut=True, is_overall_rate=True)
    first = Exchange("What\nis it?", 1.0, ModelKind.CHAT, Image("a.png", "image/png", PNG), "It *is*.", "hm")
    first.is_open, first.answer = False, whole
    second = Exchange("Sure?", 2.0, ModelKind.CHAT, text="Half")
    second.is_open, second.answer, second.problem = False, cut, AnswerCutError("the engine went away", "see", cut)
    third = Exchange("And?", 3.0, ModelKind.CHAT)
    return Conversation("demo", "", "Be brief.", Sampling(temperature=0.2), [first, second, third])


def test_markdown_has_questions_answers_figures_and_what_went_wrong() -> None:
    text = as_text(talk(), "org/model", "md")
    for part in (
        "# What is it?\n\ndemo · org/model\n",
        "Settings: `temperature=0.2`",
        "**System prompt**\n\n> Be brief.",
        "## 1. Question\n\n> What\n> is it?\n\nPicture: a.png (image/png, 0 KiB)",
        "<details><summary>What it thought</summary>\n\nhm\n\n</details>",
        "## 1. Answer\n\nIt *is*.\n\n*TTFT 0.12 s · 103 tok/s · 48 tokens*",
        "*the engine went away · TTFT 0.20 s · 4 tok/s overall · ~2 tokens · not the whole answer*",
    ):
        assert part in text


def test_json_lines_are_what_fine_tuning_takes() -> None:
    text = as_text(talk(), "org/model", "jsonl")
    assert text.count("\n") == 1
    line = json.loads(text)
    assert [(one["role"], one["content"]) for one in line["messages"][2:]] == [
        ("assistant", "It *is*."),
        ("user", "Sure?"),
        ("assistant", "Half"),
        ("user", "And?"),
    ]
    assert line["messages"][0] == {"role": "system", "content": "Be brief."}
    assert line["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (line["server"], line["model"], line["sampling"]) == ("demo", "org/model", {"temperature": 0.2})
    assert line["answers"][0]["ttft_s"] == 0.12
    assert line["answers"][1]["problem"] == "the engine went away"
    assert line["answers"][2] == {"asked_at": 3.0}


def test_a_file_is_private_and_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))
    made = [save("demo-What IS it/../?", text, "md", 1_790_000_000.0) for text in ("one", "two 🚀", "\ud83d")]
    assert len(set(made)) == 3
    assert {path.parent for path in made} == {paths.chat_dir()}
    assert [path.read_text() for path in made] == ["one", "two 🚀", "?"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    assert stat.S_IMODE(paths.chat_dir().stat().st_mode) == 0o700
    assert made[0].name.startswith("demo-what-is-it")
    assert made[0].suffix == ".md"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot be saved"):
        save("demo", "text", "md", 0.0)
