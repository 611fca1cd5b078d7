"""One answer as it arrives: HTTP/1.1 framing, its limits, and whoever waits for it."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from pipeline.errors import UpstreamCut, UpstreamError, UpstreamGarbled, UpstreamUnavailable

HEAD_LIMIT: Final = 64 * 2**10
"""Bytes the head of an answer may have, interim answers and trailers included."""
FIELD_LIMIT: Final = 256
"""Header fields an answer may have."""
ERROR_BODY_LIMIT: Final = 64 * 2**10
"""Bytes read of an answer that is no 200: enough for any error, and never a gift to a hostile host."""


Take = Callable[[bytes], bool]
"""Takes bytes of a body; whether it wants more of them at once."""


class _Stop(Exception):
    """Ends the parsing of what arrived; the reason stands in the exchange."""


class Exchange:
    """
    One answer: whole when `limit` is set, else piece by piece.

    It is its own parser's target. `close` breaks that circle, so that nothing is left to the garbage collector.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.status = 0
        """0 until the head is complete."""
        self.fields: dict[bytes, bytes] = {}
        """The header fields, names in lower case."""
        self.complete = False
        self.reusable = False
        """The connection may carry another exchange once this one is complete."""
        self.held = 0
        """Bytes of the body that nobody has taken yet."""
        self._pieces: list[bytes] = []
        self._limit = sys.maxsize if limit is None else limit
        self.streamed = limit is None
        self._begun = False
        self._arrived = 0
        self._head_bytes = 0
        self._head_fields = 0
        self._failure: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._follower: Take | None = None
        self._enough = False
        """The follower wants no more."""
        self._heard = 0.0
        """When something arrived last, on the loop's clock."""
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    def close(self) -> None:
        """Let go of the parser. Never call it from what the parser calls."""
        self._parser = None

    # What the connection calls.

    def feed(self, data: bytes) -> bool:
        """Take bytes as they arrived; return whether the connection is still of use."""
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            # After the end of an answer: bytes nobody asked for, so only the connection is spoilt.
            self.reusable = False
            if not self.complete:
                self.fail(UpstreamGarbled("the provider's answer breaks off, or is not HTTP"))
        if not self.status:
            # A field is counted when it ends; this is for one that never does.
            self._arrived += len(data)
            if self._arrived > HEAD_LIMIT:
                self.fail(_head_too_large())
        self._heard = asyncio.get_running_loop().time()
        self._wake()
        return self._failure is None and (self.reusable or not self.complete)

    def end(self, *, clean: bool) -> None:
        """Take note that the connection is gone; `clean`: the provider closed it."""
        if self.complete:
            return
        if self.status and clean and self._is_delimited_by_its_end():
            self.complete = True
        elif self._begun:
            self.fail(UpstreamCut("the provider closed the connection in the middle of its answer"))
        else:
            hint = "ask again; check the provider's status if it goes on"
            self.fail(UpstreamUnavailable("the provider closed the connection before it answered", hint=hint))
        self.reusable = False
        self._wake()

    def fail(self, error: UpstreamError) -> None:
        """End the exchange with an error; the first one counts."""
        if self._failure is None:
            self._failure = error
        self._wake()

    # What the sender calls.

    async def head(self, until: float) -> None:
        """Wait for the head of a streamed answer, `until` on the loop's clock. Raises TimeoutError or UpstreamError."""
        while not self.status:
            await self._wait(until)

    async def whole(self, until: float) -> bytes:
        """Return the whole body, `until` on the loop's clock. Raises TimeoutError or UpstreamError."""
        while not self.complete:
            await self._wait(until)
        return self._take()

    async def piece(self, timeout: float) -> bytes | None:
        """Return what has arrived of the body; None at its end. Raises TimeoutError or UpstreamError."""
        if not self._pieces:
            # The provider's clock stands while the client's side takes the bytes.
            until = asyncio.get_running_loop().time() + timeout
            while not self._pieces:
                if self.complete:
                    return None
                await self._wait(until)
        return self._take()

    async def follow(self, take: Take, timeout: float) -> bool:
        """
        Hand the body to `take` as it arrives; return True once that wants no more, False at the body's end.

        This task sleeps meanwhile: to wake it costs more than most pieces do. Raises TimeoutError after `timeout`
        seconds of silence, UpstreamError, and what `take` raises.
        """
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        self._follower, self._enough = take, False
        try:
            while not self._enough:
                if self._pieces:
                    self._enough = not take(self._take())
                elif self.complete:
                    return False
                else:
                    try:
                        await self._wait(self._heard + timeout)
                    except TimeoutError:
                        if loop.time() >= self._heard + timeout:
                            raise
            return True
        finally:
            self._follower = None

    def _take(self) -> bytes:
        pieces, self._pieces, self.held = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _wait(self, until: float) -> None:
        if self._failure is not None:
            raise self._failure
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        # A handle instead of a timeout's scope or task: it costs a microsecond, and cancels nothing but this wait.
        timer = None if until == math.inf else loop.call_at(until, _expire, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self.complete or self._failure is not None:
            waiter.set_result(None)
        elif self._follower is not None:
            self._hand_on(self._follower, waiter)
        elif self.streamed and self.status:
            waiter.set_result(None)

    def _hand_on(self, take: Take, waiter: asyncio.Future[None]) -> None:
        """Give the follower what arrived; its task is woken only when that was enough, or went wrong."""
        try:
            if self._pieces and not take(self._take()):
                self._enough = True
                waiter.set_result(None)
        except Exception as error:  # noqa: BLE001 - it belongs to the task that follows, not to the connection
            waiter.set_exception(error)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Refuse a second answer."""
        if self.complete:
            raise _Stop
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; trailers are counted and dropped."""
        self._head_bytes += len(name) + len(value) + 4
        self._head_fields += 1
        if self._head_bytes > HEAD_LIMIT or self._head_fields > FIELD_LIMIT:
            self.fail(_head_too_large())
            raise _Stop
        if not self.status:
            self.fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Read how the body is framed, and refuse what is too large or unheard of."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:
            self.fields.clear()  # an interim answer, with the real one to follow
            return
        self.status = status
        self.reusable = self._parser.should_keep_alive() and self._parser.get_http_version() == "1.1"
        if self.fields.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            self.fail(UpstreamGarbled("the provider's answer has a transfer coding that nobody asked for"))
            raise _Stop
        if self.streamed:
            return
        if status != 200:
            self._limit = min(self._limit, ERROR_BODY_LIMIT)
        elif int(self.fields.get(b"content-length", b"0")) > self._limit:
            self._overflow()

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self._pieces.append(data)
        self.held += len(data)
        if self.held > self._limit:
            self._overflow()

    def on_message_complete(self) -> None:
        """Take note of the end, unless it is an interim answer's."""
        if self.status:
            self.complete = True

    def _overflow(self) -> None:
        if self.status == 200:
            self.fail(too_large(self._limit))
        else:
            self.complete = True  # as much of an error as is wanted
        self.reusable = False
        raise _Stop

    def _is_delimited_by_its_end(self) -> bool:
        return b"content-length" not in self.fields and b"transfer-encoding" not in self.fields


def too_large(limit: int) -> UpstreamGarbled:
    """Return the error for an answer over `limit` bytes."""
    hint = "raise `max_response_bytes` if it may be"
    return UpstreamGarbled(f"the provider's answer is larger than {limit} bytes", hint=hint)


def _head_too_large() -> UpstreamGarbled:
    return UpstreamGarbled(f"the head of the provider's answer has over {HEAD_LIMIT} bytes or {FIELD_LIMIT} fields")


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
