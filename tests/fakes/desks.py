"""A feed process by hand, on a real server, with a scripted stage in place of workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import msgspec
from fakes.batches import CHAT
from fakes.pipelines import ScriptedStage, running_worker, spec
from fakes.servers import Server
from fakes.waiting import wait_until

from pipeline.catalog import Catalog
from pipeline.runner import Stop
from pipeline.settings import Settings
from pipeline.stage import Delivery, Done, Outcome
from pipeline.stores.batch_records import BatchOrder, BatchState
from pipeline.stores.batches import BatchStore
from pipeline.stores.files import FileStore, Wanted
from pipeline.stores.places import Places, open_places
from pipeline.transport.feeding import FeedTransport
from workers.batches.keeper import Keeper
from workers.batches.run import Desk


async def answer(delivery: Delivery) -> Outcome:
    """Answer as if both stages had done their work."""
    job = delivery.job
    facts = msgspec.structs.replace(job.facts, model=job.model, prompt="unchanged" if job.prompt else "")
    return Done(b'{"usage":{"input_tokens":1,"output_tokens":2}}', facts)


def make_desk(server: Server, settings: Settings, places: Places | None = None) -> Desk:
    """Return what a feed process works with; files are in the data directory unless there are other `places`."""
    places, transport = places or open_places(settings), FeedTransport(settings, server.url)
    return Desk(
        settings=settings,
        catalog=Catalog(settings),
        store=BatchStore(places.batches, transport.time),
        files=FileStore(places.files, settings.files, transport.time),
        transport=transport,
    )


def working(server: Server, settings: Settings, stage: ScriptedStage) -> AbstractAsyncContextManager[Stop]:
    """Run a worker whose stages are both scripted, by the same script."""
    return running_worker(server.url, settings, *(spec(name, stage, slots=64) for name in ("resolve", "dispatch")))


@asynccontextmanager
async def keeping(desk: Desk) -> AsyncIterator[None]:
    """Run a feed process' keeper."""
    async with desk.transport.running(), anyio.create_task_group() as tasks:
        tasks.start_soon(Keeper(desk).run)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()


async def create(desk: Desk, contents: bytes, owner: str = "") -> str:
    async with desk.files.receive(owner) as upload:
        await upload.write(contents)
        file = await upload.keep(Wanted("in.jsonl", "batch"))
    return (await desk.store.create(BatchOrder(owner, CHAT, file.file.id))).request.id


async def ended(desk: Desk, batch_id: str) -> BatchState:
    async def terminal() -> bool:
        return (await desk.store.get(batch_id, None)).record.terminal

    await wait_until(terminal, timeout=30)
    return await desk.store.get(batch_id, None)


async def written(desk: Desk, file_id: str | None) -> list[dict[str, object]]:
    assert file_id is not None
    async with desk.files.open(await desk.files.get(file_id, None)) as blob:
        return [msgspec.json.decode(text) for text in (await blob.read(0, blob.size)).splitlines()]
