"""Secrets in other people's words: what they look like, and what stands in their place."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from pipeline.settings import Settings

REDACTED: Final = "[redacted]"

LEAST: Final = 8
"""
Characters of a value worth hiding that nobody called a key: a shorter one would take words out of every text.

For the same reason a shorter key, `none` or `dummy`, is taken out only where it is a word of its own.
"""

# Each alternative begins where a word does, or needs nothing at its end: else a long text would be read again from
# each of its characters, and whoever wrote it would hold the process for hours.
_LIKELY: Final = re.compile(
    r"(?i:bearer\s+)[\w.~+/=*-]+"
    r"|\b(?:sk|pk|rk|gsk|xai|key|hf|pplx)[-_][\w*-]{6,}"
    r"|\bAKIA[0-9A-Z]{12,}|\bAIza[\w-]{20,}|\beyJ[\w.-]{8,}"
    r"|(?<![\w-])[\w-]*+\*{3,}[\w-]*"  # how providers show a key they refuse: its ends
    r"|(?<=://)[^/@\s]+@"
)
_NAMES: Final = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without `secrets`, in their order, and without anything that looks like a key."""
    for secret in secrets:
        if len(secret) >= LEAST:
            text = text.replace(secret, REDACTED)
        else:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", REDACTED, text)
    return _LIKELY.sub(REDACTED, text)


def forms(values: Iterable[str]) -> tuple[str, ...]:
    """Return each value as it may be quoted: plain, in base64, in a URL. The longest come first."""
    found: set[str] = set()
    for value in filter(None, values):
        encoded = base64.b64encode(value.encode()).decode().rstrip("=")
        found |= {value, encoded, quote(value, safe="")}
    return tuple(sorted(found, key=len, reverse=True))


def credentials(url: str) -> tuple[str, ...]:
    """Return what a URL gives away: its password, and user and password as a header has them."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ()
    password = unquote(parts.password or "")
    return (password, f"{unquote(parts.username or '')}:{password}") if password else ()


def secrets_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return, in all forms, the values of variables that are named like secrets, and the passwords of URLs."""
    named = [value for name, value in environment.items() if _NAMES.search(name)]
    found = named + [part for value in environment.values() if "://" in value for part in credentials(value)]
    return forms(value for value in found if len(value) >= LEAST)


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Return, in all forms, what the configuration itself holds: keys, operators' headers, the passwords of URLs."""
    given = [d.api_key for d in settings.deployments] + [value for key in settings.keys for value in key.values]
    *keys, server = (key.reveal(settings.environment) or "" if key else "" for key in (*given, settings.transport.url))
    urls = [server, *(d.api_base or "" for d in settings.deployments)]
    found = [part for url in urls for part in credentials(url)]
    found += [value for d in settings.deployments for value in d.headers.values()]
    return forms([*keys, *(value for value in found if len(value) >= LEAST)])
