"""Who may come in: a link that works once, the cookie it is exchanged for, and which addresses a browser may use.

Standard library only. Tokens and cookies are 256 random bits; of both only digests are kept, compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable

WRONG_TRIES = 10
"""So many wrong links or cookies an address may show in WINDOW_S; then it is not listened to for a while."""

WINDOW_S = 60.0
IDLE_S = 12 * 3600.0
"""A cookie with which nothing was opened or typed for so long opens nothing any more: a new link does."""

REMEMBERED = 1000
"""Wrong tries that are remembered at most, of all addresses together."""


class TooManyTriesError(Exception):
    """An address has shown too many wrong links or cookies; it may come again in `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many wrong tries; again in {wait_s:.0f} s")
        self.wait_s = wait_s


class Gate:
    """One token at a time, and the cookies that were given for tokens; both end with this process, or unused."""

    def __init__(self, names: Iterable[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        """`names` are host names beside localhost that a browser may call this server by."""
        self._names = frozenset(name.lower() for name in names) | {"localhost"}
        self._now = clock
        self._token: bytes | None = None
        self._cookies: dict[bytes, float] = {}
        self._wrong: deque[tuple[float, str]] = deque(maxlen=REMEMBERED)

    def new_token(self) -> str:
        """Return a token that works once; one from before that nobody has used no longer works."""
        token = secrets.token_urlsafe(32)
        self._token = _digest(token)
        return token

    def redeem(self, token: str, address: str) -> str | None:
        """Return a new cookie for a right token, which dies by this, else None; raises TooManyTriesError."""
        self._check_tries(address)
        if self._token is None or not hmac.compare_digest(_digest(token), self._token):
            self._wrong.append((self._now(), address))
            return None
        self._token = None
        cookie = secrets.token_urlsafe(32)
        self._cookies[_digest(cookie)] = self._now()
        return cookie

    def admits(self, cookie: str | None, address: str) -> bool:
        """Tell whether a cookie is one of ours; a wrong one counts as a try. Raises TooManyTriesError for wrong ones.

        A right one passes whatever else came from its address: who is in cannot be locked out.
        """
        if cookie is None:
            return False
        idle_since = self._now() - IDLE_S
        self._cookies = {known: used_at for known, used_at in self._cookies.items() if used_at >= idle_since}
        if self.keep(cookie):
            return True
        self._check_tries(address)
        self._wrong.append((self._now(), address))
        return False

    def keep(self, cookie: str) -> bool:
        """Note that a cookie is in use, and tell whether it is one of ours."""
        digest = _digest(cookie)
        if is_ours := bool(sum([hmac.compare_digest(digest, known) for known in self._cookies])):
            self._cookies[digest] = self._now()
        return is_ours

    def admits_host(self, host: str | None) -> bool:
        """Tell whether a Host header names this machine, so that no foreign name that was bent to it (rebinding) does.

        An IP address cannot be bent; the port is not looked at, since tunnels change it.
        """
        name = _host_name(host or "")
        return name is not None and (name in self._names or name.endswith(".localhost") or _is_address(name))

    @staticmethod
    def admits_origin(origin: str | None, host: str | None) -> bool:
        """Tell whether a websocket is asked for by a page of this very server: no other site's, and no program's."""
        scheme, separator, place = (origin or "").partition("://")
        return bool(separator) and scheme in ("http", "https") and place.lower() == (host or "").lower() != ""

    def _check_tries(self, address: str) -> None:
        since = self._now() - WINDOW_S
        tries = [at for at, who in self._wrong if who == address and at > since]
        if len(tries) >= WRONG_TRIES:
            raise TooManyTriesError(tries[-WRONG_TRIES] - since)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


def _host_name(host: str) -> str | None:
    """Return the name in a Host header, without port and brackets; None where it is no such header."""
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    if port and not (port.isascii() and port.isdecimal()):
        return None
    if name.startswith("[") and name.endswith("]"):
        return name[1:-1].lower()
    return name.lower().removesuffix(".") if name and ":" not in name else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
