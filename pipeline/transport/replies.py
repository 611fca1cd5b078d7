"""The reply stream of an ingress process: one reader, and a waiter per job that never makes it wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel
import msgspec
from redis.exceptions import ResponseError

from pipeline import logs, metrics
from pipeline.errors import (
    Cancelled,
    DeadlineExceeded,
    PipelineError,
    TransportError,
    TransportUnavailable,
    WorkerLost,
)
from pipeline.job import Frame, Job, Reply, decode_frames, decode_reply
from pipeline.transport import keyspace
from pipeline.transport.connection import LISTEN, Backoff, Command, Link

if TYPE_CHECKING:
    from pipeline.transport.bodies import Bodies
    from pipeline.transport.unread import Unread

BLOCK: Final = 0.5
READ_COUNT: Final = 256
YIELD_EVERY: Final = 256
YIELD_BYTES: Final = 64 * 1024
"""Bytes handed out at a time: a client that reads as they come must get its turn before it seems slow."""

WAITER_BYTES: Final = 2**20
"""Unread bytes of one client with which a further frame cancels its job: it reads more slowly than it asked."""

BODY_WAIT: Final = 15.0
"""Seconds an answer's large body is asked for while Redis is away, or this process holds as much as it may."""

Push = Callable[[bytes], bool]
"""Takes a frame's bytes at once, without a task's wake, or returns False and does nothing."""

log = logs.logger("replies")


class Answer(msgspec.Struct, frozen=True):
    """The last word on a job: its reply and, unless it was an error or streamed, the body."""

    reply: Reply
    body: bytes


class Waiter:
    """One client's end of a job: frames in order, then the answer."""

    __slots__ = (
        "_arrived",
        "_bodies",
        "_cancel",
        "_error",
        "_items",
        "_next",
        "_push",
        "_run",
        "_total",
        "batch",
        "cut",
        "deadline",
        "entry",
        "failed",
        "id",
        "lost_at",
        "stages",
        "unread",
    )

    def __init__(self, job: Job, bodies: Bodies, cancel: Callable[[Waiter], None], total: Unread) -> None:
        self.id = job.id
        self.deadline = job.deadline
        self.stages = job.stages_left
        self.entry = ""
        """Id of the entry on its first stage's stream."""
        self.batch = 0
        """Number of the admission batch it went in."""
        self.lost_at = 0
        """When to give up, in ms, because Redis has lost the job; 0: it has not."""
        self.failed = False
        self.unread = 0
        """Bytes that are here and that the client has not taken."""
        self.cut: Callable[[], None] | None = None
        """Ends the client's connection, where there is one that can be ended from here."""
        self._total = total
        self._bodies = bodies
        self._cancel = cancel
        self._items: deque[Frame | tuple[Reply, bytes, str]] = deque()
        self._arrived: asyncio.Event | None = None
        self._push: Push | None = None
        """Set only while `next` waits and nothing lies before it: what is pushed then overtakes nothing."""
        self._error: PipelineError | None = None
        self._run = ""
        self._next = 0

    async def next(self, push: Push | None = None) -> Frame | Answer:
        """
        Return the next frame, or the answer, after which there is nothing. What `push` takes meanwhile is done with.

        Raises WorkerLost (a gap, or another run's answer after bytes went out), DeadlineExceeded, NoWorker,
        Cancelled (after `cancel`) and TransportUnavailable (Redis lost the job, or a large body was not fetched).
        """
        while not self._items:
            if self._error is not None:
                raise self._error
            arrived = self._arrived = asyncio.Event()  # one a frame, and anyio's costs 2 µs more
            self._push = push
            try:
                await arrived.wait()
            finally:
                self._push = None
        item = self._items[0]
        if isinstance(item, Frame):
            self._let_go(len(item.data))
            self._items.popleft()
            return item
        reply, body, reference = item
        answer = Answer(reply, await self._take(reference) if reference else body)
        self._items.popleft()  # only now: whoever pings its client meanwhile cancels this wait, and asks again
        return answer

    async def _take(self, reference: str) -> bytes:
        with anyio.move_on_after(BODY_WAIT):
            async with self._total.turn:
                await self._total.room()
                body = await self._bodies.take(reference)
                if body is not None:
                    self._hold(len(body))
                    return body
        raise TransportUnavailable("the answer could not be read from Redis", hint="Send the request again.")

    def _hold(self, size: int) -> None:
        self.unread += size
        self._total.add(size)

    def _let_go(self, size: int) -> None:
        self.unread -= size
        self._total.remove(size)

    def close(self) -> None:
        """The response is over, whatever became of it: what was not taken never will be."""
        self._items.clear()
        self._let_go(self.unread)

    def cancel(self) -> None:
        """The client left: tell the workers, unless the answer is already here. Does not wait."""
        self._cancel(self)

    def fail(self, error: PipelineError) -> None:
        """End the wait with an error, after what has arrived."""
        self.failed = True
        if self._error is None:
            self._error = error
        self._wake()

    def take_frame(self, frame: Frame) -> None:
        """Accept a frame of the run this waiter follows; fails it after a gap, and when its client is too slow."""
        if not self._run:
            self._run = frame.run
        if frame.run != self._run or frame.seq < self._next:
            return  # another run of the same job, or a repeat after a lost connection
        if frame.seq > self._next:
            self.fail(WorkerLost("a part of the streamed answer was lost", hint="Send the request again."))
            return
        self._next += 1
        if self._push is not None and self._push(frame.data):
            return
        if self.unread > WAITER_BYTES:  # by what was there before: one event may be larger than that
            self.too_slow("behind")
            return
        self._hold(len(frame.data))
        self._put(frame)

    def too_slow(self, cause: str) -> None:
        """Fail because the client does not read what comes."""
        metrics.SLOW_CLIENTS[cause,].inc()
        log.warning("client reads too slowly", job=self.id, cause=cause)
        self.fail(Cancelled("the client reads too slowly", hint="Read the stream as it comes."))

    def take_reply(self, reply: Reply, body: bytes, reference: str) -> None:
        """Accept the terminal; after bytes of one run, only that run's complete one counts as an answer."""
        if reply.error is None and (reply.frames != self._next or (self._run and reply.run != self._run)):
            self.fail(WorkerLost("a worker died while it streamed the answer", hint="Send the request again."))
        else:
            self._put((reply, body, reference))

    def _put(self, item: Frame | tuple[Reply, bytes, str]) -> None:
        self._items.append(item)
        self._wake()

    def _wake(self) -> None:
        self._push = None
        if self._arrived is not None:
            self._arrived.set()


class Replies:
    """Reads the reply stream and hands everything to its waiter."""

    def __init__(self, link: Link, consumer: str, cancel: Callable[[Waiter], None], total: Unread) -> None:
        self._link = link
        self._total = total
        self._key = keyspace.replies(consumer)
        self._cancel = cancel
        self._last = "0-0"
        self._untrimmed = 0
        self._quiet = False
        """Whether the last read found nothing: who has the time trims what was read, for answers are not to stay."""
        self._frames = self._bytes = 0
        self.waiters: dict[str, Waiter] = {}
        self.answered = 0
        self.waited_ms = 0.0
        """Jobs answered since somebody looked last, and the longest any of them had waited for its stages."""

    async def listen(self, link: Link) -> None:
        """See that the stream exists and lives on. Raises TransportUnavailable."""
        made = await link.run(LISTEN([self._key], keyspace.REPLIES_TTL_MS))
        if made:
            self._last = "0-0"  # a new stream; its ids may be lower than those of the one that was lost

    async def run(self) -> None:
        """Read for ever."""
        backoff = Backoff()
        while True:
            try:
                await self._read()
                backoff.reset()
            except TransportError as error:
                log.warning("replies cannot be read", error=str(error))
                await backoff.pause()
                await self._listen_again(backoff)

    async def _listen_again(self, backoff: Backoff) -> None:
        """First thing after a reconnect: workers write frames only to a stream that is there."""
        while True:
            try:
                await self.listen(self._link)
            except TransportError:
                await backoff.pause()
            else:
                return

    async def _read(self) -> None:
        trim: tuple[Command, ...] = ()
        if self._untrimmed >= (1 if self._quiet else READ_COUNT):
            milliseconds, _, number = self._last.partition("-")
            trim = (("XTRIM", self._key, "MINID", f"{milliseconds}-{int(number) + 1}"),)
        read: Command = ("XREAD", "COUNT", READ_COUNT, "BLOCK", int(BLOCK * 1000), "STREAMS", self._key, self._last)
        *_, reply = await self._link.call(*trim, read, wait=BLOCK)
        if isinstance(reply, ResponseError):
            raise TransportError(f"the reply stream cannot be read: {reply}")
        if trim:
            self._untrimmed = 0
        self._quiet = not reply
        for entry, fields in reply[0][1] if reply else ():
            self._last = entry.decode()
            self._untrimmed += 1
            await self._deliver(fields)

    async def _deliver(self, fields: list[Any]) -> None:
        values = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            if b"t" in values:
                reply = decode_reply(values[b"t"])
                self._settle(reply, values.get(b"b", b""), values.get(b"r", b"").decode())
            elif b"f" in values:
                for frame in decode_frames(values[b"f"]):
                    self._hand_out(frame)
                    if self._frames >= YIELD_EVERY or self._bytes >= YIELD_BYTES:
                        self._frames = self._bytes = 0
                        await anyio.lowlevel.checkpoint()
        except (ValueError, RecursionError) as error:
            log.error("unreadable reply", error=type(error).__name__)

    def _hand_out(self, frame: Frame) -> None:
        waiter = self.waiters.get(frame.id)
        if waiter is not None:
            waiter.take_frame(frame)
            if waiter.failed:
                self._cancel(waiter)
            if self._total.full:
                self._cut_slowest()
        self._frames += 1
        self._bytes += len(frame.data)

    def _cut_slowest(self) -> None:
        """Give up the stream whose client has left most unread, at once: there is no room for what it might take."""
        slowest = max(self.waiters.values(), key=lambda waiter: waiter.unread, default=None)
        if slowest is not None and slowest.unread:
            slowest.too_slow("full")
            slowest.close()
            if slowest.cut is not None:
                slowest.cut()
            self._cancel(slowest)

    def _settle(self, reply: Reply, body: bytes, reference: str) -> None:
        waiter = self.waiters.pop(reply.id, None)
        self.answered += 1
        self.waited_ms = max(self.waited_ms, reply.facts.queue_ms)
        if waiter is not None:
            waiter.take_reply(reply, body, reference)

    def expire(self, now: int) -> list[Waiter]:
        """Fail the waiters that no reply will come for. Returns them."""
        late = [w for w in self.waiters.values() if w.deadline + 1000 < now or 0 < w.lost_at < now]
        for waiter in late:
            del self.waiters[waiter.id]
            waiter.fail(
                TransportUnavailable("Redis lost the request", hint="Send it again.", retry_after=1.0)
                if waiter.lost_at
                else DeadlineExceeded("no answer came before the deadline", hint="Raise `timeout`, or add workers.")
            )
        return late

    def drop(self, waiter: Waiter) -> bool:
        """Stop waiting for a job; whether somebody still did."""
        if self.waiters.pop(waiter.id, None) is None:
            return False
        waiter.fail(Cancelled("the client left"))
        return True
