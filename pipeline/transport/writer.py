"""The one ordered writer of a worker process: frames and settlements go out in groups, in the order they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import anyio
from redis.exceptions import OutOfMemoryError

from pipeline import failpoints, logs, metrics
from pipeline.errors import TransportError
from pipeline.job import BATCH, Frame
from pipeline.stage import Done, Fail
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import STORE, WRITE, Backoff, Command, Link
from pipeline.transport.delivery import End, HeldDelivery
from pipeline.transport.writes import Dead, Effect, Group, bug

GROUP_WRITES: Final = 128
"""Most settlements in one script call: at 7 µs each they hold the server for less than a millisecond."""

GROUP_BYTES: Final = 256 * 1024
FRAME_PACE: Final = 0.01
"""Seconds between calls that carry nothing but frames; a first frame or a settlement waits for no timer."""

FRAME_BYTES: Final = 64 * 1024
CONGESTED_BYTES: Final = 8 * 2**20
REFUSALS: Final = 8
"""Times a whole group may be refused before it is given up, and its jobs are left to their leases: about 10 s."""

log = logs.logger("writer")


class Writer:
    """
    Takes outcomes and frames from any task at once and writes them from one.

    A group that a lost connection may have applied is sent again: settlements are fenced by their owner and the
    ingress drops frames it has seen, so nothing happens twice.
    """

    def __init__(self, link: Link, consumer: str, clock: ServerClock) -> None:
        self._link = link
        self._consumer = consumer
        self._clock = clock
        self._live: deque[tuple[HeldDelivery, Effect]] = deque()
        """Outcomes, in order: those of live jobs wait for none of a batch, of which there are thousands."""
        self._batch: deque[tuple[HeldDelivery, Effect]] = deque()
        self._firsts: dict[str, tuple[HeldDelivery, list[Frame]]] = {}
        """Per run that begins, its first frame and what came before that was sent: it is fenced as the first is."""
        self._frames: dict[str, list[tuple[HeldDelivery, Frame]]] = {}
        self._frame_bytes = 0
        # Cleared for each group: anyio's cannot be, and a new one costs 3 µs.
        self._wake, self._urgent, self._relief = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.written: dict[str, Callable[[HeldDelivery], None]] = {}
        """Per stage, what to call once a delivery's outcome is written, or never will be."""
        self._closing = False
        self.finished = anyio.Event()
        """Set once everything was written after `finish`."""

    def settle(self, delivery: HeldDelivery, effect: Effect) -> None:
        """Write the outcome of a delivery and acknowledge it, in one step, soon."""
        delivery.settled = True
        waiting = self._batch if delivery.source.lane == BATCH else self._live
        waiting.append((delivery, effect))
        self._wake_up(urgent=True)

    def frame(self, delivery: HeldDelivery, frame: Frame) -> None:
        """Write a frame after all earlier ones of its run."""
        self._frame_bytes += len(frame.data)
        if frame.seq == 0:
            self._firsts[frame.run] = (delivery, [frame])
        elif frame.run in self._firsts:
            self._firsts[frame.run][1].append(frame)
        else:
            self._frames.setdefault(delivery.job.reply_to, []).append((delivery, frame))
        self._wake_up(urgent=frame.seq == 0 or self._frame_bytes > FRAME_BYTES)

    @property
    def congested(self) -> bool:
        """Whether more bytes are unsent than a stage should add to."""
        return self._frame_bytes > CONGESTED_BYTES

    async def relieved(self) -> None:
        """Wait until there is room for frames again."""
        while self.congested:
            await self._relief.wait()

    def _wake_up(self, *, urgent: bool) -> None:
        self._wake.set()
        if urgent:
            self._urgent.set()

    def finish(self) -> None:
        """Let `run` end once everything is written."""
        self._closing = True
        self._wake_up(urgent=True)

    async def run(self) -> None:
        """Write until `finish` was called and nothing is left."""
        due = 0.0
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting():
                if self._closing:
                    self.finished.set()
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            if not self._urgent.is_set():
                timer = loop.call_at(due, self._urgent.set)  # not a scope with a deadline: that costs 17 µs more
                await self._urgent.wait()
                timer.cancel()
            self._urgent.clear()
            due = loop.time() + FRAME_PACE
            await self._write()

    def _waiting(self) -> bool:
        return bool(self._live or self._batch or self._firsts or self._frames)

    async def _write(self) -> None:
        firsts, self._firsts = self._firsts, {}
        frames, self._frames = self._frames, {}
        self._frame_bytes = 0
        self._relief.set()  # whoever waits goes on, although it is cleared at once
        self._relief.clear()
        now = self._clock.now()
        group = Group(self._consumer)
        for delivery, begun in firsts.values():
            group.first_frames(delivery, begun, delivery.job.deadline - now)
        entries = [entry for sent in frames.values() for entry in _entries(sent)]
        for sent in entries:
            group.frames(sent[0][0].job.reply_to, [frame for _, frame in sent])
        settled: list[tuple[HeldDelivery, Effect]] = []
        while (waiting := self._live or self._batch) and len(settled) < GROUP_WRITES and group.size < GROUP_BYTES:
            settled.append(_add_settlement(group, *waiting.popleft(), now))
        if self._live or self._batch:
            self._urgent.set()
        if failpoints.ARMED:
            await _reach("before_settle", settled)
        answers, resent = await self._send(group)
        if failpoints.ARMED:
            await _reach("after_settle_sent", settled)
        marks = iter(answers)
        for delivery, _ in firsts.values():
            _heard([delivery], next(marks))
        for sent in entries:
            _heard([delivery for delivery, _ in sent], next(marks))
        lost = [(d, e) for d, e in settled if _settled(d, e, next(marks), resent=resent) == -1]
        if lost:
            await self._reply_without_group(lost)
        for delivery, _ in settled:
            self.written[delivery.source.stage](delivery)

    async def _send(self, group: Group) -> tuple[list[int | bytes], bool]:
        """Send until it is applied; returns one answer per write, and whether an earlier try may have been applied."""
        backoff, resent, refused = Backoff(), False, 0
        command = WRITE(list(group.keys), group.consumer, *group.arguments)
        while True:
            try:
                if group.bodies:
                    await self._store(group.bodies)
                (answers,) = await self._link.call(command)
            except TransportError:
                resent = True
                await backoff.pause()
                continue
            if not isinstance(answers, Exception):
                return answers, resent
            refused += 1  # by an access rule, say: nothing of it ran
            log.error("write refused", error=str(answers), times=refused)
            if refused == REFUSALS:
                return [b"refused"] * group.count, True
            await backoff.pause()

    async def _store(self, bodies: list[tuple[str, bytes, int]]) -> None:
        """Store large bodies before what refers to them. Raises TransportUnavailable."""
        commands: list[Command] = [("SET", key, body, "PX", ttl) for key, body, ttl in bodies]
        replies = await self._link.call(*commands)
        for (key, body, ttl), reply in zip(bodies, replies, strict=True):
            if isinstance(reply, OutOfMemoryError):  # passing it on is what frees memory
                await self._link.run(STORE([key], body, ttl))

    async def _reply_without_group(self, lost: list[tuple[HeldDelivery, Effect]]) -> None:
        """The stream or its group is gone (a flush): still answer who waits. The fetch makes the group again."""
        again = Group(self._consumer)
        for delivery, effect in lost:
            if isinstance(effect, Done | Fail | Dead) and delivery.job.reply_to:
                again.unfenced_reply(delivery, effect, self._clock.now())
        if again.arguments:
            await self._send(again)


def _entries(sent: list[tuple[HeldDelivery, Frame]]) -> Iterator[list[tuple[HeldDelivery, Frame]]]:
    """Yield the frames for one ingress process in entries of about 64 KB: its reader takes hundreds of them at once."""
    # Of a run whose first was refused while these came, they would make its client see a gap, not the run that counts.
    sent = [(delivery, frame) for delivery, frame in sent if delivery.end is not End.LOST]
    size = begin = 0
    for end, (_, frame) in enumerate(sent, start=1):
        size += len(frame.data)
        if size >= FRAME_BYTES or end == len(sent):
            yield sent[begin:end]
            size, begin = 0, end


def _add_settlement(group: Group, delivery: HeldDelivery, effect: Effect, now: int) -> tuple[HeldDelivery, Effect]:
    """Add a settlement to the group; an outcome that cannot be written is a bug of its stage and ends one job."""
    try:
        if not delivery.fenced and isinstance(effect, Done | Fail | Dead) and delivery.job.reply_to:
            group.unfenced_reply(delivery, effect, now)
        else:
            group.settle(delivery, effect, now)
    except Exception as error:  # noqa: BLE001 - whatever a stage put into its outcome, the writer writes for all
        log.error("outcome cannot be written", job=delivery.job.id, error=type(error).__name__)
        effect = bug(error)
        group.settle(delivery, effect, now)
    return delivery, effect


async def _reach(point: str, settled: list[tuple[HeldDelivery, Effect]]) -> None:
    for stage in sorted({delivery.source.stage for delivery, _ in settled}):
        await failpoints.reach(f"{stage}.{point}")


def _heard(deliveries: list[HeldDelivery], answer: int | bytes) -> None:
    """End the runs whose frames went nowhere."""
    if answer != 1:
        for delivery in deliveries:
            delivery.stop(End.UNHEARD if answer == -2 else End.LOST)


def _settled(delivery: HeldDelivery, effect: Effect, answer: int | bytes, *, resent: bool) -> int | bytes:
    if isinstance(answer, bytes):
        log.error("write failed", job=delivery.job.id, error=answer.decode(errors="replace"))
    elif answer == 1:
        metrics.JOBS[delivery.source.stage, delivery.source.lane, type(effect).__name__.lower()].inc()
    elif answer == 0 and not resent:
        metrics.STALE_SETTLES[delivery.source.stage,].inc()
        log.warning("stale settle", job=delivery.job.id, stage=delivery.source.stage, number=delivery.number)
    return answer
