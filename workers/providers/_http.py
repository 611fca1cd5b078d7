"""The only sender of provider calls: no redirects, bounded answers, and errors of our own tree."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from pipeline import failpoints
from pipeline.errors import ModelDisabled, UpstreamError, UpstreamTimeout
from pipeline.settings import DispatchSettings
from workers.providers._coding import decoded, decoder
from workers.providers._connection import Connection
from workers.providers._dialect import UpstreamRequest
from workers.providers._exchange import ERROR_BODY_LIMIT, Exchange, Take
from workers.providers._heads import address, head
from workers.providers._pool import Pool, Route

_DRAIN: Final = 0.2
"""Seconds given to the end of an answer whose last word was said, so that its connection can be used again."""
_WAYS_LIMIT: Final = 4096
"""Heads kept: more than there are deployments, unless a dialect signs each call."""


class Received(msgspec.Struct, frozen=True):
    """A provider's answer."""

    status: int
    body: bytes
    fields: Mapping[bytes, bytes]
    """The header fields, names in lower case."""

    @property
    def content_type(self) -> str:
        """What its body is, by its own word."""
        return _content_type(self.fields)

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields as text."""
        return _headers(self.fields)


class Stream:
    """A streamed answer while it is open."""

    def __init__(self, connection: Connection, exchange: Exchange, between: float) -> None:
        self.status = exchange.status
        self.content_type = _content_type(exchange.fields)
        self._connection = connection
        self._exchange = exchange
        self._between = between
        self._decoder = decoder(exchange.fields, error=exchange.status != 200)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""
        return _headers(self._exchange.fields)

    async def receive(self) -> bytes | None:
        """Return the bytes that arrived next; None at the end. Raises UpstreamError."""
        coding = self._decoder
        try:
            if coding is None:
                return await self._connection.piece(self._between)
            while not (plain := coding.read()):
                data = await self._connection.piece(self._between)
                if data is None:
                    coding.close()
                    return None
                coding.add(data)
        except TimeoutError:
            raise _silent(self._between) from None
        return plain

    async def follow(self, take: Take) -> bool:
        """
        Hand the bytes to `take` as they arrive; return True once it wants no more, False at the end.

        Raises UpstreamError, and what `take` raises.
        """
        if self._decoder is None:
            try:
                return await self._connection.follow(take, self._between)
            except TimeoutError:
                raise _silent(self._between) from None
        while (plain := await self.receive()) is not None:
            if not take(plain):
                return True
        return False

    async def read(self) -> bytes:
        """Return the beginning of an answer that turned out to be no stream: as much as an error may need."""
        pieces: list[bytes] = []
        size = 0
        while size < ERROR_BODY_LIMIT and (data := await self.receive()) is not None:
            size += len(data)
            pieces.append(data)
        return b"".join(pieces)

    async def drain(self) -> None:
        """Wait a moment for the end of the body: a connection can be used again only after it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _DRAIN
        try:
            while (left := until - loop.time()) > 0 and await self._connection.piece(left) is not None:
                pass
        except (TimeoutError, UpstreamError):
            pass  # the answer was complete: how its connection ends is no longer the client's concern


class _Way(msgspec.Struct, frozen=True):
    """What all calls of a deployment share on the wire."""

    route: Route
    head: bytes

    async def send(self, body: bytes, exchange: Exchange, timeout: float) -> Connection:
        """Send a request and return its connection, to be given back. Raises TimeoutError or UpstreamError."""
        connection = self.route.take() or await self.route.connect(timeout)
        connection.send(b"%s%d\r\n\r\n" % (self.head, len(body)), body, exchange)
        return connection


class Sender:
    """
    Sends calls over one pool of connections; `async with` closes it.

    Whoever leaves a call, by cancellation or by a limit of time, closes its connection at once, at whatever stage.
    """

    def __init__(self, settings: DispatchSettings) -> None:
        self._limit = settings.max_response_bytes
        self._pool = Pool(settings.connect_timeout)
        self._ways: dict[tuple[object, ...], _Way] = {}

    async def __aenter__(self) -> Sender:
        self._pool.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    async def call(self, request: UpstreamRequest, timeout: float) -> Received:
        """Return the whole answer within `timeout` seconds. Raises UpstreamError."""
        way = self._way(request)
        exchange = Exchange(self._limit)
        until = asyncio.get_running_loop().time() + timeout
        try:
            connection = await way.send(request.body, exchange, timeout)
            try:
                if failpoints.ARMED:
                    await failpoints.reach("dispatch.mid_provider")
                body = await exchange.whole(until)
            finally:
                way.route.give_back(connection)
        except TimeoutError:
            raise _late(timeout) from None
        fields = exchange.fields
        if exchange.status == 200:
            return Received(200, decoded(fields, body, self._limit), fields)
        return Received(exchange.status, decoded(fields, body, ERROR_BODY_LIMIT, error=True), fields)

    @asynccontextmanager
    async def stream(self, request: UpstreamRequest, *, between: float, total: float) -> AsyncIterator[Stream]:
        """
        Open a streamed answer: `between` seconds until its first byte and between bytes, `total` for all of it.

        Raises UpstreamError, from the body of the `async with` too. Leaving early closes the connection.
        """
        way = self._way(request)
        exchange = Exchange()
        loop = asyncio.get_running_loop()
        until = loop.time() + between
        timer = None if total == math.inf else loop.call_later(total, lambda: exchange.fail(_late(total)))
        connection = None
        try:
            try:
                connection = await way.send(request.body, exchange, min(between, total))
                if failpoints.ARMED:
                    await failpoints.reach("dispatch.mid_provider")
                await exchange.head(until)
            except TimeoutError:
                raise (_silent(between) if between < total else _late(total)) from None
            yield Stream(connection, exchange, between)
        finally:
            if timer is not None:
                timer.cancel()
            if connection is not None:
                way.route.give_back(connection)

    def _way(self, request: UpstreamRequest) -> _Way:
        # By value: comparing a few strings that are the same objects costs less than any parsing.
        key = (request.method, request.url, *request.headers.items())
        way = self._ways.get(key)
        if way is None:
            if len(self._ways) >= _WAYS_LIMIT:
                self._ways.clear()
            way = self._ways[key] = self._prepare(request)
        return way

    def _prepare(self, request: UpstreamRequest) -> _Way:
        try:
            where = address(request.url)
            route = self._pool.route(where.origin)
            return _Way(route, head(request.method, where, request.headers, route.proxy))
        except ValueError:  # its text may hold the key
            raise ModelDisabled(
                "the deployment is not usable: its `api_base`, a header or a proxy is not valid HTTP",
                hint="check `api_base` and `extra_headers` of the model, and HTTP_PROXY and HTTPS_PROXY",
            ) from None


def _content_type(fields: Mapping[bytes, bytes]) -> str:
    return fields.get(b"content-type", b"").decode("latin-1")


def _headers(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in fields.items()}


def _late(seconds: float) -> UpstreamTimeout:
    hint = "raise `timeout` or `stream_timeout` of the model if it needs longer"
    return UpstreamTimeout(f"the provider did not answer within {seconds:.3g} s", hint=hint)


def _silent(seconds: float) -> UpstreamTimeout:
    hint = "raise `stream_timeout` of the model if it needs longer"
    return UpstreamTimeout(f"the provider sent nothing for {seconds:.3g} s", hint=hint)
