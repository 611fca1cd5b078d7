"""A request's body: read up to the limits, and given up when it stops arriving."""

from __future__ import annotations

from typing import Final

import anyio

from ingress.exchange import Exchange
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
    edge = exchange.edge
    stop = exchange.started + edge.settings.ingress.request_timeout
    chunks: list[bytes] = []
    held = 0
    try:
        with anyio.CancelScope(deadline=anyio.current_time() + STALLED) as scope:
            more = True
            while more:
                message = await exchange.receive()
                if message["type"] == "http.disconnect":
                    raise Cancelled("the client left before its body was complete")
                chunk: bytes = message.get("body", b"")
                edge.permits.hold(len(chunk))
                held += len(chunk)
                if held > edge.settings.ingress.max_body_bytes:
                    raise _too_large(edge.settings.ingress.max_body_bytes)
                chunks.append(chunk)
                if more := message.get("more_body", False):
                    scope.deadline = min(anyio.current_time() + STALLED, stop)
        if scope.cancelled_caught:
            raise BodyTimeout("the request's body stopped arriving; send it again on a faster connection")
    except BaseException:
        edge.permits.release(held)
        raise
    exchange.body_read = True
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the request's body is over {limit} bytes; send less, or raise max_body_bytes",
        hint="large files belong behind a URL in the message",
    )
