"""Keys do not belong on a card: what looks like one is masked wherever a log's text is shown."""

from __future__ import annotations

import re

MASK = "***"

_KEYS = re.compile(
    r"(?P<bearer>(?:[Bb]earer|[Bb]asic) )[\w.~+/=-]{8,}"
    r"|(?P<named>(?:--(?:api-key|hf-token|token)[ =]|"
    r"(?:api[_-]?keys?|hf[_-]?token|access[_-]?token|auth[_-]?token|password|secret(?:[_-]?key)?)"
    r"['\"]?\s*[:=]\s*\[?['\"]?))[^\s'\",\])}]{4,}"
    r"|(?P<url>://[^/\s:@]+:)[^/\s@]+(?=@)"
    r"|\b(?:hf|gh[opsu])_[A-Za-z0-9]{8,}|\b(?:sk|xox[abp]|glpat)-[\w-]{8,}|\bAKIA[0-9A-Z]{16}\b|\bms-[0-9a-f-]{20,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+",
    re.I,
)


def masked(text: str) -> str:
    """Return a text with keys and tokens replaced by `***`; what names them stays."""
    return _KEYS.sub(lambda found: (found["bearer"] or found["named"] or found["url"] or "") + MASK, text)
