"""Heads of requests, worked out once for all calls of a deployment."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

import msgspec

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HOST: Final = re.compile(r"[0-9A-Za-z._~-]+")
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
_SAFE: Final = "%/:=&?~#+!$,;'@()*[]"
_PORTS: Final = {"http": 80, "https": 443}


class Origin(msgspec.Struct, frozen=True):
    """Where connections go."""

    tls: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port as they stand in a request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Address(msgspec.Struct, frozen=True):
    """A URL taken apart."""

    origin: Origin
    target: str
    """Path and query."""
    authorization: str | None = None
    """From a user and password in the URL."""


class Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy."""

    host: str
    port: int
    authorization: str | None = None


def address(url: str) -> Address:
    """Take a URL apart. Raises ValueError when it is no usable HTTP address."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.port == 0:
        raise ValueError
    origin = Origin(parts.scheme == "https", _host(parts.hostname), parts.port or _PORTS[parts.scheme])
    target = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    return Address(origin, target, _basic(parts))


def _host(name: str) -> str:
    if ":" in name:
        return str(ipaddress.IPv6Address(name))
    ascii_name = name.encode("idna").decode()  # UnicodeError is a ValueError
    if not _HOST.fullmatch(ascii_name):
        raise ValueError
    return ascii_name


def _basic(parts: SplitResult) -> str | None:
    if parts.username is None:
        return None
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(user.encode()).decode()


def head(method: str, where: Address, headers: Mapping[str, str], proxy: Proxy | None = None) -> bytes:
    """
    Return the head of a request up to the value of its content-length, which alone differs between calls.

    Raises ValueError for a header that cannot be sent; its text holds none of it.
    """
    fields = {name.lower(): (name, value) for name, value in headers.items()}
    if fields.keys() & _FRAMING:
        raise ValueError("the length of a body is not a matter of configuration")
    # A compressed answer would be held up in a stream, and costs more than it spares in a whole one.
    own = {"Host": where.origin.authority, "Accept": "*/*", "Accept-Encoding": "identity"}
    if where.authorization is not None:
        own["Authorization"] = where.authorization
    lines = [(name, value) for name, value in own.items() if name.lower() not in fields] + list(fields.values())
    target = where.target
    if proxy is not None and not where.origin.tls:
        target = f"http://{where.origin.authority}{target}"
        lines += [("Proxy-Authorization", proxy.authorization)] if proxy.authorization else []
    block = b"".join(_line(name.encode(), value.encode()) for name, value in lines)
    return f"{method} {target} HTTP/1.1\r\n".encode("ascii") + block + b"Content-Length: "


def _line(name: bytes, value: bytes) -> bytes:
    if not _TOKEN.fullmatch(name) or _CONTROL.search(value):
        raise ValueError("a header has characters no header may have")
    return b"%s: %s\r\n" % (name, value.strip())
