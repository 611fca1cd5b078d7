"""One request and its response: who asks, what is known so far, and the bytes that go out."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ingress.errors import Headers, error_body, error_headers
from pipeline import logs, metrics
from pipeline.job import ErrorFields, Facts, encode_json, new_id

if TYPE_CHECKING:
    from ingress.edge import Edge
    from pipeline.settings import Key
    from pipeline.stores.files import Viewer

JSON: Final = b"application/json"

UNREAD_LIMIT: Final = 64 * 1024
"""An unread body longer than this ends the connection: cheaper for both sides than to read on and throw away."""

KEY: Final = "promptmill.exchange"
"""Where the scope holds the exchange."""

COMPLETE: Final = "promptmill.complete"
"""Set in the scope once the whole body has arrived: reading it needs no clock."""

LEAVING: Final = "promptmill.leaving"
"""In the scope of our own server: a `Leaving`. The clients of others are watched by a task, for 60 µs more."""

CHUNKS: Final = "promptmill.chunks"
"""In the scope of our own server: writes a piece of a begun stream at once, for 10 µs less than `send`, or refuses."""

ABORT: Final = "promptmill.abort"
"""In the scope of our own server: ends the connection at once, with what its client has not read."""

log = logs.logger("ingress")


class Leaving:
    """Tells those who wait for an answer in vain that a connection's client left."""

    __slots__ = ("_left", "_listeners")

    def __init__(self) -> None:
        self._left = False
        self._listeners: set[Callable[[], None]] = set()

    def add(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the client leaves; at once if it did while its job was on its way into Redis."""
        if self._left:
            listener()
        else:
            self._listeners.add(listener)

    def discard(self, listener: Callable[[], None]) -> None:
        """Forget `listener`: its answer is sent."""
        self._listeners.discard(listener)

    def tell(self) -> None:
        """The client left."""
        self._left = True
        for listener in tuple(self._listeners):
            listener()


class Exchange:
    """One request on its way through the edge. `status` is 0 until the response's head is sent."""

    __slots__ = (
        "body_read",
        "code",
        "edge",
        "endpoint",
        "facts",
        "headers",
        "id",
        "key",
        "receive",
        "scope",
        "send",
        "started",
        "status",
    )

    def __init__(self, edge: Edge, scope: Scope, receive: Receive, send: Send) -> None:
        self.edge = edge
        self.scope = scope
        self.receive = receive
        self.send = send
        self.id = new_id()
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.key: Key | None = None
        self.endpoint = "other"
        self.facts: Facts | None = None
        self.body_read = False
        self.status = 0
        self.code = ""
        self.started = time.monotonic()

    def header(self, name: bytes) -> str:
        """Return a request header without surrounding blanks; empty when it was not sent."""
        return self.headers.get(name, b"").decode("latin-1").strip()

    @property
    def viewer(self) -> Viewer:
        """Whose files and batches are seen."""
        assert self.key is not None
        return None if self.key.master else self.key.name

    async def start(self, status: int, content_type: bytes, headers: Headers) -> None:
        """Send the response's head: `headers` and those that every response carries."""
        self.status = status if 200 <= status <= 599 else 502
        head = [(b"content-type", content_type), (b"x-request-id", self.id.encode()), *headers]
        if self.facts is not None:
            head += fact_headers(self.facts)
        if not self.body_read and self._unread_is_long():
            head.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": self.status, "headers": head})

    async def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers | None = None
    ) -> None:
        """Send a whole response."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, content_type, [length, *headers] if headers else [length])
        await self.send({"type": "http.response.body", "body": body})

    async def respond_json(self, value: Any, status: int = 200) -> None:
        """Send `value` as JSON."""
        await self.respond(status, encode_json(value))

    async def refuse(self, fields: ErrorFields, headers: Headers | None = None, **more: Any) -> None:
        """Send an error as the response, with `more` beside it."""
        self.code = fields.code
        if fields.status == 408:  # the rest of the body may still come: it must not be taken for the next request
            headers = [*(headers or []), (b"connection", b"close")]
        await self.respond(
            fields.status, error_body(fields, self.id, **more), JSON, [*error_headers(fields), *(headers or [])]
        )

    def finish(self) -> None:
        """Count the request and write its one line; what made no job and went well is worth DEBUG alone."""
        seconds = time.monotonic() - self.started
        metrics.REQUESTS[self.endpoint, str(self.status)].inc()
        metrics.REQUEST_SECONDS[self.endpoint,].observe(seconds)
        if self.facts is None and self.status < 400:
            log.debug("request done", request_id=self.id, endpoint=self.endpoint, status=self.status)
            return
        facts = self.facts or Facts()
        log.info(
            "request done",
            request_id=self.id,
            tenant=self.key.name if self.key is not None else "",
            endpoint=self.endpoint,
            model=facts.model,
            deployment=facts.deployment,
            prompt_id=facts.prompt_id,
            prompt_tokens=facts.prompt_tokens,
            completion_tokens=facts.completion_tokens,
            attempts=facts.attempts,
            queue_ms=facts.queue_ms,
            prompt_ms=facts.prompt_ms,
            provider_ms=facts.provider_ms,
            status=self.status,
            code=self.code,
            seconds=round(seconds, 4),
        )

    def _unread_is_long(self) -> bool:
        if b"transfer-encoding" in self.headers:
            return True
        length = self.headers.get(b"content-length", b"0")
        return len(length) > 5 or not length.isdigit() or int(length) > UNREAD_LIMIT


class Endpoint:
    """An ASGI application around a function of the exchange: no Request, no Response, on the hot path."""

    def __init__(self, name: str, handle: Callable[[Exchange], Awaitable[None]]) -> None:
        self.name = name
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the scope's exchange to the function."""
        exchange: Exchange = scope[KEY]
        exchange.endpoint = self.name
        await self._handle(exchange)


def route(path: str, name: str, handle: Callable[[Exchange], Awaitable[None]], *methods: str) -> Route:
    """Return a route for `methods` (none: all); `path` is written without `/v1`, the application serves both forms."""
    return Route(path, Endpoint(name, handle), methods=methods or None, name=name)


def fact_headers(facts: Facts) -> Headers:
    """Return what happened to the job, for the client; what is not known is left out."""
    headers: Headers = [
        (b"x-promptmill-attempts", str(facts.attempts).encode()),
        (b"x-promptmill-queue-ms", b"%.1f" % facts.queue_ms),
        (b"x-promptmill-prompt-ms", b"%.1f" % facts.prompt_ms),
        (b"x-promptmill-provider-ms", b"%.1f" % facts.provider_ms),
    ]
    if facts.model:
        headers.append((b"x-promptmill-model", header_value(facts.model)))
    if facts.deployment:
        headers.append((b"x-promptmill-deployment", header_value(facts.deployment)))
    if facts.prompt_id:
        headers.append((b"x-promptmill-prompt-id", header_value(facts.prompt_id)))
    if facts.prompt:
        headers.append((b"x-promptmill-prompt", header_value(facts.prompt)))
    return headers


def header_value(text: str) -> bytes:
    """Return `text` as a header may carry it: latin-1, no control character, no line break."""
    if text.isascii() and text.isprintable():
        return text.encode()
    return "".join(c if c.isprintable() else "?" for c in text).encode("latin-1", "replace")
