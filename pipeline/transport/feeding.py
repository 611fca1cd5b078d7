"""The feed's side of the transport: lines go out on the batch lane, answers come from the batch's own stream."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import anyio
from redis.exceptions import ResponseError

from pipeline import logs
from pipeline.errors import TransportError
from pipeline.job import BATCH, PARTITION, Job, Reply, decode_reply
from pipeline.settings import Settings
from pipeline.transport import keyspace
from pipeline.transport.admission import Admission
from pipeline.transport.bodies import Bodies
from pipeline.transport.cancels import cancellation
from pipeline.transport.client import STAGES
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import FIND, LEASE, LISTEN, Backoff, Command, Link
from pipeline.transport.registry import BEAT, Registry, consumer_name, this_process

BLOCK: Final = 0.5
READ_COUNT: Final = 256
FIND_COUNT: Final = 64
"""Jobs looked at in one piece: they are copied, with what bodies are in their entries, while all others wait."""

ROLLOUT: Final = 600.0
"""Seconds until processes that were replaced one after another should all have the same configuration."""

log = logs.logger("feed")


class Arrived(NamedTuple):
    """The answer to a line."""

    reply: Reply
    body: bytes
    reference: str
    """Key of a body that did not fit into the entry, else empty."""


class UnderWay(NamedTuple):
    """What Redis holds of a batch: its jobs' ids and the last answer's. Jobs answered after it are among these."""

    jobs: set[str]
    last_answer: str


class LineStream:
    """The answers to one batch's lines, in order, read by its owner alone."""

    def __init__(self, link: Link, bodies: Bodies, batch: str) -> None:
        self._link = link
        self._bodies = bodies
        self._key = keyspace.lines(batch)
        self._last = "0-0"
        self._concluded = "0-0"
        self._references: list[str] = []
        self._settled: tuple[Command, ...] = ()
        self._count = READ_COUNT

    async def listen(self) -> bool:
        """See that the stream lives on; return whether it had to be made. Raises TransportUnavailable."""
        made = bool(await self._link.run(LISTEN([self._key], keyspace.LINES_TTL_MS)))
        if made:
            self._last = self._concluded = "0-0"  # its ids may be lower than those of the one that was lost
        return made

    def has_concluded(self, answer: str) -> bool:
        """Whether all answers up to this one were read, and what they say was written down."""
        return _place(self._concluded) >= _place(answer)

    async def read(self) -> list[Arrived]:
        """Return what came since the last time, within about half a second. Raises TransportError."""
        # Whoever asks for more has written down what came before.
        self._concluded = self._last
        count, self._count = self._count, max(1, self._count // 2)  # less, if so much does not arrive in time
        read: Command = ("XREAD", "COUNT", count, "BLOCK", int(BLOCK * 1000), "STREAMS", self._key, self._last)
        *_, reply = await self._link.call(*self._settled, read, wait=BLOCK)
        self._settled, self._count = (), min(READ_COUNT, 2 * count)
        if isinstance(reply, ResponseError):
            raise TransportError(f"the answers of a batch cannot be read: {reply}")
        arrived = []
        for entry, fields in reply[0][1] if reply else ():
            self._last = entry.decode()
            values = dict(zip(fields[::2], fields[1::2], strict=False))
            if b"t" in values:
                try:
                    arrived.append(_arrived(values))
                except (ValueError, RecursionError) as error:
                    log.error("unreadable reply", error=type(error).__name__)
        return arrived

    async def body(self, arrived: Arrived) -> bytes | None:
        """Return the body of an answer, fetched if it is large; None: it is lost, and the line is to be fed again."""
        if not arrived.reference:
            return arrived.body
        self._references.append(arrived.reference)
        return await self._bodies.fetch(arrived.reference)

    def settle(self) -> None:
        """Let go of what was read: it is kept elsewhere. Goes along with the next read."""
        self._settled = (("XTRIM", self._key, "MINID", self._last),)
        if self._references:
            self._settled += (("UNLINK", *self._references),)
            self._references = []

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()


def _place(entry: str) -> tuple[int, ...]:
    """Return an id as what ids are ordered by."""
    return tuple(int(part) for part in entry.split("-"))


def _arrived(values: dict[bytes, bytes]) -> Arrived:
    return Arrived(decode_reply(values[b"t"]), values.get(b"b", b""), values.get(b"r", b"").decode())


class FeedTransport:
    """What the batches of one process share: the admission, the leases, the registration."""

    def __init__(self, settings: Settings, url: str) -> None:
        self.consumer = consumer_name("feed")
        self._url = url
        self._settings = settings
        self._links = {name: Link(url, f"{self.consumer}-{name}") for name in ("admit", "bodies")}
        self._links["upkeep"] = Link(url, f"{self.consumer}-upkeep", settings.transport.lease / 3)
        self._clock = ServerClock()
        self._admission = Admission(self._links["admit"], self.consumer, STAGES, settings.ingress, self._lost)
        self._bodies = Bodies(self._links["bodies"])
        self._registry = Registry(
            self._links["upkeep"], self._clock, this_process(self.consumer, "feed", (), settings.digest)
        )
        self._lease_ms = int(settings.transport.lease * 1000)
        self._leased: dict[str, float] = {}
        """Batches in our hands, and when the lease of each was renewed last."""
        self.on_lost: dict[str, Callable[[int], None]] = {}
        """Per batch, what to call with the last admission that is still there when Redis lost later ones."""
        self.connected = False
        self._began = anyio.current_time()
        self._met = anyio.Event()

    def now(self) -> int:
        """Return the Redis server's time in ms."""
        return self._clock.now()

    def time(self) -> float:
        """Return it in seconds since 1970: batches and files have it, for clocks of machines that share them differ."""
        return self._clock.now() / 1000

    async def met(self) -> None:
        """Wait until Redis has been reached once."""
        await self._met.wait()

    def line_stream(self, batch: str) -> LineStream:
        """Return a batch's answers, with a connection of its own for blocking reads."""
        return LineStream(Link(self._url, f"{self.consumer}-lines"), self._bodies, batch)

    async def drop_answers(self, batch: str) -> None:
        """Drop the answers of a batch that is over; what jobs that were fed twice still bring goes with their time."""
        stream, lifetime = keyspace.lines(batch), int(self._settings.batches.batch_line_timeout * 1000)
        try:
            await self._links["upkeep"].call(("XTRIM", stream, "MAXLEN", 0), ("PEXPIRE", stream, lifetime))
        except TransportError:
            return  # they expire by themselves

    async def add(self, jobs: Sequence[tuple[Job, bytes]]) -> list[int]:
        """Put lines on their way; see `Admission.add_all`."""
        return await self._admission.add_all(jobs)

    async def cancel(self, jobs: Iterable[str]) -> None:
        """Tell the workers that nobody waits for these jobs any more. Raises TransportUnavailable."""
        oldest = self.now() - int(self._settings.ingress.max_request_timeout * 1000)
        until = self.now() + int(self._settings.batches.batch_line_timeout * 1000)
        await self._links["upkeep"].run(cancellation(((job, until) for job in jobs), oldest))

    @property
    def backing_off(self) -> dict[str, float]:
        """Models whose provider is at its limit, and the seconds for which they rest."""
        return self._registry.backing_off

    def may_lag(self, config: str, made: float) -> bool:
        """
        Whether others, as far as is known, have the configuration that something was `made` under, and we have not.

        That is a rollout, and so it ends: `ROLLOUT` after that moment, in seconds since 1970, or after our start.
        """
        if config == self._settings.digest or min(self.time() - made, anyio.current_time() - self._began) > ROLLOUT:
            return False
        return config in self._registry.configs or not self.connected

    @property
    def waiting(self) -> dict[str, int]:
        """Lines of all batches that wait for a worker, by stage: as of the last admission, a second ago at most."""
        return {stage: self._admission.loads[stage, BATCH].backlog for stage in STAGES}

    async def under_way(self, batch: str) -> UnderWay:
        """Return what Redis holds of a batch. Raises TransportUnavailable."""
        found: list[bytes] = []
        last = b""
        for stage in STAGES:  # in the order in which jobs pass them: one that moves on is seen in the next, or answered
            keys = [keyspace.lines(batch), keyspace.jobs(stage, BATCH), keyspace.delayed(stage, BATCH)]
            at = b"-"
            while at:
                find = FIND(keys, f"{PARTITION}-{batch}-", at, FIND_COUNT)
                at, last, *jobs = await self._links["upkeep"].run(find)
                found += jobs
        return UnderWay({job.decode() for job in found}, last.decode())

    async def lease(self, batch: str) -> bool:
        """Take the lease of a batch, if nobody has it. Raises TransportUnavailable."""
        now = anyio.current_time()
        free = await self._links["upkeep"].run(self._take(batch))
        if free is not None:
            self._leased[batch] = now
        return free is not None

    def has_lease(self, batch: str) -> bool:
        """Whether our lease of a batch cannot have run out: who stood still for long may be succeeded."""
        return anyio.current_time() < self._leased.get(batch, -math.inf) + self._lease_ms / 1000

    async def release(self, batch: str) -> None:
        """Give up a lease, so that somebody else need not wait for its end."""
        self._leased.pop(batch, None)
        try:
            if await self._links["upkeep"].run(("GET", keyspace.lease(batch))) == self.consumer.encode():
                await self._links["upkeep"].run(("UNLINK", keyspace.lease(batch)))
        except TransportError:
            return  # it runs out

    def _take(self, batch: str) -> Command:
        return LEASE([keyspace.lease(batch)], self.consumer, self._lease_ms)

    async def _renew(self) -> None:
        """Renew the leases. Who lost one finds it out from the batch's files. Raises TransportUnavailable."""
        batches, now = list(self._leased), anyio.current_time()
        if not batches:
            return
        holders = await self._links["upkeep"].call(*(("GET", keyspace.lease(batch)) for batch in batches))
        renewed = await self._links["upkeep"].call(
            *(
                ("PEXPIRE", keyspace.lease(batch), self._lease_ms)
                if holder == self.consumer.encode()
                else self._take(batch)
                for batch, holder in zip(batches, holders, strict=True)
            )
        )
        self._leased |= {
            batch: now for batch, ours in zip(batches, renewed, strict=True) if ours and batch in self._leased
        }

    def _lost(self, last: int) -> None:
        log.warning("redis lost data", after_batch=last)
        for listener in self.on_lost.values():
            listener(last)

    async def _beat(self) -> None:
        """Keep clock, leases and registration fresh, and look for losses."""
        backoff, pause = Backoff(), min(BEAT / 2, self._settings.transport.lease / 3)
        while True:
            try:
                await self._clock.refresh(self._links["upkeep"])
                await self._admission.refresh()
                await self._renew()
                await self._registry.beat()
            except TransportError as error:
                if self.connected:
                    log.warning("redis is away", error=str(error))
                self.connected = False
                await backoff.pause()
            else:
                self.connected = True
                self._met.set()
                backoff.reset()
                await anyio.sleep(pause)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the upkeep; on the way out take this process off the registry."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._beat)
                tasks.start_soon(self._admission.run)
                try:
                    yield
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(2, shield=True):
                await self._leave()

    async def _leave(self) -> None:
        try:
            await self._registry.leave()
        except TransportError:
            log.info("left without a word; the registration expires by itself")
        for link in self._links.values():
            await link.close()
