"""One HTTP/1.1 connection: carries exchanges one after the other, and is closed at the first irregularity."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from workers.providers._exchange import Exchange, Take

BEHIND_LIMIT: Final = 256 * 2**10
"""Bytes of a stream that are held for a slow consumer before the provider is made to wait."""
_JOINED: Final = 64 * 2**10
"""A body up to this size is copied behind its head, which is cheaper than a second write."""
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""A provider whose machine is gone is noticed after two minutes of silence; its gateways see traffic before that."""


class Connection(asyncio.Protocol):
    """A connection; `lost` is called once, when it is gone."""

    def __init__(self, lost: Callable[[Connection], None]) -> None:
        self.idle_since = 0.0
        self._lost = lost
        self._gone = False
        self._paused = False
        self._exchange: Exchange | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, and have small writes sent and dead peers noticed."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its base class
        _tune(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Pass bytes to the exchange; bytes that belong to none end the connection."""
        exchange = self._exchange
        if exchange is None or not exchange.feed(data):
            self.abort()
        elif exchange.held > BEHIND_LIMIT and exchange.streamed and not self._paused:
            self._paused = True
            self._open().pause_reading()

    def eof_received(self) -> None:
        """Take the provider's closing for the end, without waiting for what is still to be written."""
        self._end(clean=True)
        self._open().abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that the connection is gone."""
        self._end(clean=False)

    def send(self, head: bytes, body: bytes, exchange: Exchange) -> None:
        """Write a request and begin its exchange."""
        self._exchange = exchange
        if self._is_closing():
            exchange.end(clean=False)
        elif len(body) > _JOINED:
            self._open().writelines((head, body))
        else:
            self._open().write(head + body)

    async def piece(self, timeout: float) -> bytes | None:
        """Return what has arrived of a streamed body; None at its end. Raises TimeoutError or UpstreamError."""
        assert self._exchange is not None
        data = await self._exchange.piece(timeout)
        self._resume()
        return data

    async def follow(self, take: Take, timeout: float) -> bool:
        """Hand a streamed body to `take`, as `Exchange.follow` does."""
        assert self._exchange is not None
        self._resume()
        return await self._exchange.follow(take, timeout)

    def finish(self) -> bool:
        """End the exchange; return whether the connection can carry another one. It is closed if it cannot."""
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        exchange.close()
        # An answer given before the whole request was sent leaves the rest of it in the way of the next.
        if exchange.complete and exchange.reusable and not exchange.held and self.is_usable():
            return True
        self.abort()
        return False

    def is_usable(self) -> bool:
        """Return whether the connection is open, with nothing left to write or to read."""
        return not (self._paused or self._is_closing() or self._open().get_write_buffer_size())

    def abort(self) -> None:
        """Close the connection at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def _resume(self) -> None:
        if self._paused and not self._is_closing():
            self._paused = False
            self._open().resume_reading()

    def _is_closing(self) -> bool:
        # uvloop's transports raise RuntimeError once closed, which is before they say that they are lost.
        return self._gone or self._open().is_closing()

    def _open(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def _end(self, *, clean: bool) -> None:
        if self._gone:
            return
        self._gone = True
        self._lost(self)
        if self._exchange is not None:
            self._exchange.end(clean=clean)


def _tune(wire: socket.socket) -> None:
    try:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if (option := getattr(socket, name, None)) is not None:
                wire.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        pass  # the peer has closed it already, which is noticed in its own way
