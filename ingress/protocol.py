"""The connection: how much a client may send before a request is complete, how slowly, and who hears that it left."""

from __future__ import annotations

import asyncio
import http
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ingress.corked import CorkedTransport
from ingress.errors import error_body, error_headers
from ingress.exchange import ABORT, CHUNKS, COMPLETE, LEAVING, Leaving
from pipeline import metrics
from pipeline.errors import BacklogFull, InvalidRequest, RequestError, RequestTimeout
from pipeline.job import new_id
from pipeline.settings import IngressSettings

LAST_WORDS: Final = 1.0
"""Seconds an idle connection is given for one more request when the drain begins: it may be on its way."""

TAKING: Final = 30.0
"""Seconds in which a client must take what is on its way to it, 64 KB and a piece: slower ones are not waited for."""

REFUSED_AT_A_TIME: Final = 32
"""Connections too many that are kept for a last word: half of the files that are kept for other things than clients."""

SECOND_LOOK: Final = 0.02
"""Seconds in which a busy loop gets to read what had come when a connection's time was up."""

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a head; also what may follow a body's last byte, or stand between two of them, without being body."""

MAX_HEADERS: Final = 256
_FRAMING: Final = (b"content-length", b"transfer-encoding")


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with limits on what comes in, and its two signals to the application."""

    def __init__(self, *args: Any, limits: IngressSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._leaving = Leaving()
        self._begun = self._last_request = self._in_head = False
        self._received = self._first = self._overhead = 0
        self._speaking = True  # a connection that says nothing is not worth a file descriptor
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Start the clock, unless there are too many connections already."""
        if len(self.connections) >= self._limits.max_connections:
            _Refused.take(transport, self.loop)
            return
        self._corked = CorkedTransport(transport, self.loop, self._is_sending)
        super().connection_made(self._corked)
        self._since = self.loop.time()
        self._timer = self.loop.call_later(self._limits.head_timeout, self._watch)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell those who wait for an answer in vain."""
        for timer in (self._timer, self._stuck):
            if timer is not None:
                timer.cancel()
        self._leaving.tell()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client is behind: it has a while to catch up."""
        super().pause_writing()
        self._stuck = self.loop.call_later(TAKING, self._give_up)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def _give_up(self) -> None:
        metrics.SLOW_CLIENTS["stuck",].inc()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse, and end what is long and leads to nothing."""
        if self._corked.unheard:
            return
        if not self._speaking:
            self._speaking, self._since = True, self.loop.time()
        self._received = len(data)
        self._overhead += self._received
        super().data_received(data)
        if self._overhead > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """A request begins, somewhere in what was last received."""
        super().on_message_begin()
        self._in_head = True
        self._first, self._overhead = self._received, 0

    def on_headers_complete(self) -> None:
        """The head is complete. What is raised here, the parser turns into a 400 and the end of the connection."""
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")
        # What was received bounds the head's size from above, and nearly always that is enough to know.
        if self._first + self._overhead > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES:
            raise ValueError("headers too large")
        upgrade = self.parser.should_upgrade()
        if upgrade and not {name for name, _ in self.headers}.isdisjoint(_FRAMING):
            raise ValueError("a body that the parser would not read")
        self.scope[LEAVING] = self._leaving  # type: ignore[typeddict-unknown-key]
        self.scope[CHUNKS] = self._corked.write_chunk  # type: ignore[typeddict-unknown-key]
        self.scope[ABORT] = self._corked.abort  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        self._begun = True
        self._in_head = False
        self._overhead = 0
        self.headers = []  # the scope keeps the others: a trailer is no header, and must not pass for one
        if self._last_request or upgrade:  # after a head that asks for an upgrade the parser reads nothing
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Some of the body came."""
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is complete. Its last bytes may have paused reading, and who does not read hears nobody leave."""
        self.cycle.scope[COMPLETE] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()
        if self.cycle.response_complete:  # it was answered unread; its last bytes stopped the clock of idle connections
            self._speaking = False
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        if not self.pipeline:  # a client that sends on before its answer came waits where it is
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """The client's turn begins, unless it has begun already."""
        super().on_response_complete()
        self._speaking, self._since = self._in_head, self.loop.time()

    def shutdown(self) -> None:
        """
        Begin the drain: whoever may be about to send is answered once more, and told that it was the last time.

        A client that keeps connections sees one close only while it is idle, never under a request.
        """
        self._last_request = True
        self.timeout_keep_alive = LAST_WORDS  # type: ignore[assignment]  # seconds: it goes to `call_later` as it is
        if not self._is_answering():
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(LAST_WORDS, self.timeout_keep_alive_handler)
        elif not self.cycle.response_started:
            self.cycle.keep_alive = False

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless what came while the loop was busy is a request."""
        self.timeout_keep_alive_task = self.loop.call_later(SECOND_LOOK, super().timeout_keep_alive_handler)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        limits = f"a head has at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes"
        hint = "HTTP clients that ask for an upgrade to HTTP/2 must be told to use HTTP/1.1"
        self._end(InvalidRequest(f"this is not an HTTP/1.1 request we accept; {limits}", hint=hint))

    def _watch(self) -> None:
        """
        End the connection if its client speaks too slowly, else look again when it can be.

        Requests do not touch this timer. A body that is read has its reader's clock, an idle connection uvicorn's.
        """
        left = self._limits.head_timeout
        if self._speaking and not self._is_answering():
            left += self._since - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._watch)
        elif self._in_head:
            self._end(RequestTimeout("the request's head stopped arriving; send it again on a faster connection"))
        else:
            self.transport.close()

    def _end(self, error: RequestError) -> None:
        """Close, with an error in the shape of all others unless it would pass for the answer to another request."""
        metrics.REFUSALS[error.code, "ingress"].inc()
        of_this_request = not self.pipeline and self._begun and self.cycle.more_body and not self.cycle.response_started
        if of_this_request or not self._is_answering():
            self.transport.write(_last_response(error))
        self.transport.close()

    def _is_sending(self) -> bool:
        return self._begun and self.cycle.more_body

    def _is_answering(self) -> bool:
        return self._begun and not self.cycle.response_complete

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)


class _Refused(asyncio.Protocol):
    """
    A connection too many: told so, and kept until its client has heard it.

    Closed at once, it would answer the client's request with a reset, which takes back what was said before.
    """

    _count: ClassVar[int] = 0

    def __init__(self) -> None:
        type(self)._count += 1

    @classmethod
    def take(cls, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse the client at the other end; without a word where too many are being refused."""
        hint = "start more ingress processes, or raise max_connections and the limit of open files"
        error = BacklogFull("this process has as many connections as it may", hint=hint, retry_after=1.0)
        metrics.REFUSALS[error.code, "ingress"].inc()
        transport.set_protocol(cls())
        if cls._count > REFUSED_AT_A_TIME:
            transport.abort()
        else:
            transport.write(_last_response(error))
            transport.write_eof()
            loop.call_later(LAST_WORDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has heard it, or had its time."""
        type(self)._count -= 1


def _last_response(error: RequestError) -> bytes:
    """Return the response after which a connection ends, with an error in the shape of all others."""
    fields, request_id = error.fields("ingress"), new_id()
    body = error_body(fields, request_id)
    status = http.HTTPStatus(fields.status)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        (b"connection", b"close"),
        *error_headers(fields),
    ]
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, status.phrase.encode(), lines, body)
