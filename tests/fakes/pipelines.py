"""A whole pipeline in one process: a client, and workers with scripted stages, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from pipeline.errors import InternalError
from pipeline.job import Job, new_id
from pipeline.runner import Stop, run_stages
from pipeline.settings import Settings
from pipeline.stage import Delivery, Forward, Outcome, StageContext, StageSpec
from pipeline.transport.client import TransportClient, open_client

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
async def running_worker(url: str, settings: Settings, *specs: StageSpec) -> AsyncIterator[Stop]:
    """Run stages until the block ends, then drain."""
    stop = Stop()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_stages, specs, settings, url, stop)
        try:
            yield stop
        finally:
            stop()


@asynccontextmanager
async def connected_client(url: str, settings: Settings) -> AsyncIterator[TransportClient]:
    """A client that has reached its server."""
    async with open_client(settings, url) as client:
        with anyio.fail_after(10):
            while not client.status().connected:
                await anyio.sleep(0.01)
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
        reply_to=client.consumer,
        **fields,
    )
