"""A feed of an old configuration, and a batch of a model that only the new one has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from fakes.batches import CHAT, lines
from fakes.configs import deployment
from fakes.desks import answer, create, ended, keeping, make_desk, working, written
from fakes.pipelines import ScriptedStage
from fakes.servers import Server
from fakes.waiting import wait_until

from pipeline.settings import FileSettings, Settings
from pipeline.stores.batch_records import BatchOrder, BatchState, Record
from pipeline.transport import feeding
from workers.batches import keeper
from workers.batches.run import Desk

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
def newer(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, digest="new", deployments=(*settings.deployments, deployment("new-model")))


@asynccontextmanager
async def rolling_out(server: Server, newer: Settings) -> AsyncIterator[None]:
    """Run a worker of the new configuration, and another process that all who come later find registered."""
    transport = make_desk(server, newer).transport
    async with working(server, newer, ScriptedStage(answer)), transport.running():
        await wait_until(lambda: transport.connected)
        yield


async def new_batch(desk: Desk) -> BatchState:
    """Return a batch that nobody works at yet, made by an ingress of the new configuration."""
    state = await desk.store.get(await create(desk, lines(3, model="new-model")), None)
    await desk.store.put_away(state)
    return await desk.store.create(BatchOrder("", CHAT, state.request.input_file_id, config="new"))


async def test_a_batch_is_not_failed_by_who_lags_behind(server: Server, settings: Settings, newer: Settings) -> None:
    old, new = make_desk(server, settings), make_desk(server, newer)
    state = await new_batch(new)
    async with rolling_out(server, newer), keeping(old):

        async def old_had_it() -> bool:
            return (await new.store.get(state.request.id, None)).claims == 1

        await wait_until(old_had_it)
        async with keeping(new):
            record = (await ended(new, state.request.id)).record
    assert (record.status, record.completed, record.owner) == ("completed", 3, 2)


async def test_no_line_is_failed_by_who_lags_behind(server: Server, settings: Settings, newer: Settings) -> None:
    old, new = make_desk(server, settings), make_desk(server, newer)
    state = await new_batch(new)
    owner = await new.store.claim(state)
    await new.store.save(state.request.id, Record(owner=owner, status="in_progress", total=3))

    async def put_off() -> bool:
        causes = (await new.store.get(state.request.id, None)).record.progress.causes
        return causes == {"config_mismatch": 3}

    async with rolling_out(server, newer):
        async with keeping(old):
            await wait_until(put_off)
        async with keeping(new):
            record = (await ended(new, state.request.id)).record
    assert (record.status, record.completed, record.failed) == ("completed", 3, 0)


async def test_what_no_live_process_knows_is_wrong(server: Server, settings: Settings, newer: Settings) -> None:
    old = make_desk(server, settings)
    async with keeping(old):
        await wait_until(lambda: old.transport.connected)
        state = await new_batch(make_desk(server, newer))
        record = (await ended(old, state.request.id)).record
    assert (record.status, record.errors[0].code) == ("failed", "model_not_found")


async def test_a_rollout_that_does_not_end_keeps_no_batch_waiting(
    server: Server, settings: Settings, newer: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "ROLLOUT", 1.0)
    monkeypatch.setattr(keeper, "REST", 0.1)
    old = make_desk(server, settings)
    state = await new_batch(make_desk(server, newer))
    async with rolling_out(server, newer), keeping(old):
        state = await ended(old, state.request.id)
    assert (state.record.status, state.record.errors[0].code) == ("failed", "model_not_found")
    assert state.claims > 1, "it did not rest first"


@pytest.mark.parametrize("fed", [0, 3])
async def test_lines_are_as_long_as_they_might_be_when_they_were_validated(
    server: Server, settings: Settings, fed: int
) -> None:
    desk = make_desk(server, settings)
    file_id = (await desk.store.get(await create(desk, lines(4)), None)).request.input_file_id
    short = make_desk(server, msgspec.structs.replace(settings, files=FileSettings(min_free_bytes=0, max_line_bytes=9)))
    running = await desk.store.create(BatchOrder("", CHAT, file_id))
    over = await desk.store.create(BatchOrder("", CHAT, file_id), window=0)
    for state in (running, over):
        record = Record(owner=await desk.store.claim(state), status="in_progress", total=4, fed=fed)
        await desk.store.save(state.request.id, record)
    async with working(server, settings, ScriptedStage(answer)), keeping(short):
        assert (await ended(short, running.request.id)).record.completed == 4
        record = (await ended(short, over.request.id)).record
    assert {line["custom_id"] for line in await written(short, record.error_file_id)} == {"r0", "r1", "r2", "r3"}


async def test_a_line_that_is_wrong_since_it_was_validated_is_an_error_under_its_name(
    server: Server, settings: Settings, newer: Settings
) -> None:
    old = make_desk(server, settings)
    async with keeping(old):
        await wait_until(lambda: old.transport.connected)
        state = await new_batch(old)
        owner = await old.store.claim(state)
        await old.store.save(state.request.id, Record(owner=owner, status="in_progress", total=3))
        record = (await ended(old, state.request.id)).record
    assert {line["custom_id"] for line in await written(old, record.error_file_id)} == {"r0", "r1", "r2"}
