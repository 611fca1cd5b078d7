"""Owners that come too late: after a later one has ended the batch, or after its time while nothing is left to do."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fakes.batches import CHAT, lines
from fakes.desks import answer, create, ended, keeping, make_desk, working, written
from fakes.pipelines import ScriptedStage
from fakes.servers import Server
from fakes.waiting import wait_until
from structlog.testing import capture_logs

from pipeline.job import Reply
from pipeline.settings import Settings
from pipeline.stores.batch_records import BatchOrder, Record
from pipeline.stores.batches import BatchStore
from pipeline.transport import keyspace
from pipeline.transport.connection import Link
from workers.batches.answers import answered
from workers.batches.parts import RESULTS, open_parts

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Overtaken(BatchStore):
    """A store whose first owner stands still after it wrote a status: a later one ends the batch meanwhile."""

    at = ""

    async def save(self, batch_id: str, record: Record) -> None:
        await super().save(batch_id, record)
        state = await self.reread(batch_id)
        if (record.owner, record.status) == (1, self.at) and state is not None:
            last = msgspec.structs.replace(record, owner=await self.claim(state), status="cancelled")
            await self.put_away(msgspec.structs.replace(state, record=last, claims=last.owner))


@pytest.mark.parametrize("at", ["finalizing", "completed"])
async def test_who_wakes_up_after_a_later_owner_ended_the_batch_changes_nothing(
    server: Server, settings: Settings, at: str
) -> None:
    store = Overtaken(make_desk(server, settings).store.blobs)
    store.at = at
    desk = msgspec.structs.replace(make_desk(server, settings), store=store)
    directory = Path(settings.data_dir) / "batches"
    async with working(server, settings, ScriptedStage(answer)), keeping(desk):
        batch_id = await create(desk, lines(3))
        await wait_until(lambda: not any(path.is_file() for path in directory.iterdir()), timeout=20)
    state = await desk.store.get(batch_id, None)
    assert (state.record.status, state.record.owner) == ("cancelled", 2)
    link = Link(server.url, "test")
    kept = await link.run(("PTTL", keyspace.lines(state.request.hex)))
    await link.close()
    assert kept <= settings.batches.batch_line_timeout * 1000, f"its answers are kept for {kept / 1000} s"
    if at == "finalizing":
        assert state.request.output_file_id not in await desk.files.blobs.names()


class Unreadable(BatchStore):
    """A store whose first owner is succeeded, when all lines are done, by one whose record it cannot read."""

    async def save(self, batch_id: str, record: Record) -> None:
        await super().save(batch_id, record)
        state = await self.reread(batch_id)
        if (record.owner, record.status) == (1, "finalizing") and state is not None:
            await self.blobs.create(f"{batch_id}-record-{await self.claim(state)}", b"{}")


async def test_what_was_done_stays_when_the_record_of_a_later_owner_cannot_be_read(
    server: Server, settings: Settings
) -> None:
    desk = make_desk(server, settings)
    desk = msgspec.structs.replace(desk, store=Unreadable(desk.store.blobs))
    with capture_logs() as logged:
        async with working(server, settings, ScriptedStage(answer)), keeping(desk):
            batch_id = await create(desk, lines(3))
            await wait_until(lambda: "batch has another owner" in [entry["event"] for entry in logged], timeout=20)
    part = Path(settings.data_dir) / "batches" / f"{batch_id}-results-1.growing"
    assert part.read_bytes().count(b"\n") == 3


async def test_a_batch_whose_lines_are_all_done_does_not_expire(server: Server, settings: Settings) -> None:
    desk = make_desk(server, settings)
    file_id = (await desk.store.get(await create(desk, lines(1)), None)).request.input_file_id
    state = await desk.store.create(BatchOrder("", CHAT, file_id), window=0)
    batch, hexed = state.request.id, state.request.hex
    async with open_parts(desk.store.blobs, batch, await desk.store.claim(state), ()) as parts:
        await parts.append(RESULTS, answered(hexed, 1, "r0", Reply(id="x"), b"{}"))
    await desk.store.save(batch, Record(owner=1, status="finalizing", fed=1, total=1, completed=1))
    async with keeping(desk):
        record = (await ended(desk, batch)).record
    assert (record.status, record.completed, record.failed) == ("completed", 1, 0)
    assert [entry["custom_id"] for entry in await written(desk, record.output_file_id)] == ["r0"]
