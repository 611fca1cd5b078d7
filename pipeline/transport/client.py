"""The ingress's side of the transport: submit a job, wait for its answer, cancel it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio
import msgspec

from pipeline import logs
from pipeline.errors import NoWorker, TransportError, TransportFull, TransportUnavailable
from pipeline.job import LIVE, Job
from pipeline.settings import Settings
from pipeline.transport import keyspace
from pipeline.transport.admission import Admission
from pipeline.transport.bodies import Bodies
from pipeline.transport.cancels import cancellation
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import Link
from pipeline.transport.losses import Losses
from pipeline.transport.overview import Overview, look
from pipeline.transport.registry import BEAT, GONE_AFTER, Registry, consumer_name, read_metrics, this_process
from pipeline.transport.replies import Answer, Replies, Waiter
from pipeline.transport.unread import Unread

__all__ = ["Answer", "FleetStatus", "TransportClient", "Waiter", "open_client"]

STAGES: Final = ("resolve", "dispatch")
SWEEP: Final = 0.25
LOST_AFTER: Final = 10.0
"""Seconds a job that Redis lost may still be answered by a worker that already held it."""

PROBES: Final = 256

log = logs.logger("transport")


class FleetStatus(msgspec.Struct, frozen=True):
    """What this ingress process knows of the fleet; stages are keys, `backlog_bytes` are bytes of bodies."""

    connected: bool
    workers: dict[str, int]
    backlog: dict[str, int]
    backlog_bytes: dict[str, int]
    waiting: int


class TransportClient:
    """Submits jobs and waits for their replies; one per ingress process."""

    def __init__(self, settings: Settings, url: str) -> None:
        self.consumer = consumer_name("ingress")
        self._settings = settings
        self._links = {name: Link(url, f"{self.consumer}-{name}") for name in ("admit", "replies", "upkeep", "bodies")}
        self._clock = ServerClock()
        self._admission = Admission(self._links["admit"], self.consumer, STAGES, settings.ingress, self._lost)
        self._losses = Losses(self._links["upkeep"], STAGES)
        self._bodies = Bodies(self._links["bodies"])
        self._unread = Unread(settings.ingress.max_unread_bytes)
        self._replies = Replies(self._links["replies"], self.consumer, self._drop, self._unread)
        process = this_process(self.consumer, "ingress", (), settings.digest)
        self._registry = Registry(self._links["upkeep"], self._clock, process)
        self._cancelled: list[Waiter] = []
        self._cancelling = anyio.Event()
        self._connected = False
        self._met = anyio.Event()
        self._hurry = anyio.Event()

    def now(self) -> int:
        """Return the Redis server's time in ms."""
        return self._clock.now()

    def time(self) -> float:
        """Return it in seconds since 1970: batches and files have it, for clocks of machines that share them differ."""
        return self._clock.now() / 1000

    async def met(self) -> None:
        """Wait until Redis has been reached once: before that every request would be refused."""
        await self._met.wait()

    def status(self) -> FleetStatus:
        """Return what is known of the fleet, without asking."""
        loads = self._admission.loads
        return FleetStatus(
            connected=self._connected,
            workers={stage: self._registry.workers[stage] for stage in STAGES},
            backlog={stage: loads[stage, LIVE].backlog for stage in STAGES},
            backlog_bytes={stage: loads[stage, LIVE].held_bytes for stage in STAGES},
            waiting=len(self._replies.waiters),
        )

    async def overview(self) -> Overview:
        """Ask Redis for the state of the whole pipeline. Raises TransportUnavailable."""
        return await look(self._links["upkeep"], self._clock, STAGES, "")

    async def process_metrics(self) -> list[tuple[str, bytes]]:
        """Return the last metrics snapshot of every live process. Raises TransportUnavailable."""
        return await read_metrics(self._links["upkeep"])

    def check(self, stages: Sequence[str], lane: str, size: int, seconds: float | None = None) -> None:
        """
        Raise BacklogFull, NoWorker or TransportUnavailable for a job that would be refused.

        `seconds` is how long its client waits, by default as long as any may.
        """
        if not self._connected:
            raise unreachable()
        for stage in stages:
            if self._registry.without_worker(stage) > GONE_AFTER:
                raise no_worker(stage, self._registry.without_worker(stage))
        longest = self._settings.ingress.request_timeout
        self._admission.check(stages, lane, size, longest if seconds is None else seconds)

    async def submit(self, job: Job, body: bytes) -> Waiter:
        """
        Put a job on its way and return its waiter.

        Raises BacklogFull, NoWorker, TransportFull and TransportUnavailable; nothing ran then, or it is cancelled.
        """
        self.check(job.stages_left, job.lane, len(body), (job.deadline - self.now()) / 1000)
        waiter = Waiter(job, self._bodies, self._drop, self._unread)
        self._replies.waiters[job.id] = waiter
        try:
            waiter.entry, waiter.batch = await self._admission.add(job, body)
        except TransportFull:  # nothing ran
            self._replies.drop(waiter)
            raise
        except TransportUnavailable:  # its words are the operator's: where Redis is does not concern a client
            self._drop(waiter)
            raise unreachable("It may have run, and is cancelled; try again.") from None
        except BaseException:  # unknown, or the client left meanwhile: whatever got through is not wanted
            self._drop(waiter)
            raise
        return waiter

    def _drop(self, waiter: Waiter) -> None:
        if self._replies.drop(waiter):
            self._cancelled.append(waiter)
            self._cancelling.set()

    def _lost(self, last: int) -> None:
        log.warning("redis lost data", after_batch=last)
        self._losses.noticed()
        self._lose(waiter for waiter in self._replies.waiters.values() if waiter.batch > last)
        self._hurry.set()  # the reply stream may be lost too, and streamed answers end for want of who listens

    async def _look_for_losses(self) -> None:
        """A stream that was deleted alone goes unnoticed by the admission. Raises TransportUnavailable."""
        for stage in await self._losses.look():
            log.warning("redis lost a stream", stage=stage)
            self._lose(w for w in self._replies.waiters.values() if w.entry and stage in w.stages)

    def _lose(self, waiters: Iterable[Waiter]) -> None:
        """Redis lost the jobs of these waiters; what is in a worker's hands may still answer for a while."""
        for waiter in waiters:
            waiter.lost_at = waiter.lost_at or self.now() + int(LOST_AFTER * 1000)

    async def _publish_cancels(self) -> None:
        """Tell the workers of cancelled jobs, until told; in bursts."""
        while True:
            if not self._cancelled:
                self._cancelling = anyio.Event()
                await self._cancelling.wait()
            burst, self._cancelled = self._cancelled[:512], self._cancelled[512:]
            try:
                await self._publish(burst)
            except TransportError:
                self._cancelled += [w for w in burst if w.deadline > self.now()]
                await anyio.sleep(SWEEP)

    async def _publish(self, burst: Sequence[Waiter]) -> None:
        oldest = self.now() - int(self._settings.ingress.max_request_timeout * 1000)
        await self._links["upkeep"].run(cancellation(((w.id, w.deadline) for w in burst), oldest))

    async def _sweep(self) -> None:
        """Fail waiters past their deadline, and take note of how fast jobs are answered."""
        before = anyio.current_time()
        while True:
            await anyio.sleep(SWEEP)
            for waiter in self._replies.expire(self.now()):
                self._cancelled.append(waiter)
                self._cancelling.set()
            now = anyio.current_time()
            self._admission.pace.saw(self._replies.answered, self._replies.waited_ms / 1000, now - before)
            self._replies.answered, self._replies.waited_ms, before = 0, 0.0, now

    async def _beat(self) -> None:
        """Keep registration, reply stream, clock and the view of the fleet fresh."""
        failed = 0
        while True:
            self._hurry = anyio.Event()
            try:
                await self._clock.refresh(self._links["upkeep"])
                await self._replies.listen(self._links["upkeep"])
                await self._admission.refresh()
                await self._look_for_losses()
                await self._registry.beat()
                self._admission.processes = self._registry.ingresses
                await self._fail_unserved()
                self._connected = True
                failed = 0
                self._met.set()
            except TransportError as error:
                failed += 1
                if self._connected and failed == 1:
                    continue  # a connection that was reset is no outage: who opens the next one knows
                if self._connected:
                    log.warning("redis is away", error=str(error))
                self._connected = False
            with anyio.move_on_after(BEAT if self._connected else SWEEP):
                await self._hurry.wait()

    async def _fail_unserved(self) -> None:
        """Answer clients whose job still waits in a stage without workers. Raises TransportUnavailable."""
        for stage in STAGES:
            silent = self._registry.without_worker(stage)
            if silent <= GONE_AFTER:
                continue
            concerned = [w for w in self._replies.waiters.values() if stage in w.stages]
            # Who has the stage still before it cannot be served; of who only passes through, those that have not left.
            stuck = [w for w in concerned if w.stages[-1] == stage]
            stuck += await self._still_at(stage, [w for w in concerned if w.stages[-1] != stage and w.entry])
            for waiter in stuck:
                waiter.fail(no_worker(stage, silent))
                self._drop(waiter)

    async def _still_at(self, stage: str, waiters: list[Waiter]) -> list[Waiter]:
        still: list[Waiter] = []
        for at in range(0, len(waiters), PROBES):
            some = waiters[at : at + PROBES]
            stream = keyspace.jobs(stage, LIVE)
            replies = await self._links["upkeep"].call(*(("XRANGE", stream, w.entry, w.entry) for w in some))
            still += [waiter for waiter, found in zip(some, replies, strict=True) if isinstance(found, list) and found]
        return still

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the client's tasks; on the way out take this process off the registry."""
        try:
            async with anyio.create_task_group() as tasks:
                for task in (self._beat, self._replies.run, self._publish_cancels, self._sweep):
                    tasks.start_soon(task)
                tasks.start_soon(self._admission.run)
                tasks.start_soon(self._admission.watch)
                try:
                    yield
                finally:
                    tasks.cancel_scope.cancel()
        finally:  # the tasks are gone: none of them registers again, or makes the reply stream anew
            with anyio.move_on_after(2, shield=True):
                await self._leave()

    async def _leave(self) -> None:
        try:
            if unwanted := [*self._cancelled, *self._replies.waiters.values()]:
                await self._publish(unwanted)
            await self._registry.leave()
            await self._links["upkeep"].call(("UNLINK", keyspace.replies(self.consumer)))
        except TransportError:
            return  # both expire by themselves
        finally:
            for link in self._links.values():
                await link.close()


def unreachable(hint: str = "Nothing ran; try again.") -> TransportUnavailable:
    """Return the error for a request that cannot be taken while Redis is away."""
    return TransportUnavailable("Redis cannot be reached", hint=hint, retry_after=1.0)


def no_worker(stage: str, silent: float) -> NoWorker:
    """Return the error for a stage that nobody has served for `silent` seconds."""
    return NoWorker(
        f"no {stage} worker has been seen for {int(silent)} s",
        hint=f"Start one: promptmill worker {stage}",
        retry_after=5.0,
        stage=stage,
    )


@asynccontextmanager
async def open_client(settings: Settings, url: str) -> AsyncIterator[TransportClient]:
    """Open the ingress's side of the transport; it connects by itself, now and after every loss."""
    client = TransportClient(settings, url)
    async with client.running():
        yield client
