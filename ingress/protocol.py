"""The connection: limits of a request's head, which uvicorn does not have, and who hears that the client left."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ingress.corked import CorkedTransport
from ingress.errors import error_body
from ingress.exchange import COMPLETE, LEAVING, Leaving
from pipeline.errors import InvalidRequest
from pipeline.job import new_id

HEAD_SECONDS: Final = 30.0
"""Seconds a client has for its request line and headers; on a new connection they begin at once."""

FIRST_WORDS: Final = 1.0
"""Seconds a connection that has just come is given for its request when the drain begins: it is on its way."""

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 256


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with limits on the head, and its two signals to the application."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Start the clock: a connection that says nothing is not worth a file descriptor."""
        super().connection_made(CorkedTransport(transport, self.loop))
        self._in_head = True
        self._received = self._head_bytes = 0
        self._leaving = Leaving()
        self._begun = self._last_request = False
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell those who wait for an answer in vain."""
        self._stop_timer()
        self._leaving.tell()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; a head that comes in one piece, as nearly all do, needs no timer."""
        if self._in_head:
            if self._head_bytes > MAX_HEAD_BYTES:  # a head without an end never completes
                self.send_400_response("")
                return
            self._head_bytes += len(data)
        self._received = len(data)
        super().data_received(data)
        if not self._in_head:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_message_begin(self) -> None:
        """A request begins, somewhere in what was last received."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._received

    def on_headers_complete(self) -> None:
        """The head is complete. What is raised here, the parser turns into a 400 and the end of the connection."""
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")
        # What was received bounds the head's size from above, and nearly always that is enough to know.
        if self._head_bytes > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES:
            raise ValueError("headers too large")
        self._in_head = False
        self._begun = True
        self.scope[LEAVING] = self._leaving  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if self._last_request:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The body is complete. Its last bytes may have paused reading, and who does not read hears nobody leave."""
        self.cycle.scope[COMPLETE] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()
        if not self.pipeline:  # a client that sends on before its answer came waits where it is
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """Begin the drain: finish what is under way, and do not cut off who is about to send a first request."""
        if not (self._begun or self._last_request):
            self._last_request = True
            self.loop.call_later(FIRST_WORDS, self.shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, in the shape of every other error."""
        limits = f"a head has at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes"
        error = InvalidRequest(f"this is not an HTTP/1.1 request we accept; {limits}")
        body = error_body(error.fields("ingress"), new_id())
        head: list[Any] = [
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n",
            b"content-length: %d\r\n\r\n" % len(body),
        ]
        self.transport.write(b"".join([*head, body]))
        self.transport.close()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
