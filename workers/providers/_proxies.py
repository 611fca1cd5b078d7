"""Proxies between a worker and its providers, as the environment names them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, cast
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from pipeline.errors import UpstreamUnavailable
from workers.providers._heads import Origin, Proxy, address

_ANSWER_LIMIT: Final = 16 * 2**10


class Proxies:
    """What HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say, in either case; lower case wins."""

    def __init__(self, named: Mapping[str, str] | None = None) -> None:
        self._named = dict(getproxies_environment() if named is None else named)

    def to(self, origin: Origin) -> Proxy | None:
        """Return the proxy on the way to `origin`. Raises ValueError when what is named is no HTTP proxy."""
        url = self._named.get("https" if origin.tls else "http") or self._named.get("all")
        if not url or proxy_bypass_environment(f"{origin.host}:{origin.port}", self._named):
            return None
        where = address(url if "://" in url else f"http://{url}")
        if where.origin.tls:
            raise ValueError("a proxy is spoken to without TLS")
        return Proxy(where.origin.host, where.origin.port, where.authorization)


class Tunnel(asyncio.Protocol):
    """The beginning of a connection through a proxy: `opened` is done when the provider is at its other end."""

    def __init__(self, origin: Origin, proxy: Proxy) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        lines = [f"CONNECT {host}:{origin.port} HTTP/1.1", f"Host: {host}:{origin.port}"]
        if proxy.authorization:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        self._request = "\r\n".join([*lines, "", ""]).encode()
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the way through."""
        cast("asyncio.Transport", transport).write(self._request)  # uvloop's is one in all but its base class

    def data_received(self, data: bytes) -> None:
        """Read the proxy's answer."""
        self._answer += data
        end = self._answer.find(b"\r\n\r\n")
        if self.opened.done() or (end < 0 and len(self._answer) <= _ANSWER_LIMIT):
            return
        version, _, rest = self._answer.partition(b" ")
        status = rest[:3]
        if version.startswith(b"HTTP/1.") and status.startswith(b"2") and end == len(self._answer) - 4:
            self.opened.set_result(None)
        else:
            self._refuse(f"the proxy refused the way to the provider with {_shown(status)}")

    def eof_received(self) -> None:
        """Take the proxy's closing for its answer."""
        self._refuse("the proxy closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the loss of the connection for the proxy's answer."""
        self._refuse("the connection to the proxy was lost")

    def _refuse(self, message: str) -> None:
        if not self.opened.done():
            hint = "check HTTPS_PROXY and the proxy's credentials, or name the provider in NO_PROXY"
            self.opened.set_exception(UpstreamUnavailable(message, hint=hint))


def _shown(status: bytes) -> str:
    return status.decode() if status.isdigit() else "something that is not HTTP"
