"""Who asks: the key of a request against the configured ones."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from pipeline.errors import ConfigurationError, Unauthenticated
from pipeline.exposure import is_loopback
from pipeline.settings import Key

HASHED: Final = "sha256:"

OPEN_PATHS: Final = frozenset(
    f"{prefix}/health/{name}" for prefix in ("", "/v1") for name in ("liveliness", "liveness", "readiness")
)
"""Served without a key: probes of a load balancer have none. They tell nothing about configuration or clients."""

ANONYMOUS: Final = Key(name="", values=(), master=True)
"""Who everybody is on a gateway without keys."""


class Keyring:
    """
    The configured keys, hashed.

    Looking one up takes as long whichever key it is and however much of it is right: what is looked up is a hash of
    it, keyed with a secret of this process.
    """

    def __init__(self, keys: Iterable[Key], environment: Mapping[str, str]) -> None:
        self._secret = secrets.token_bytes(32)
        self._keys: dict[bytes, Key] = {}
        self.open = True
        for key in keys:
            self.open = False  # a key whose variable is unset locks the gateway, it does not open it
            for value in key.values:
                if revealed := value.reveal(environment):
                    self._keys[self._blinded(_digest(key.name, revealed))] = key

    def authenticate(self, path: str, headers: Mapping[bytes, bytes]) -> Key:
        """Return who asks for `path`: the scope's, never one rebuilt from headers. Raises Unauthenticated."""
        if path in OPEN_PATHS:
            return ANONYMOUS
        if self.open:
            _check_origin(headers)
            return ANONYMOUS
        presented = _presented(headers)
        if not presented:
            raise Unauthenticated("no API key was sent; send `Authorization: Bearer KEY`, `x-api-key` or `api-key`")
        key = self._keys.get(self._blinded(hashlib.sha256(presented).digest()))
        if key is None:
            raise Unauthenticated("the API key is not one of this gateway's; check it, or ask the operator for one")
        return key

    def _blinded(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret).digest()


def _check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what another site's page makes a browser on this machine send; to listen on loopback does not."""
    if origin := headers.get(b"origin"):
        try:
            local = is_loopback(urlsplit(origin.decode("latin-1")).hostname or "")
        except ValueError:
            local = False
        if not local:
            remedy = "set PROMPTMILL_MASTER_KEY, and let the page send it"
            raise Unauthenticated(f"a gateway without keys does not serve web pages of other sites; {remedy}")


def _presented(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the key that came in one of the three headers; a scheme other than Bearer may belong to a proxy."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and (value := value.strip()):
        return value
    return headers.get(b"x-api-key", b"").strip() or headers.get(b"api-key", b"").strip()


def _digest(name: str, value: str) -> bytes:
    if not value.startswith(HASHED):
        return hashlib.sha256(value.encode()).digest()
    try:
        digest = bytes.fromhex(value.removeprefix(HASHED))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ConfigurationError(f"key {name!r}: after `sha256:` come 64 hexadecimal digits, as sha256sum prints them")
    return digest
