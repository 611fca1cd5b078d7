"""A whole pipeline in one process: a client, and workers with scripted stages, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fakes.waiting import wait_until

from pipeline.errors import InternalError
from pipeline.job import LANES, LIVE, Job, encode, new_id
from pipeline.runner import Stop, run_stages
from pipeline.settings import Settings, TransportSettings
from pipeline.stage import Delivery, Forward, Outcome, StageContext, StageSpec
from pipeline.transport import keyspace
from pipeline.transport.client import TransportClient, open_client
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import Link
from pipeline.transport.stage_stream import StageLinks, StageStream
from pipeline.transport.writer import Writer

Handler = Callable[[Delivery], Awaitable[Outcome]]


class ScriptedStage:
    """Satisfies `pipeline.stage.Stage` with a function; `seen` holds every delivery."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.seen: list[Delivery] = []

    async def handle(self, delivery: Delivery) -> Outcome:
        self.seen.append(delivery)
        return await self._handler(delivery)


async def forward(delivery: Delivery) -> Outcome:
    """Hand on, unchanged."""
    return Forward(delivery.job, delivery.body)


def spec(name: str, stage: ScriptedStage, *, slots: int = 16, max_deliveries: int = 3) -> StageSpec:
    """Return a stage definition around a scripted stage."""

    @asynccontextmanager
    async def opened(_: StageContext) -> AsyncIterator[ScriptedStage]:
        yield stage

    return StageSpec(
        name=name,
        max_deliveries=max_deliveries,
        slots=lambda _: slots,
        open=opened,
        poisoned=lambda job_id: InternalError(f"job {job_id} took its process down every time"),
    )


@asynccontextmanager
async def running_worker(
    url: str, settings: Settings, *specs: StageSpec, lanes: tuple[str, ...] = LANES
) -> AsyncIterator[Stop]:
    """Run stages until the block ends, then drain."""
    stop = Stop()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_stages, specs, settings, url, stop, None, lanes)
        try:
            yield stop
        finally:
            stop()


@asynccontextmanager
async def connected_client(url: str, settings: Settings) -> AsyncIterator[TransportClient]:
    """A client that has reached its server."""
    async with open_client(settings, url) as client:
        await wait_until(lambda: client.status().connected, timeout=10)
        yield client


def job_for(client: TransportClient, *, seconds: float = 30.0, **fields: Any) -> Job:
    """Return a job this client waits for."""
    fields.setdefault("stages_left", ("resolve", "dispatch"))
    now = client.now()
    return Job(
        id=fields.pop("id", None) or new_id(),
        operation="chat.completions",
        deadline=now + int(seconds * 1000),
        admitted=now,
        reply_to=fields.pop("reply_to", client.consumer),
        **fields,
    )


@asynccontextmanager
async def raw_link(url: str) -> AsyncIterator[Link]:
    """A connection to look at Redis, or to break something in it."""
    link = Link(url, "test-raw")
    try:
        yield link
    finally:
        await link.close()


class Rival:
    """Another consumer of a stage's lane, played by hand: what it fetches it neither renews nor settles."""

    def __init__(self, link: Link, stage: str, lane: str = LIVE, name: str = "rival") -> None:
        self.link = link
        self.stream = keyspace.jobs(stage, lane)
        self.name = name

    async def put(self, *fields: bytes | str | int) -> str:
        """Write an entry as nobody checked it."""
        return str((await self.link.run(("XADD", self.stream, "*", *fields))).decode())

    async def add(self, job: Job, body: bytes = b"{}") -> str:
        """Put a job on the stream."""
        return await self.put("h", encode(job), "s", len(body), "b", body)

    async def fetch(self, count: int = 1000) -> list[str]:
        """Read new entries and return their ids; also makes the group."""
        await self.link.call(("XGROUP", "CREATE", self.stream, keyspace.GROUP, "0", "MKSTREAM"))
        command = ("XREADGROUP", "GROUP", keyspace.GROUP, self.name, "COUNT", count, "STREAMS", self.stream, ">")
        reply = await self.link.run(command)
        return [entry.decode() for entry, _ in reply[0][1]] if reply else []

    async def age(self, *entries: str, idle: float = 60.0, number: int = 1) -> None:
        """Let the leases of `entries` have run out, after `number` deliveries; they become this consumer's."""
        command = ("XCLAIM", self.stream, keyspace.GROUP, self.name, 0, *entries)
        await self.link.run((*command, "IDLE", int(idle * 1000), "RETRYCOUNT", number, "JUSTID"))

    async def pending(self) -> dict[str, tuple[str, int]]:
        """Return owner and delivery count of every pending entry."""
        reply = await self.link.run(("XPENDING", self.stream, keyspace.GROUP, "-", "+", 10_000))
        return {entry.decode(): (owner.decode(), int(number)) for entry, owner, _, number in reply}


def quick(lease: float = 1.0, grace: float = 5.0, **fields: Any) -> TransportSettings:
    """Transport settings with short times."""
    return TransportSettings(lease=lease, grace=grace, **fields)


@asynccontextmanager
async def stage_stream(
    url: str, stage: str = "dispatch", *, slots: int = 16, max_deliveries: int = 3, lease: float = 1.0
) -> AsyncIterator[StageStream]:
    """A stage's stream without a runner; its writer writes nothing."""
    read, upkeep, write = Link(url, "test-read"), Link(url, "test-upkeep"), Link(url, "test-write")
    clock = ServerClock()
    await clock.refresh(upkeep)
    links = StageLinks(read, upkeep, "reader", quick(lease))
    stream = StageStream(stage, max_deliveries, slots, writer=Writer(write, "reader", clock), clock=clock, links=links)
    try:
        yield stream
    finally:
        for link in (read, upkeep, write):
            await link.close()
