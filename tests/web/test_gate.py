"""Who gets in: tokens that work once, cookies, names that a browser may use, and how often one may be wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tui.web.gate import IDLE_S, WINDOW_S, WRONG_TRIES, Gate, TooManyTriesError

HERE = "127.0.0.1"


def test_a_token_works_once_and_a_new_one_ends_the_one_before() -> None:
    gate = Gate()
    first, second = gate.new_token(), gate.new_token()
    assert gate.redeem(first, HERE) is None
    cookie = gate.redeem(second, HERE)
    assert gate.admits(cookie, HERE)
    assert gate.redeem(second, HERE) is None
    assert not gate.admits(second, HERE)
    assert not gate.admits(None, HERE)
    assert not gate.admits("é\udcff", HERE)


def test_wrong_tries_are_limited_for_their_address_and_do_not_lock_out_who_is_in() -> None:
    now = 1000.0
    gate = Gate(clock=lambda: now)
    cookie = gate.redeem(gate.new_token(), HERE)
    for _ in range(WRONG_TRIES // 2):
        assert gate.redeem("wrong", HERE) is None
        assert not gate.admits("wrong", HERE)
    token = gate.new_token()
    with pytest.raises(TooManyTriesError):
        gate.redeem(token, HERE)
    with pytest.raises(TooManyTriesError):
        gate.admits("wrong", HERE)
    assert gate.admits(cookie, HERE)
    now += WINDOW_S
    assert gate.redeem(token, HERE)


def test_a_cookie_that_nobody_uses_ends_and_one_that_is_used_does_not() -> None:
    now = 1000.0
    gate = Gate(clock=lambda: now)
    used, unused = (gate.redeem(gate.new_token(), HERE) or "" for _ in range(2))
    for _ in range(3):
        now += IDLE_S / 2
        assert gate.keep(used), "a tab of it is open"
    assert gate.admits(used, HERE)
    assert not gate.admits(unused, HERE)
    now += IDLE_S - 1
    assert gate.admits(used, HERE)
    now += IDLE_S + 1
    assert not gate.admits(used, HERE)


def test_another_address_is_not_held_responsible() -> None:
    gate = Gate(clock=lambda: 0.0)
    for _ in range(WRONG_TRIES):
        gate.redeem("wrong", "10.0.0.9")
    assert gate.redeem(gate.new_token(), HERE)


@pytest.mark.parametrize("host", ["127.0.0.1:4787", "localhost", "LOCALHOST:9", "[::1]:80", "a.localhost:1", "box:2"])
def test_hosts_that_are_this_machine(host: str) -> None:
    assert Gate(["Box"]).admits_host(host)


@pytest.mark.parametrize(
    "host", [None, "", "evil.example:4787", "127.0.0.1.evil.example", "localhost:x", "box", "localhost@evil:1", "::1:x"]
)
def test_hosts_that_a_foreign_page_could_have_bent_here(host: str | None) -> None:
    assert not Gate().admits_host(host)


@pytest.mark.parametrize(
    ("origin", "is_ours"),
    [
        ("http://localhost:4787", True),
        ("https://localhost:4787", True),
        ("http://localhost:4788", False),
        ("http://127.0.0.1:4787", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
        (None, False),
        ("file://localhost:4787", False),
    ],
)
def test_only_the_very_page_opens_a_socket(origin: str | None, is_ours: bool) -> None:
    assert Gate.admits_origin(origin, "localhost:4787") is is_ours


def test_commands_pay_for_no_web_server_and_the_web_server_for_no_screen() -> None:
    code = "import sys, tui.cli, tui.headless.web; assert 'aiohttp' not in sys.modules"
    code += "; import tui.web.server; assert 'textual' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
