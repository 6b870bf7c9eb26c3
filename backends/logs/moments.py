"""Times as people say them of a log: '14:03', '-5m', '11-21 14:03'."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from backends.errors import UsageError

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BACK = re.compile(r"-?(\d+)\s*([smhd])")
_CLOCK = re.compile(r"(?:(?:(\d{4})-)?(\d{1,2})-(\d{1,2})[T ]+)?(\d{1,2}):(\d\d)(?::(\d\d)(?:[.,](\d{1,6}))?)?")


def parse_moment(text: str, last: datetime) -> datetime:
    """Read a time in a log whose last line is of `last` (with a time zone); raises UsageError.

    '14:03' and '14:03:20' are the last such time before the log's end, '11-21 14:03' and '2026-11-21 14:03' a day's;
    '-5m' (or s, h, d) is so long before the log's end.
    """
    text = text.strip()
    back, found = _BACK.fullmatch(text), _CLOCK.fullmatch(text)
    try:
        if back is not None:
            return last - timedelta(seconds=int(back[1]) * _UNITS_S[back[2]])
        if found is None:
            raise ValueError(text)
        year, month, day, hour, minute = (int(part) if part else 0 for part in found.groups()[:5])
        fraction = int((found[7] or "0").ljust(6, "0"))
        clock = {"hour": hour, "minute": minute, "second": int(found[6] or 0), "microsecond": fraction}
        if not month:
            moment = last.replace(**clock)  # type: ignore[arg-type]
            return moment if moment <= last else moment - timedelta(days=1)
        moment = last.replace(year=year or last.year, month=month, day=day, **clock)  # type: ignore[arg-type]
        return moment if year or moment <= last else moment.replace(year=last.year - 1)
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is no time", "say 14:03, 11-21 14:03, or -5m") from None
