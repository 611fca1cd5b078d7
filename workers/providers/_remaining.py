"""What a provider says is left of its limit on calls, with each answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

_HEADERS: Final = (
    # OpenAI, Azure, Groq and most that speak OpenAI's dialect: https://platform.openai.com/docs/guides/rate-limits
    (b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    # https://docs.anthropic.com/en/api/rate-limits
    (b"anthropic-ratelimit-requests-remaining", b"anthropic-ratelimit-requests-reset"),
)
"""How many calls are left, and when there are as many as may be."""

_LONGEST: Final = 64
"""Characters of a value that is looked at."""

_UNITS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "": 1.0}
_PART: Final = r"\d+(?:\.\d*)?"
_DURATION: Final = re.compile(rf"{_PART}|(?:{_PART}(?:ms|[dhms]))+", re.ASCII)
_PARTS: Final = re.compile(rf"({_PART})(ms|[dhms]|)", re.ASCII)


class Remaining(NamedTuple):
    """Calls that a provider still accepts, and the seconds until there are as many as may be, if it says so."""

    calls: int
    seconds: float | None


def remaining(fields: Mapping[bytes, bytes]) -> Remaining | None:
    """Return what the header fields of an answer say is left; None when they say nothing that can be read."""
    for left, reset in _HEADERS:
        if (value := fields.get(left)) is not None:
            calls = value.strip()
            if not calls.isdigit() or len(calls) > _LONGEST:
                return None
            return Remaining(int(calls), _seconds(fields.get(reset, b"")))
    return None


def _seconds(value: bytes) -> float | None:
    """Return the seconds of `6m0s`, `1.5s`, `20ms` or `7`, or those until an RFC 3339 date."""
    text = value[: _LONGEST + 1].decode("latin-1").strip()
    if len(text) > _LONGEST:
        return None
    if _DURATION.fullmatch(text):
        return sum(float(count) * _UNITS[unit] for count, unit in _PARTS.findall(text))
    try:
        return max(0.0, (datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # a TypeError: of a date without its zone
        return None
