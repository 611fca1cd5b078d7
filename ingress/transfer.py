"""Files on their way in and out: piece by piece, with limits on how many, how large and how slowly."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio

from ingress.edge import Edge
from ingress.exchange import LEAVING, Exchange, Leaving
from pipeline import logs
from pipeline.errors import (
    BacklogFull,
    BodyTooLarge,
    Cancelled,
    FileDamaged,
    PipelineError,
    RangeNotSatisfiable,
    RequestTimeout,
)

if TYPE_CHECKING:
    from pipeline.stores.blobs import Blob

PIECE: Final = 256 * 1024
"""Bytes of a file that are read and sent at a time."""

LEAST_RATE: Final = 8 * 1024
"""Bytes a second; who is slower for long is cut off, for places are few."""

log = logs.logger("ingress")

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


@contextmanager
def transfer(edge: Edge) -> Iterator[None]:
    """Hold a place among those that send or receive a file. Raises BacklogFull."""
    if edge.transfers >= edge.settings.files.max_transfers:
        raise BacklogFull(
            f"this process already moves {edge.transfers} files; try again shortly",
            hint="start more ingress processes, or raise max_transfers",
            retry_after=1.0,
        )
    edge.transfers += 1
    try:
        yield
    finally:
        edge.transfers -= 1


async def receive(exchange: Exchange, most: int) -> AsyncIterator[bytes]:
    """
    Yield the request's body as it arrives.

    Raises BodyTooLarge above `most` bytes, RequestTimeout when it stalls, and Cancelled when the client leaves.
    """
    patience = exchange.edge.settings.ingress.body_timeout
    begun, size, more = anyio.current_time(), 0, True
    while more:
        latest = begun + patience + size / LEAST_RATE
        with anyio.CancelScope(deadline=min(latest, anyio.current_time() + patience)) as scope:
            message = await exchange.receive()
        if scope.cancelled_caught:
            raise RequestTimeout("the file arrives too slowly; send it again on a faster connection")
        if message["type"] == "http.disconnect":
            raise Cancelled("the client left before its file was complete")
        data: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(data)
        if size > most:
            raise BodyTooLarge(f"the request's body is over {most} bytes; split the file, or raise max_upload_bytes")
        exchange.body_read = not more
        yield data


async def send(exchange: Exchange, blob: Blob, start: int, end: int) -> None:
    """Send bytes of a blob as the body of a response whose head is out; a client that leaves or stalls ends it."""
    leaving: Leaving | None = exchange.scope.get(LEAVING)
    with anyio.CancelScope() as scope:
        if leaving is not None:
            leaving.add(scope.cancel)
        try:
            await _send(exchange, blob, start, end)
        finally:
            if leaving is not None:
                leaving.discard(scope.cancel)
    if scope.cancelled_caught:
        exchange.code = Cancelled.code


async def _send(exchange: Exchange, blob: Blob, start: int, end: int) -> None:
    patience = exchange.edge.settings.ingress.body_timeout + PIECE / LEAST_RATE
    while start < end:
        try:
            data = await blob.read(start, min(PIECE, end - start))
        except PipelineError as error:  # without its end the server cuts the connection
            exchange.code = error.code
            log.error("download cut short", request_id=exchange.id, code=error.code)
            return
        if not data:  # somebody cut the file short
            exchange.code = FileDamaged.code
            log.error("file shorter than recorded", request_id=exchange.id)
            return
        start += len(data)
        with anyio.move_on_after(patience) as scope:
            await exchange.send({"type": "http.response.body", "body": data, "more_body": start < end})
        if scope.cancelled_caught:  # without its end the server cuts the connection
            exchange.code = Cancelled.code
            return


def wanted_range(header: str, size: int) -> tuple[int, int] | None:
    """
    Return where the wanted part of `size` bytes begins and ends; None when all of it is wanted.

    Raises RangeNotSatisfiable, also for several parts at a time: they cost much, and resuming needs one.
    """
    if not header.startswith("bytes="):
        return None
    found = _RANGE.fullmatch(header)
    first, last = found.groups() if found else ("", "")
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(0, size - int(last or 0)), size
    if start >= end:
        raise RangeNotSatisfiable(f"the file has {size} bytes; ask for one range of them, as in `bytes=0-99`")
    return start, end
