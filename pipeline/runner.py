"""Run stages in this process: slots, deadlines, leases, drain. Three nested lifetimes: support, fetching, handlers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import anyio
import msgspec

from pipeline import failpoints, logs, metrics
from pipeline.catalog import Catalog
from pipeline.errors import (
    DeadlineExceeded,
    MessageUnreadable,
    NoWorker,
    PipelineError,
    TransportError,
    TransportUnavailable,
    WorkerLost,
)
from pipeline.job import BATCH, LANES
from pipeline.rotation import Rotation
from pipeline.settings import Settings
from pipeline.stage import Fail, Stage, StageContext, StageSpec
from pipeline.transport.delivery import End, HeldDelivery
from pipeline.transport.stage_stream import UNREADABLE, StageStream
from pipeline.transport.worker import WorkerTransport
from pipeline.transport.writes import Dead, Drop, Effect, bug

FLUSH_LIMIT: Final = 10.0
"""Seconds a stopping process tries to write its last outcomes."""

HAND_BACK_LIMIT: Final = 2.0
WRITTEN: Final = 0.25
"""Seconds after which a full stage looks whether outcomes were written."""

log = logs.logger("runner")


class Slots:
    """How many more deliveries this stage may hold; the fetch takes them before it reads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self._change = anyio.Event()

    def take(self) -> None:
        """Take one; there must be a free one."""
        self.free -= 1

    def give(self) -> None:
        """Give one back."""
        self.free += 1
        self._change.set()

    def wake(self) -> None:
        """Make whoever waits look again."""
        self._change.set()

    async def wait(self) -> None:
        """Wait until something changed."""
        self._change = anyio.Event()
        await self._change.wait()


class Stop:
    """Asked to stop: once to drain, and then for good when the grace is over."""

    def __init__(self) -> None:
        self.event = anyio.Event()
        self._listeners: list[Callable[[], None]] = []

    def __call__(self) -> None:
        """Stop fetching and finish what is held."""
        self.event.set()
        for listener in self._listeners:
            listener()

    def also(self, listener: Callable[[], None]) -> None:
        """Call `listener` when asked to stop."""
        self._listeners.append(listener)

    def __bool__(self) -> bool:
        return self.event.is_set()


class StageRunner:
    """Delivers the jobs of one stage to it."""

    def __init__(
        self, spec: StageSpec, stage: Stage, stream: StageStream, transport: WorkerTransport, slots: int
    ) -> None:
        self._spec = spec
        self._stage = stage
        self._stream = stream
        self._transport = transport
        self._slots = Slots(slots)
        self._log = log.bind()  # said for every delivery, mostly in vain: a logger that is bound costs a tenth
        self._seconds = {lane: metrics.JOB_SECONDS[spec.name, lane] for lane in LANES}
        self._queued = {lane: metrics.QUEUE_SECONDS[spec.name, lane] for lane in LANES}

    async def run(self, stop: Stop, grace: float) -> None:
        """Fetch and handle until `stop`, then drain for up to `grace` seconds and hand back the rest."""
        stop.also(self._slots.wake)
        # asyncio's own group: a task of anyio's costs 20 µs more, and deliveries are cancelled by `stop`, not by scope.
        async with asyncio.TaskGroup() as handlers:
            await self._fetch(handlers, stop)
            handlers.create_task(self._drain(grace))
        await self._hand_back(self._stream.held)

    async def _fetch(self, handlers: asyncio.TaskGroup, stop: Stop) -> None:
        while not stop:
            # Outcomes that are not written yet take no slot, but not without end: writing may fail while reading works.
            room = min(self._slots.free, 2 * self._slots.count - self._stream.size)
            if room < 1:
                with anyio.move_on_after(WRITTEN):
                    await self._slots.wait()
                continue
            # A slot first, a job second: never hold what we cannot run. The read is never cancelled, only short.
            deliveries = await self._stream.fetch(room)
            if failpoints.ARMED and deliveries:
                await failpoints.reach(f"{self._spec.name}.after_read")
            if stop and deliveries:  # asked to stop while they came: others can have them at once
                await self._hand_back(deliveries)
                return
            for delivery in deliveries:
                self._slots.take()
                handlers.create_task(self._deliver(delivery))

    async def _drain(self, grace: float) -> None:
        limit = anyio.current_time() + grace
        while self._stream.held and anyio.current_time() < limit:
            with anyio.move_on_at(limit):
                await self._slots.wait()
        for delivery in self._stream.held:
            delivery.stop(End.STOPPED)

    async def _hand_back(self, deliveries: Sequence[HeldDelivery]) -> None:
        with anyio.move_on_after(HAND_BACK_LIMIT, shield=True):
            try:
                await self._stream.release(deliveries)
            except TransportError as error:
                log.warning("not handed back, their leases run out", count=len(deliveries), error=str(error))

    async def _deliver(self, delivery: HeldDelivery) -> None:
        try:
            effect = self._known_end(delivery)
            if effect is None:
                effect = await self._guard(delivery)
            outcome = type(effect).__name__ if effect is not None else delivery.end
            self._log.debug(
                "delivery", job=delivery.job.id, stage=self._spec.name, number=delivery.number, outcome=outcome
            )
            if effect is not None:
                self._transport.writer.settle(delivery, effect)
            elif delivery.end is End.LOST:
                self._stream.forget(delivery)
        finally:
            self._stream.finished(delivery)
            self._slots.give()

    def _known_end(self, delivery: HeldDelivery) -> Effect | None:
        """Return how a delivery ends that need not run."""
        job = delivery.job
        if job is UNREADABLE:
            error: PipelineError = MessageUnreadable("a stream entry does not decode; was it written by promptmill?")
            return self._dead(delivery, error, "unreadable")
        if delivery.number > self._spec.max_deliveries:
            return self._dead(delivery, self._spec.poisoned(job.id), "poison")
        if delivery.remaining <= 0:
            return self._too_late(delivery)
        if end := self._transport.unwanted(job):
            delivery.stop(end)
            return self._cut_short(delivery)
        return None

    def _too_late(self, delivery: HeldDelivery) -> Fail:
        """Drop work that nobody waits for any more, unrun."""
        metrics.DEADLINE_DROPS[self._spec.name,].inc()
        facts = delivery.job.facts
        facts = msgspec.structs.replace(facts, queue_ms=round(facts.queue_ms + delivery.queued_ms, 3))
        # A line of a batch waits for longer than one job of it may: that it never ran is not to its account.
        kind = NoWorker if delivery.job.lane == BATCH else DeadlineExceeded
        error = kind(f"the deadline passed while the job waited for the {self._spec.name} stage")
        return Fail(error, facts)

    def _dead(self, delivery: HeldDelivery, error: PipelineError, reason: str) -> Dead:
        log.error("dead letter", job=delivery.job.id, stage=self._spec.name, reason=reason, number=delivery.number)
        metrics.DEAD_LETTERS[self._spec.name, reason.partition(":")[0]].inc()
        return Dead(error, reason, self._transport.keep_dead_bodies)

    def _bug(self, delivery: HeldDelivery, error: BaseException) -> Dead:
        name = type(error).__name__
        log.error("stage failed", job=delivery.job.id, stage=self._spec.name, error=name, exc_info=error)
        dead = bug(error)
        return self._dead(delivery, dead.error, dead.reason)

    async def _guard(self, delivery: HeldDelivery) -> Effect | None:
        """Run the stage on a delivery; None when the delivery is not ours to settle any more."""
        if delivery.ended():  # before its work began
            return self._cut_short(delivery)
        effect: Effect | None = None
        started = time.monotonic()
        delivery.begin()
        try:
            effect = await self._handle(delivery)
        except PipelineError as error:
            effect = Fail(error)
        except asyncio.CancelledError as error:
            if not delivery.ended():  # not by `stop`: the process ends hard, or a library raised one of its own
                if _being_cancelled():
                    raise
                effect = self._bug(delivery, error)
        except Exception as error:  # noqa: BLE001 - what a stage raises is a bug: one job ends, not the process
            effect = self._bug(delivery, error)
        finally:
            delivery.finish()
        lane = delivery.source.lane
        self._seconds[lane].observe(time.monotonic() - started)
        self._queued[lane].observe(delivery.queued_ms / 1000)
        if delivery.number > 1:
            metrics.REDELIVERIES[self._spec.name,].inc()
        return self._cut_short(delivery) if effect is None else effect

    async def _handle(self, delivery: HeldDelivery) -> Effect:
        job = delivery.job
        if delivery.number > 1 and job.stream and await self._transport.has_streamed(job.id):
            # Its client has bytes of the run that died; calling the provider again could not continue them.
            return Fail(WorkerLost("a worker died while it streamed the answer", hint="Send the request again."))
        if not delivery.source.reference:
            return await self._stage.handle(delivery)
        async with self._transport.bodies.held(delivery.source.reference, delivery.source.size) as body:
            if body is None:
                return Fail(TransportUnavailable("Redis lost the request's body", hint="Send the request again."))
            delivery.body = body
            return await self._stage.handle(delivery)

    def _cut_short(self, delivery: HeldDelivery) -> Effect | None:
        match delivery.end:
            case End.CANCELLED:
                return Drop()
            case End.STOPPED if delivery.frames:  # nobody could go on with it, and handed back it would run again
                return Fail(WorkerLost("a worker stopped while it streamed the answer", hint="Send the request again."))
            case End.LOST | End.STOPPED:
                return None
            case End.ORPHANED:  # to an ingress that only stood still or was cut off, and is back for its answers
                cause = "the ingress was away for so long that its requests were given up"
                return Fail(TransportUnavailable(cause, hint="Send the request again."))
            case End.UNHEARD:  # if its ingress lives after all, because only the reply stream was lost, it hears of it
                return Fail(WorkerLost("a part of the streamed answer was lost", hint="Send the request again."))
            case End.EXPIRED | None:
                return Fail(DeadlineExceeded(f"the deadline passed in the {self._spec.name} stage"))


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def run_stages(
    specs: Sequence[StageSpec],
    settings: Settings,
    url: str,
    stop: Stop,
    rotation: Rotation | None = None,
    lanes: tuple[str, ...] = LANES,
) -> str:
    """
    Run `specs` for `lanes` in this process until `stop`; returns why it was asked to restart, empty when it was not.

    `rotation` tells the stages of new keys. Raises ConfigurationError when a stage cannot be built, or the
    server is not fit to hold jobs.
    """
    rotation = rotation or Rotation()
    reasons: list[str] = []

    def restart(reason: str) -> None:
        log.warning("restart asked for", reason=reason)
        reasons.append(reason)
        stop()

    transport = WorkerTransport(settings, url, tuple(spec.name for spec in specs), lanes)
    async with AsyncExitStack() as stack:
        stages = []
        for spec in specs:
            context = StageContext(
                settings, Catalog(settings), transport.consumer, restart, rotation, transport.resting
            )
            stages.append(await stack.enter_async_context(spec.open(context)))
        async with transport.connected():
            unfit = await transport.meet(stop.event)
            if unfit is None:
                await _work(list(zip(specs, stages, strict=True)), settings, transport, stop)
    if unfit is not None:  # only here: the task group of a stage would wrap it
        raise unfit
    return reasons[0] if reasons else ""


async def _work(
    stages: Sequence[tuple[StageSpec, Stage]], settings: Settings, transport: WorkerTransport, stop: Stop
) -> None:
    async with anyio.create_task_group() as support:  # outlives the handlers: leases hold
        await transport.start(support, stop.event)
        async with anyio.create_task_group() as running:
            for spec, stage in stages:
                slots = spec.slots(settings)
                stream = transport.stage_stream(spec, slots)
                runner = StageRunner(spec, stage, stream, transport, slots)
                running.start_soon(runner.run, stop, settings.transport.grace)
            log.info("ready", consumer=transport.consumer, stages=[spec.name for spec, _ in stages])
        with anyio.move_on_after(FLUSH_LIMIT, shield=True):
            await transport.flush()
        support.cancel_scope.cancel()
