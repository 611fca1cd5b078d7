"""A request's body: read up to the limits, and given up when it stops arriving."""

from __future__ import annotations

from typing import Final

import anyio

from ingress.exchange import COMPLETE, Exchange
from pipeline.errors import BodyTimeout, BodyTooLarge, Cancelled, EncodingNotSupported, InvalidRequest

STALLED: Final = 30.0
"""Seconds without a byte after which the rest of a body is no longer waited for."""


def announced_size(exchange: Exchange) -> int:
    """
    Return how long the body says it is; 0 for a chunked one.

    Raises what can be known before a byte is read: BodyTooLarge, EncodingNotSupported, InvalidRequest.
    """
    encoding = exchange.header(b"content-encoding").lower()
    if encoding not in ("", "identity"):
        raise EncodingNotSupported("compressed request bodies are not accepted; send it without content-encoding")
    length = exchange.header(b"content-length") or "0"
    if not (length.isascii() and length.isdigit()):
        raise InvalidRequest("content-length is not a number; leave it to your HTTP client")
    limit = exchange.edge.settings.ingress.max_body_bytes
    if len(length) > 15 or int(length) > limit:
        raise _too_large(limit)
    return int(length)


async def read_body(exchange: Exchange) -> bytes:
    """
    Return the body; its bytes count against the permits until the caller releases them.

    Raises BodyTooLarge, BacklogFull, BodyTimeout, and Cancelled when the client left.
    """
    chunks: list[bytes] = []
    try:
        if COMPLETE in exchange.scope:
            await _collect(exchange, chunks, None)
        else:
            with anyio.CancelScope(deadline=anyio.current_time() + STALLED) as scope:
                await _collect(exchange, chunks, scope)
            if scope.cancelled_caught:
                raise BodyTimeout("the request's body stopped arriving; send it again on a faster connection")
    except BaseException:
        exchange.edge.permits.release(sum(map(len, chunks)))
        raise
    exchange.body_read = True
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _collect(exchange: Exchange, chunks: list[bytes], scope: anyio.CancelScope | None) -> None:
    """Receive until the body is complete; every chunk in `chunks` is counted. Each one puts the deadline off."""
    permits, limits = exchange.edge.permits, exchange.edge.settings.ingress
    size = 0
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
            scope.deadline = min(anyio.current_time() + STALLED, exchange.started + limits.request_timeout)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the request's body is over {limit} bytes; send less, or raise max_body_bytes",
        hint="large files belong behind a URL in the message",
    )
