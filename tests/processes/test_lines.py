from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator

import pytest

from backends.processes.lines import HOLD_S, LINE_LIMIT, Lines, Stamp

NOW = 1_795_264_917.25
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d ")


def texts(block: bytes) -> list[str]:
    """A block's lines without their stamps, each of which must be right."""
    assert block == b"" or block.endswith(b"\n")
    found = block.decode().split("\n")[:-1]
    assert all(STAMP.match(line) for line in found)
    return [line[30:] for line in found]


def read(*chunks: bytes, drop: str = "") -> list[str]:
    """What reaches the log of output that was written in these chunks."""
    lines = Lines(drop)
    found: list[str] = []
    for chunk in chunks:
        found += texts(lines.feed(chunk, NOW))
    return found + texts(lines.finish(NOW))


@pytest.mark.parametrize(
    ("raw", "logged"),
    [
        (b"one\ntwo\n\nfour", ["one", "two", "", "four"]),
        (b"dos\r\nlines\r\n", ["dos", "lines"]),
        (b"\x1b[1;32mgreen\x1b[0m \x1b]0;title\x07and \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", ["green and link"]),
        (b"bell\x07 null\x00 tab\tdelete\x7f\n", ["bell null tab\tdelete"]),
        (b"half an escape \x1b[31", ["half an escape 31"]),
        ("C1 \x9b31mred\x85 and \u2028\n".encode(), ["C1 red and "]),
        (b"caf\xc3\xa9 \xff\xfe \xe2\x82\n", ["café \ufffd\ufffd \ufffd"]),
        (b"\r 10%\r 20%\r100%\ndone\n", ["100%", "done"]),
        (b"\r 10%\r 20%", [" 20%"]),
        (b"10%\r20%\r30%\r\n", ["30%"]),
        (b"\rlong text\rshort    \r\n", ["short"]),
        (b"\r50%\x1b[K\r60%\x1b[2K\x1b[1G70%\n", ["70%"]),
        (b"\r  \r\n\r   \r", [""]),
    ],
)
def test_what_reaches_the_log(raw: bytes, logged: list[str]) -> None:
    assert read(raw) == logged
    if b"\r" not in raw and b"\xe2\x82\n" not in raw:
        assert read(*(raw[at : at + 1] for at in range(len(raw)))) == logged


def test_a_long_line_is_cut_into_marked_pieces() -> None:
    text = "é" * 500_000
    raw = f"before\n{text}\nafter\n".encode()
    before, *pieces, after = read(*(raw[at : at + LINE_LIMIT] for at in range(0, len(raw), LINE_LIMIT)))
    assert (before, after) == ("before", "after")
    assert all(len(piece.encode()) <= LINE_LIMIT + len("…".encode()) for piece in pieces)
    assert all(piece.startswith("…") for piece in pieces[1:])
    assert "".join(piece.removeprefix("…") for piece in pieces) == text


def test_output_without_any_line_feed_does_not_pile_up() -> None:
    lines = Lines("")
    count = sum(len(lines.feed(b"x" * LINE_LIMIT, NOW)) for _ in range(50))
    assert count > 48 * LINE_LIMIT


def test_marked_lines_are_dropped() -> None:
    raw = b'a\nINFO: "GET /metrics?by=gpubox HTTP/1.1" 200 OK\nb\n'
    assert read(raw, drop="by=gpubox") == ["a", "b"]
    assert read(b"\x1b[32m" + raw, drop="by=gpubox") == ["a", "b"]


def test_progress_is_known_before_its_line_ends() -> None:
    lines = Lines("")
    assert lines.progress is None
    assert lines.feed(b"Loading\n", NOW) != b""
    assert lines.progress is None
    assert lines.feed(b"\r 10%|# ", NOW) == b""
    assert lines.progress == "10%|#"
    assert lines.feed(b"\x1b[3", NOW) == b""
    assert lines.feed(b"2m\r 20%|##", NOW) == b""
    assert lines.progress == "20%|##"


def test_the_end_of_a_bar_is_logged_soon_though_nothing_follows() -> None:
    lines = Lines("")
    assert lines.due(NOW) is None
    assert lines.feed(b"\r 10%\r100%\n", NOW) == b""
    assert lines.due(NOW) == pytest.approx(HOLD_S)
    assert texts(lines.settle(NOW + HOLD_S)) == ["100%"]
    assert lines.due(NOW) is None


def test_the_end_of_a_bar_is_logged_soon_though_the_next_bar_moves() -> None:
    lines = Lines("")
    lines.feed(b"\r100%\n", NOW)
    assert lines.feed(b"\r  1%", NOW + HOLD_S / 2) == b""
    assert texts(lines.feed(b"\r  2%", NOW + HOLD_S)) == ["100%"]


def tqdm_bars(rounds: int) -> Iterator[bytes]:
    """Three bars below each other as tqdm draws them: down, the bar, up again."""
    for number in range(1, rounds + 1):
        for position in range(3):
            yield b"\n" * position + f"\rbar {position}: {number}".encode() + b"\x1b[A" * position
    # tqdm's close shows the last state in the uppermost row, and ends that row.
    for position in (2, 1, 0):
        yield f"\rbar {position}: {rounds}".encode() + b"\n"


@pytest.mark.parametrize("together", [1, 2, 7, 100_000])
def test_bars_below_each_other_do_not_flood_the_log(together: int) -> None:
    writes = [b"start\n", *tqdm_bars(3000), b"end\n"]
    raw = [b"".join(writes[at : at + together]) for at in range(0, len(writes), together)]
    chunks = [one[at : at + LINE_LIMIT] for one in raw for at in range(0, len(one), LINE_LIMIT)]
    assert read(*chunks) == ["start", "bar 2: 3000", "bar 1: 3000", "bar 0: 3000", "end"]


def test_another_process_s_line_does_not_stick_to_an_open_bar() -> None:
    chunks = (b"\r 10%|#", b"INFO one\nINFO \x1b[1mtwo\x1b[0m\n", b"\r 20%|##", b"\r100%|####", b"\n", b"INFO three\n")
    assert read(*chunks) == ["INFO one", "INFO two", "100%|####", "INFO three"]


def test_any_bytes_give_clean_lines() -> None:
    source = random.Random(7)
    pieces = [
        b"\r",
        b"\n",
        b"\x1b[A",
        b"\x1b[",
        b"\x1b]",
        b"\x9b",
        b"text ",
        b"\xff",
        "é█".encode(),
        b"\x00",
        b"x" * 9000,
    ]
    for _ in range(300):
        raw = b"".join(source.choices(pieces, k=source.randrange(1, 80)))
        cuts = sorted(source.randrange(len(raw) + 1) for _ in range(5))
        chunks = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        for line in read(*chunks):
            assert not re.search("[\x00-\x08\x0a-\x1f\x7f-\x9f]", line)


@pytest.mark.parametrize(
    ("zone", "stamp"),
    [
        ("UTC", "2026-11-21T12:41:57.250+00:00 "),
        ("Asia/Kolkata", "2026-11-21T18:11:57.250+05:30 "),
        ("America/St_Johns", "2026-11-21T09:11:57.250-03:30 "),
    ],
)
def test_stamps_carry_milliseconds_and_the_local_offset(monkeypatch: pytest.MonkeyPatch, zone: str, stamp: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        clock = Stamp()
        assert clock(NOW) == stamp
        assert clock(NOW + 0.5) == stamp.replace(".250", ".750")
    finally:
        monkeypatch.undo()
        time.tzset()
