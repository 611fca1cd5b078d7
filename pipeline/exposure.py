"""May the gateway listen on an address, given the keys it has."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from typing import Final

from pipeline.errors import ConfigurationError
from pipeline.settings import Settings

PUBLISHED: Final = frozenset(
    [
        "sk-1234",
        "sk-12345",
        "sk-123456",
        "sk-1234567890",
        "sk-test",
        "sk-key",
        "sk-anything",
        "sk-xxx",
        "sk-master",
        "sk-litellm",
        "sk-local",
        "sk-dummy",
        "sk-fake",
        "sk-no-key-required",
        "my-key",
        "my-secret-key",
        "your-master-key",
        "your-api-key",
        "changeme",
        "change-me",
        "secret",
        "password",
        "test",
        "admin",
        "anything",
        "dummy",
        "example",
        "master-key",
    ]
)
"""Keys that stand in documentation, LiteLLM's first of all; whoever scans for gateways tries them."""

_HASHES: Final = frozenset(hashlib.sha256(key.encode()).hexdigest() for key in PUBLISHED)


def check_exposure(settings: Settings, host: str, environment: Mapping[str, str]) -> None:
    """Refuse an address others can reach while everybody has a key. Raises ConfigurationError, with the remedy."""
    if is_loopback(host):
        return
    remedy = "set PROMPTMILL_MASTER_KEY to a long random value, or listen on 127.0.0.1"
    usable = 0
    for key in settings.keys:
        for value in key.values:
            revealed = value.reveal(environment)
            if revealed and _is_published(revealed):
                raise ConfigurationError(
                    f"key {key.name!r} is a published example, and {host} is not loopback; {remedy}"
                )
            usable += bool(revealed)
    if not usable:
        raise ConfigurationError(f"no key is configured, and {host} is not a loopback address; {remedy}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name that is not `localhost` may lead anywhere."""
    host = host.strip("[]").partition("%")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_published(value: str) -> bool:
    if value.startswith("sha256:"):
        return value.removeprefix("sha256:").lower() in _HASHES
    return value.strip().lower() in PUBLISHED
