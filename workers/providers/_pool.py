"""Connections to providers: opened when there is none to spare, kept for a while, lent to one call at a time."""

from __future__ import annotations

import asyncio
import errno
import ssl
from typing import Final

import anyio

from pipeline.errors import UpstreamUnavailable
from workers.providers._connection import Connection
from workers.providers._heads import Origin, Proxy
from workers.providers._proxies import Proxies, Tunnel

IDLE_SECONDS: Final = 50.0
"""How long a connection is kept unused: less than the minute after which load balancers close them."""
IDLE_LIMIT: Final = 10_000
"""Connections kept unused to one host: calls end in waves, and to open thousands anew each time is dear."""
_SWEEP: Final = 5.0
_NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})
_HOSTNAME_CODES: Final = frozenset({62, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL's x509_vfy.h."""


class _Shared:
    """What all routes share: the connections, and one TLS context, made late as it reads the system's certificates."""

    def __init__(self, connect_timeout: float) -> None:
        self.connect_timeout = connect_timeout
        self.connections: set[Connection] = set()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context: certificates and host names are verified, SSL_CERT_FILE and SSL_CERT_DIR honoured."""
        if self._context is None:
            self._context = ssl.create_default_context()
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context


class Route:
    """The way to one origin, with its idle connections; the one used last is used first."""

    def __init__(self, origin: Origin, proxy: Proxy | None, shared: _Shared) -> None:
        self.origin = origin
        self.proxy = proxy
        self._shared = shared
        self._idle: dict[Connection, None] = {}

    def take(self) -> Connection | None:
        """Return an idle connection, if there is one."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_usable():
                return connection
        return None

    def give_back(self, connection: Connection) -> None:
        """End a connection's exchange, and keep the connection if it can be used again."""
        if connection.finish():
            if len(self._idle) < IDLE_LIMIT:
                connection.idle_since = asyncio.get_running_loop().time()
                self._idle[connection] = None
            else:
                connection.abort()

    def close_idle(self, before: float) -> None:
        """Close the connections that have been idle since before that time."""
        for connection in [idle for idle in self._idle if idle.idle_since < before]:
            del self._idle[connection]
            connection.abort()

    async def connect(self, timeout: float) -> Connection:
        """
        Return a new connection. Cancelling closes it at once.

        Raises UpstreamUnavailable, also after `connect_timeout`, or TimeoutError after `timeout` seconds if that is
        less.
        """
        within = self._shared.connect_timeout
        with anyio.move_on_after(min(within, timeout)):
            return await self._connect()
        if timeout < within:
            raise TimeoutError
        hint = "check `api_base` and the network"
        raise UpstreamUnavailable(f"the provider could not be reached within {within:.3g} s", hint=hint)

    async def _connect(self) -> Connection:
        connection = Connection(self._lose)
        self._shared.connections.add(connection)
        try:
            if self.proxy is not None and self.origin.tls:
                await self._through(self.proxy, connection)
            else:
                await self._directly(connection)
        except BaseException as error:
            self._shared.connections.discard(connection)
            connection.abort()
            if isinstance(error, OSError):
                raise self._unavailable(error) from None  # its text holds addresses of the operator's
            raise
        return connection

    async def _directly(self, connection: Connection) -> None:
        """Open a connection to the origin, or to the proxy that is asked in plain."""
        goal = self.proxy or self.origin
        context = self._shared.context() if self.origin.tls else None
        await asyncio.get_running_loop().create_connection(lambda: connection, goal.host, goal.port, ssl=context)

    async def _through(self, proxy: Proxy, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        plain, tunnel = await loop.create_connection(lambda: Tunnel(self.origin, proxy), proxy.host, proxy.port)
        try:
            await tunnel.opened
            context = self._shared.context()
            transport = await loop.start_tls(plain, connection, context, server_hostname=self.origin.host)
            if transport is None:  # pragma: no cover - asyncio's word for a connection lost at the last moment
                raise ConnectionResetError
        except BaseException:
            plain.abort()
            raise
        connection.connection_made(transport)

    def _lose(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._shared.connections.discard(connection)

    def _unavailable(self, error: OSError) -> UpstreamUnavailable:
        if isinstance(error, ssl.SSLCertVerificationError):
            return _untrusted(error)
        if isinstance(error, ssl.SSLError):
            hint = "check that `api_base` speaks TLS there, or start it with http://"
            return UpstreamUnavailable("no TLS connection to the provider can be made", hint=hint)
        if error.errno in _NO_FILES:
            hint = "raise its limit of open files (`ulimit -n`), or start more dispatch processes"
            return UpstreamUnavailable("this dispatch process has as many files open as it may", hint=hint)
        if self.proxy is not None:
            hint = "check HTTP_PROXY and HTTPS_PROXY, or name the provider in NO_PROXY"
            return UpstreamUnavailable("the provider could not be reached through the proxy", hint=hint)
        hint = "check `api_base` and the network"
        return UpstreamUnavailable("the provider could not be reached", hint=hint)


class Pool:
    """All connections of a sender, between `start` and `close`."""

    def __init__(self, connect_timeout: float) -> None:
        self._proxies = Proxies()
        self._shared = _Shared(connect_timeout)
        self._routes: dict[Origin, Route] = {}
        self._sweeper: asyncio.TimerHandle

    def start(self) -> None:
        """Begin to close what has been idle for too long."""
        loop = asyncio.get_running_loop()
        for route in self._routes.values():
            route.close_idle(loop.time() - IDLE_SECONDS)
        self._sweeper = loop.call_later(_SWEEP, self.start)

    async def close(self) -> None:
        """Close every connection."""
        self._sweeper.cancel()
        for connection in list(self._shared.connections):
            connection.abort()
        await anyio.lowlevel.checkpoint()  # transports close in the loop's next round

    def route(self, origin: Origin) -> Route:
        """Return the way to an origin. Raises ValueError when the environment names a proxy that is none."""
        route = self._routes.get(origin)
        if route is None:
            route = self._routes[origin] = Route(origin, self._proxies.to(origin), self._shared)
        return route


def _untrusted(error: ssl.SSLCertVerificationError) -> UpstreamUnavailable:
    if error.verify_code in _HOSTNAME_CODES:
        hint = "check the host in `api_base`"
        return UpstreamUnavailable("the provider's TLS certificate is for another host", hint=hint)
    hint = "name the file of its authority in SSL_CERT_FILE if it is one of your own"
    return UpstreamUnavailable("the provider's TLS certificate is not trusted", hint=hint)
