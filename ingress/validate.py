"""Validation of an upload as the batch that shall be made of it, for clients that want to know at once."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

import anyio
import msgspec

from ingress.exchange import Exchange
from ingress.queries import query_of
from pipeline.batch_requests import Judge
from pipeline.batch_validation import MOST_ERRORS, Validation
from pipeline.errors import BacklogFull, InvalidBatchFile
from pipeline.intake import BATCHED
from pipeline.stores.batch_lines import LineError
from pipeline.stores.blobs import Blob
from pipeline.stores.lines import PIECE, read_lines

MOST_WAITING: Final = 4
"""Uploads to be validated that a process takes in at a time: they keep their places among the transfers."""

SHOWN: Final = 3
"""Errors in the message; all of them are beside it."""


class _Url(msgspec.Struct):
    url: str = ""


_decode_url: Final = msgspec.json.Decoder(_Url).decode


@contextmanager
def validation(exchange: Exchange) -> Iterator[UploadCheck | None]:
    """Return what looks at an upload, if its query or a header asks for it. Raises BacklogFull and InvalidRequest."""
    if query_of(exchange).get("validate") != "1" and exchange.header(b"x-promptmill-validate") != "1":
        yield None
        return
    edge = exchange.edge
    if edge.validations >= MOST_WAITING:
        hint = "leave `validate` out, and look at the batch"
        raise BacklogFull("this process already validates uploads; try again shortly", hint=hint, retry_after=10.0)
    edge.validations += 1
    try:
        yield UploadCheck(exchange)
    finally:
        edge.validations -= 1


class UploadCheck:
    """Judges an upload by the rules of the feed; `errors` says afterwards what is wrong."""

    def __init__(self, exchange: Exchange) -> None:
        self.errors: list[LineError] = []
        self._exchange = exchange

    async def __call__(self, blob: Blob) -> None:
        """Look at every line; one upload at a time, and for half of the time at most. Raises InvalidBatchFile."""
        edge, key = self._exchange.edge, self._exchange.key
        assert key is not None
        async with edge.validating:
            endpoint = await _endpoint(blob, edge.settings.files.max_line_bytes)
            found = Validation(blob, Judge(endpoint, key.models, edge.catalog), edge.settings)
            await found.run(_rests())
        self.errors = found.errors
        if self.errors:
            raise InvalidBatchFile(_message(self.errors), hint="correct these lines; nothing was stored", param="file")


async def _endpoint(blob: Blob, longest: int) -> str:
    """Return the endpoint that the first line with a usable one names: a batch has one, and a file does not say."""
    async with aclosing(read_lines(blob, longest)) as source:
        for _ in range(longest // PIECE + 2):  # the first line may be as long as that
            for line in (await anext(source, []))[:MOST_ERRORS]:
                try:
                    url = _decode_url(line.data or b"").url
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    continue
                if url in BATCHED:
                    return url
    return next(iter(BATCHED))


def _rests() -> Callable[[], Awaitable[None]]:
    """Return a pause that is as long as what came before it: live requests share this process."""
    since = time.monotonic()

    async def rest() -> None:
        nonlocal since
        await anyio.sleep(time.monotonic() - since)
        since = time.monotonic()

    return rest


def _message(errors: list[LineError]) -> str:
    first = "; ".join(_told(error) for error in errors[:SHOWN])
    more = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return f"the file cannot be the input of a batch: {first}{more}"


def _told(error: LineError) -> str:
    return error.message if error.line is None else f"line {error.line}: {error.message}"
