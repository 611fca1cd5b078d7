"""The worker process's side of the transport: its writer, its upkeep, and the stage streams it reads."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from pipeline import logs
from pipeline.errors import ConfigurationError, TransportError
from pipeline.job import BATCH, LANES, Job
from pipeline.resting import Resting
from pipeline.settings import Settings
from pipeline.stage import StageSpec
from pipeline.transport import keyspace
from pipeline.transport.bodies import Bodies
from pipeline.transport.cancels import Cancels
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import Backoff, Link, describe
from pipeline.transport.delivery import End
from pipeline.transport.fitness import concerns, eviction
from pipeline.transport.overview import read_server
from pipeline.transport.registry import BEAT, Registry, consumer_name, this_process
from pipeline.transport.stage_stream import MOVE_MOST, StageLinks, StageStream
from pipeline.transport.writer import Writer

MOVE_EVERY: Final = 0.25
TURN_EVERY: Final = 0.05
"""Seconds between two turns of the event loop that are measured."""

RETIRE_EVERY: Final = 30.0
LEAVE_LIMIT: Final = 2.0

log = logs.logger("transport")


class WorkerTransport:
    """What the stages of one process share: one consumer name, one ordered writer, one view of the fleet."""

    def __init__(self, settings: Settings, url: str, stages: Sequence[str], lanes: tuple[str, ...] = LANES) -> None:
        self.consumer = consumer_name("-".join((*stages, *lanes) if lanes == (BATCH,) else stages))
        self._settings = settings
        self._lanes = lanes
        self._links = {name: Link(url, f"{self.consumer}-{name}") for name in ("write", "cancels", "bodies")}
        # Given up in time for leases to be renewed on the next connection.
        self._links["upkeep"] = Link(url, f"{self.consumer}-upkeep", settings.transport.lease / 3)
        self._url = url
        self._clock = ServerClock()
        self.writer = Writer(self._links["write"], self.consumer, self._clock)
        self.bodies = Bodies(self._links["bodies"])
        self._cancels = Cancels(self._links["cancels"], self._clock, settings.ingress.max_request_timeout)
        process = this_process(self.consumer, "worker", tuple(stages), settings.digest, lanes)
        self._registry = Registry(self._links["upkeep"], self._clock, process)
        self._streams: list[StageStream] = []
        self._reads: list[Link] = []

    @property
    def keep_dead_bodies(self) -> bool:
        """Whether dead letters keep their bodies."""
        return self._settings.transport.dead_letter_bodies

    @property
    def resting(self) -> Resting:
        """What the registration of this process says of providers at their limit."""
        return self._registry.resting

    def stage_stream(self, spec: StageSpec, slots: int) -> StageStream:
        """Return the stream of a stage, with a connection of its own for its blocking reads."""
        read = Link(self._url, f"{self.consumer}-read")
        links = StageLinks(read, self._links["upkeep"], self.consumer, self._settings.transport, self._lanes)
        stream = StageStream(spec.name, spec.max_deliveries, slots, writer=self.writer, clock=self._clock, links=links)
        self._streams.append(stream)
        self._reads.append(read)
        return stream

    def unwanted(self, job: Job) -> End | None:
        """Why nobody waits for the job, if nobody does."""
        if job.id in self._cancels:
            return End.CANCELLED
        asked = job.reply_to if job.lane != BATCH else ""
        return End.ORPHANED if asked and self._registry.gone(asked, job.admitted) else None

    async def has_streamed(self, job_id: str) -> bool:
        """Whether an earlier run of the job sent bytes to its client; asks until Redis answers."""
        return bool(await self.bodies.ask(("EXISTS", keyspace.streamed(job_id))))

    async def meet(self, stopped: anyio.Event) -> ConfigurationError | None:
        """Wait until Redis is there. Returns why it is not fit to hold jobs."""
        backoff = Backoff()
        while not stopped.is_set():
            try:
                server = await read_server(self._links["upkeep"], describe(self._url))
            except TransportError as error:
                log.warning("waiting for redis", error=str(error))
                await backoff.pause()
                continue
            for concern in concerns(server):
                log.warning("redis may lose jobs", concern=concern)
            return None if self._settings.transport.accept_eviction else eviction(server)
        return None

    async def start(self, support: TaskGroup, stopped: anyio.Event) -> None:
        """Start the upkeep in `support`, and return when Redis is there and old cancellations are known."""
        backoff = Backoff()
        while not stopped.is_set():
            try:
                await self._clock.refresh(self._links["upkeep"])
                await self._cancels.replay()
                await self._registry.beat()
                break
            except TransportError as error:
                log.warning("waiting for redis", error=str(error))
                await backoff.pause()
        for task in (self.writer.run, self._keep_leases, self._keep_moving, self._keep_house):
            support.start_soon(task)
        if len(self._lanes) > 1:
            support.start_soon(self._keep_room)
        support.start_soon(self._cancels.follow, self._cancel)

    def _cancel(self, job_id: str) -> None:
        for stream in self._streams:
            if stream.cancel(job_id):
                return

    async def _keep_leases(self) -> None:
        """Renew leases and the registration three times a lease; moves and releases share the connection, shortly."""
        backoff = Backoff()
        while True:
            try:
                for stream in self._streams:
                    await stream.renew()
                    stream.count_held()
                await self._clock.refresh(self._links["upkeep"])
                await self._registry.beat()
                self._drop_unwanted()
            except TransportError as error:
                log.warning("leases not renewed", error=str(error))
                await backoff.pause()
            else:
                backoff.reset()
                await anyio.sleep(min(BEAT, self._settings.transport.lease / 3))

    def _drop_unwanted(self) -> None:
        """End the work for ingress processes that are gone: nobody reads its frames, and its calls cost money."""
        for stream in self._streams:
            for delivery in stream.held:
                if end := self.unwanted(delivery.job):
                    delivery.stop(end)

    async def _keep_moving(self) -> None:
        """Move due jobs from the delayed sets to their streams."""
        backoff = Backoff()
        more = False
        while True:
            await anyio.sleep(0 if more else MOVE_EVERY)
            try:
                moved = [await self._links["upkeep"].call(*stream.move_due()) for stream in self._streams]
                more = any(count == MOVE_MOST for counts in moved for count in counts)
                backoff.reset()
            except TransportError:
                await backoff.pause()

    async def _keep_room(self) -> None:
        """Measure turns of the event loop, for both lanes share it, in CPU time: other processes do not count."""
        while True:
            await anyio.sleep(TURN_EVERY)
            began = time.thread_time()
            await anyio.lowlevel.checkpoint()
            seconds = time.thread_time() - began
            for stream in self._streams:
                stream.turned(seconds)

    async def _keep_house(self) -> None:
        """Forget old cancellations and remove consumers that are gone."""
        while True:
            await anyio.sleep(RETIRE_EVERY)
            self._cancels.purge()
            try:
                for stream in self._streams:
                    await stream.retire(self._registry.live)
            except TransportError:
                continue  # next time

    async def flush(self) -> None:
        """Write what is left."""
        self.writer.finish()
        await self.writer.finished.wait()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """On the way out, however that comes, take this process off the registry and its groups, and close."""
        try:
            yield
        finally:  # the upkeep is over: nothing registers this process again
            with anyio.move_on_after(LEAVE_LIMIT, shield=True):
                await self._leave()

    async def _leave(self) -> None:
        try:
            await self._registry.leave()
            for stream in self._streams:
                await stream.resign()
        except TransportError:
            log.info("left without a word; the registration expires by itself")
        for link in (*self._links.values(), *self._reads):
            await link.close()
