"""A request's body: read up to the limits, and given up when it stops arriving."""

from __future__ import annotations

from typing import Final

import anyio

from ingress.exchange import COMPLETE, Exchange
from pipeline.errors import BacklogFull, BodyTooLarge, Cancelled, EncodingNotSupported, InvalidRequest, RequestTimeout

LEAST_RATE: Final = 64 * 1024
"""Bytes that put the end of a body off by a second: who sends less than that for long is cut off."""


def announced_size(exchange: Exchange) -> int:
    """
    Return how long the body says it is; 0 for a chunked one.

    Raises what can be known before a byte is read: BodyTooLarge, EncodingNotSupported, InvalidRequest.
    """
    length, limit = declared_length(exchange), exchange.edge.settings.ingress.max_body_bytes
    if length > limit:
        raise _too_large(limit)
    return length


def declared_length(exchange: Exchange) -> int:
    """Return the content-length; 0 where there is none. Raises EncodingNotSupported and InvalidRequest."""
    encoding = exchange.header(b"content-encoding").lower()
    if encoding not in ("", "identity"):
        raise EncodingNotSupported("compressed request bodies are not accepted; send it without content-encoding")
    if exchange.header(b"transfer-encoding").lower() not in ("", "chunked"):
        raise EncodingNotSupported("of transfer codings only `chunked` is accepted; leave it to your HTTP client")
    length = exchange.header(b"content-length") or "0"
    if not (length.isascii() and length.isdigit()):
        raise InvalidRequest("content-length is not a number; leave it to your HTTP client")
    return int(length[:20])  # of a longer number its beginning is too large as well


async def read_body(exchange: Exchange) -> bytes:
    """
    Return the body; its bytes count against the permits until the caller releases them.

    Raises BodyTooLarge, BacklogFull, RequestTimeout, and Cancelled when the client left.
    """
    chunks: list[bytes] = []
    try:
        if COMPLETE in exchange.scope:
            await _collect(exchange, chunks, None)
        else:
            patience = exchange.edge.settings.ingress.body_timeout
            with anyio.CancelScope(deadline=anyio.current_time() + patience) as scope:
                await _collect(exchange, chunks, scope)
            if scope.cancelled_caught:
                raise RequestTimeout("the request's body arrives too slowly; send it again on a faster connection")
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except BaseException as error:
        exchange.edge.permits.release(sum(map(len, chunks)))
        if isinstance(error, MemoryError):  # a limit of the operating system lies below ours
            hint = "lower max_buffered_bytes, or give the process more memory"
            raise BacklogFull("this process has no memory left for the body", hint=hint, retry_after=1.0) from None
        raise
    exchange.body_read = True
    return body


async def _collect(exchange: Exchange, chunks: list[bytes], scope: anyio.CancelScope | None) -> None:
    """Receive until the body is complete. Every chunk in `chunks` is counted, and puts the deadline off."""
    permits, limits = exchange.edge.permits, exchange.edge.settings.ingress
    size, latest = 0, exchange.started + limits.request_timeout
    while True:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client left before its body was complete")
        chunk: bytes = message.get("body", b"")
        permits.hold(len(chunk))
        chunks.append(chunk)
        size += len(chunk)
        if size > limits.max_body_bytes:
            raise _too_large(limits.max_body_bytes)
        if not message.get("more_body", False):
            return
        if scope is not None:
            stalled = anyio.current_time() + limits.body_timeout
            scope.deadline = min(stalled, exchange.started + limits.body_timeout + size / LEAST_RATE, latest)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the request's body is over {limit} bytes; send less, or raise max_body_bytes",
        hint="large files belong behind a URL in the message",
    )
