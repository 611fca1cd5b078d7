"""The only sender of provider calls: no redirects, bounded answers, and errors of our own tree."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Final

import anyio
import msgspec
from pyreqwest import exceptions
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.request import RequestBuilder
from pyreqwest.response import Response

from pipeline.errors import ModelDisabled, UpstreamError, UpstreamGarbled, UpstreamTimeout, UpstreamUnavailable
from pipeline.settings import DispatchSettings
from workers.providers._dialect import UpstreamRequest

_ERROR_BODY_LIMIT: Final = 64 * 2**10
"""Bytes read of an answer that is no 200: enough for any error, and never a gift to a hostile host."""
_DRAIN: Final = 0.2
"""Seconds given to the end of an answer whose last word was said, so that its connection can be used again."""


class Received(msgspec.Struct, frozen=True):
    """A provider's answer; `headers` are kept only when it is no 200."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = {}


class _Errors:
    """
    Turn what the HTTP client raises into an UpstreamError.

    Its cancellations are exchanged for anyio's: it raises its own, which no cancel scope knows as the one it sent.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, exceptions.PyreqwestError):
            raise _translated(error, self._timeout) from None  # its text holds addresses of the operator's
        if isinstance(error, anyio.get_cancelled_exc_class()):
            await anyio.lowlevel.checkpoint_if_cancelled()


def _translated(error: exceptions.PyreqwestError, timeout: float) -> UpstreamError:
    match error:
        case exceptions.RequestTimeoutError():
            hint = "raise `timeout` or `stream_timeout` of the model if it needs longer"
            return UpstreamTimeout(f"the provider did not answer within {timeout:.3g} s", hint=hint)
        case exceptions.ReadError():
            return UpstreamGarbled("the provider closed the connection in the middle of its answer")
        case exceptions.NetworkError() | exceptions.ClientClosedError() | exceptions.RequestPanicError():
            return UpstreamUnavailable("the provider could not be reached", hint="check `api_base` and the network")
        case _:
            return UpstreamGarbled("the provider's answer breaks off, or is not HTTP")


class Stream:
    """A streamed answer while it is open."""

    def __init__(self, response: Response, scope: anyio.CancelScope, between: float) -> None:
        self.status = response.status
        self.content_type = response.get_header("content-type") or ""
        self._response = response
        self._scope = scope
        self._between = between

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""
        return _headers(self._response)

    async def receive(self) -> bytes | None:
        """Return the bytes that arrived next; None at the end."""
        if self._between == math.inf:
            data = await self._response.body_reader.read_chunk()
        else:
            self._scope.deadline = anyio.current_time() + self._between
            data = await self._response.body_reader.read_chunk()
            self._scope.deadline = math.inf  # the provider's clock stands while the client's side takes the bytes
        return None if data is None else data.to_bytes()

    async def read(self) -> bytes:
        """Return the beginning of an answer that turned out to be no stream: as much as an error may need."""
        return await _read_some(self._response)

    async def drain(self) -> None:
        """Wait a moment for the end of the body: a connection can be used again only after it."""
        with anyio.move_on_after(_DRAIN):
            try:
                async with _Errors(_DRAIN):
                    while await self._response.body_reader.read_chunk() is not None:
                        pass
            except UpstreamError:
                pass  # the answer was complete: how its connection ends is no longer the client's concern


class Sender:
    """
    Sends calls over one connection pool; `async with` closes it.

    Cancelling returns at once. It closes the connection at once while an answer is read; before the answer begins,
    pyreqwest 0.15 lets the call run on by itself until its first byte or its timeout (its task is not aborted).
    """

    def __init__(self, settings: DispatchSettings) -> None:
        self._limit = settings.max_response_bytes
        connect = timedelta(seconds=settings.connect_timeout)
        builder = ClientBuilder().follow_redirects(enable=False).referer(enable=False).connect_timeout(connect)
        self._client: Client = builder.build()

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def call(self, request: UpstreamRequest, timeout: float) -> Received:
        """Return the whole answer within `timeout` seconds. Raises UpstreamError."""
        async with _Errors(timeout):
            prepared = self._prepare(request).timeout(timedelta(seconds=timeout)).build_streamed()
            async with prepared as response:
                content_type = response.get_header("content-type") or ""
                status = response.status
                if status == 200:
                    return Received(status, await self._read(response), content_type)
                return Received(status, await _read_some(response), content_type, _headers(response))

    async def _read(self, response: Response) -> bytes:
        length = response.get_header("content-length")
        if length is not None and length.isdecimal() and int(length) <= self._limit:
            # Framing holds the body to its length (the header is gone when it has to be decompressed): one await.
            return (await response.bytes()).to_bytes()
        return await _read_pieces(response, self._limit)

    @asynccontextmanager
    async def stream(self, request: UpstreamRequest, *, between: float, total: float) -> AsyncIterator[Stream]:
        """
        Open a streamed answer: `between` seconds until its first byte and between bytes, `total` for all of it.

        Raises UpstreamError, from the body of the `async with` too. Leaving early closes the connection.
        """
        with anyio.move_on_after(between) as scope:
            async with _Errors(total):
                builder = self._prepare(request).timeout(timedelta(seconds=total)).streamed_read_buffer_limit(0)
                async with builder.build_streamed() as response:
                    yield Stream(response, scope, between)
        if scope.cancelled_caught:
            hint = "raise `stream_timeout` of the model if it needs longer"
            raise UpstreamTimeout(f"the provider sent nothing for {between:.3g} s", hint=hint)

    def _prepare(self, request: UpstreamRequest) -> RequestBuilder:
        try:
            return self._client.request(request.method, request.url).headers(request.headers).body_bytes(request.body)
        except ValueError:  # its text may hold the key
            raise ModelDisabled(
                "the deployment is not usable: its `api_base` or a header is not valid HTTP",
                hint="check `api_base` and `extra_headers` of the model",
            ) from None


async def _read_pieces(response: Response, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    reader = response.body_reader
    while (data := await reader.read_chunk()) is not None:
        size += len(data)
        if size > limit:
            raise UpstreamGarbled(
                f"the provider's answer is larger than {limit} bytes", hint="raise `max_response_bytes` if it may be"
            )
        pieces.append(data.to_bytes())
    return b"".join(pieces)


async def _read_some(response: Response) -> bytes:
    """Return the beginning of an error's body."""
    pieces: list[bytes] = []
    size = 0
    reader = response.body_reader
    while size < _ERROR_BODY_LIMIT and (data := await reader.read_chunk()) is not None:
        size += len(data)
        pieces.append(data.to_bytes())
    return b"".join(pieces)


def _headers(response: Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
