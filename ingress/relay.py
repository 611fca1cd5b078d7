"""The one way out: a reply becomes a response, whole or as a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import msgspec
from starlette.types import Receive

from ingress.errors import drained, error_event
from ingress.exchange import ABORT, CHUNKS, JSON, LEAVING, Exchange, Leaving, header_value
from pipeline import failpoints, logs
from pipeline.errors import Cancelled, DeadlineExceeded, PipelineError
from pipeline.job import Facts, Frame, Job

if TYPE_CHECKING:
    from pipeline.transport.client import Answer, Waiter

EVENTS: Final = b"text/event-stream; charset=utf-8"
STREAM_HEADERS: Final = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]

QUIET: Final = 20.0
"""Seconds without a first frame after which the head goes out: load balancers cut silent connections."""

STUCK: Final = 30.0
"""Seconds past the deadline after which a response that cannot be written is given up."""

PIECE: Final = 64 * 1024
"""Bytes of a whole answer written at a time; the server keeps the rest until its client has taken them."""

SLOWEST: Final = 256 * 1024
"""Bytes a second at which a whole answer must be read, after `STUCK` seconds."""

PING_EVERY: Final = 15.0
PING: Final = b": ping\n\n"
DONE: Final = b"data: [DONE]\n\n"
"""After it clients read nothing more of a stream."""

log = logs.logger("ingress")


async def relay(exchange: Exchange, waiter: Waiter, job: Job) -> None:
    """Send the job's reply as the response; a client that leaves cancels the job."""
    leave, waiter.cut = waiter.cancel, exchange.scope.get(ABORT)
    leaving: Leaving | None = exchange.scope.get(LEAVING)
    if leaving is not None:
        leaving.add(leave)
    else:
        _start_watcher(exchange, waiter)
    try:
        await _relay(exchange, waiter, job)
    except anyio.get_cancelled_exc_class():
        waiter.cancel()
        if exchange.status and job.stream:  # a whole answer that is cut says so by its length
            with anyio.CancelScope(shield=True):
                await _break_off(exchange, job, drained())
        raise
    except PipelineError as error:
        if not exchange.status:
            raise
        await _break_off(exchange, job, error)
    except OSError:  # how an ASGI server may say that nobody reads any more
        waiter.cancel()
        exchange.code = Cancelled.code
    finally:
        waiter.close()
        if leaving is not None:
            leaving.discard(leave)


def _start_watcher(exchange: Exchange, waiter: Waiter) -> None:
    watchers = exchange.edge.watchers
    assert watchers is not None, "the application's lifespan has not started"
    watchers.start_soon(_watch, exchange.receive, waiter)


async def _watch(receive: Receive, waiter: Waiter) -> None:
    """Cancel the job when its client leaves; after the response the server says so too, which changes nothing."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
        waiter.cancel()
    except Exception as error:  # it shares a task group with the watchers of all other requests
        log.error("disconnect watcher failed", request_id=waiter.id, exc_info=error)


async def _relay(exchange: Exchange, waiter: Waiter, job: Job) -> None:
    item = await (_first(exchange, waiter) if job.stream else waiter.next())
    if isinstance(item, Frame):
        if not exchange.status:
            exchange.facts = _facts(item.facts or Facts(), job)
            kind = header_value(item.content_type) if item.content_type else EVENTS
            await exchange.start(200, kind, STREAM_HEADERS)
        await _stream(exchange, waiter, job, item)
    elif exchange.status:
        await _end(exchange, item, job, PING)
    else:
        await _whole(exchange, item, job)


async def _first(exchange: Exchange, waiter: Waiter) -> Frame | Answer:
    """Return what comes first, with signs of life to the client meanwhile."""
    with anyio.move_on_after(QUIET):
        return await waiter.next()
    await exchange.start(200, EVENTS, STREAM_HEADERS)
    while True:
        await _send(exchange, PING)
        with anyio.move_on_after(PING_EVERY):
            return await waiter.next()


async def _whole(exchange: Exchange, answer: Answer, job: Job) -> None:
    """Send a reply that no frame went before: nothing is promised yet, so an error keeps its status."""
    reply = answer.reply
    exchange.facts = _facts(reply.facts, job)
    if reply.error is not None:
        await exchange.refuse(reply.error)
        return
    if len(answer.body) > PIECE:
        await _in_pieces(exchange, answer)
    else:
        await exchange.respond(reply.status, answer.body, header_value(reply.content_type))


async def _in_pieces(exchange: Exchange, answer: Answer) -> None:
    """Write a large answer as fast as its client reads, but not for ever."""
    reply, body = answer.reply, answer.body
    length = (b"content-length", str(len(body)).encode())
    await exchange.start(reply.status, header_value(reply.content_type), [length])
    with anyio.move_on_after(STUCK + len(body) / SLOWEST) as scope:
        for at in range(0, len(body), PIECE):
            await _send(exchange, body[at : at + PIECE], more=at + PIECE < len(body))
            await anyio.lowlevel.checkpoint()  # without it the server does not come to say that it has enough
    if scope.cancelled_caught:
        exchange.code = Cancelled.code


async def _stream(exchange: Exchange, waiter: Waiter, job: Job, frame: Frame) -> None:
    """Pass frames on as they come, until the answer."""
    item: Frame | Answer = frame
    line = _Line(exchange)
    # `next` has the job's deadline; this one is for a client that neither reads nor leaves.
    seconds = (job.deadline - exchange.edge.transport.now()) / 1000 + STUCK
    with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
        while isinstance(item, Frame):
            await line.send(item.data)
            if waiter.unread > PIECE:
                await anyio.lowlevel.checkpoint()  # to hear whether the client has room for more
            if failpoints.ARMED:
                await failpoints.reach("ingress.mid_stream")
            try:
                item = await waiter.next(line.push)
            except PipelineError:
                if not line.last.endswith(DONE):
                    raise
                await _send(exchange, b"", more=False)  # the answer is whole, only the word that it is was lost
                return
        await _end(exchange, item, job, line.last)
    if scope.cancelled_caught:  # without its end the server cuts the connection: nothing else would be read either
        waiter.cancel()
        exchange.code = DeadlineExceeded.code


class _Line:
    """The two ways of a frame to its client: right from the reader of replies, and through a task that can wait."""

    __slots__ = ("_exchange", "_write", "last")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._write: Callable[[bytes], bool] | None = exchange.scope.get(CHUNKS)
        self.last = b""

    async def send(self, data: bytes) -> None:
        """Write once the client has room for it."""
        self.last = data
        await _send(self._exchange, data)

    def push(self, data: bytes) -> bool:
        """Write now, or return False."""
        if self._write is None or not self._write(data):
            return False
        self.last = data
        return True


async def _end(exchange: Exchange, answer: Answer, job: Job, before: bytes) -> None:
    """Write the last bytes of a stream, after `before`."""
    reply = answer.reply
    exchange.facts = _facts(reply.facts, job)
    last = answer.body
    if reply.error is not None and not before.endswith(DONE):
        exchange.code = reply.error.code
        last = (b"" if before.endswith(b"\n\n") else b"\n\n") + error_event(reply.error, exchange.id, job.operation)
    elif last and reply.frames == 0 and reply.content_type.encode() == JSON:
        # Pings promised events, and then the provider answered in one piece.
        last = b"".join(b"data: " + line + b"\n" for line in last.splitlines()) + b"\n"
    await _send(exchange, last, more=False)


async def _break_off(exchange: Exchange, job: Job, error: PipelineError) -> None:
    """End a stream that cannot go on: an error event, and never a `[DONE]`."""
    exchange.code = error.code
    event = error_event(error.fields("ingress"), exchange.id, job.operation)
    try:
        with anyio.move_on_after(STUCK):
            await _send(exchange, b"\n\n" + event, more=False)
    except OSError:
        pass  # the client is gone as well


def _facts(facts: Facts, job: Job) -> Facts:
    """Return the facts with the name the client used, where no stage came to know a better one."""
    return facts if facts.model else msgspec.structs.replace(facts, model=job.model)


async def _send(exchange: Exchange, data: bytes, *, more: bool = True) -> None:
    await exchange.send({"type": "http.response.body", "body": data, "more_body": more})
