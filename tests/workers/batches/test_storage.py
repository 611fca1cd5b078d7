"""A batch whose storage is an object store, is away for a while, or gives back what was not stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from fakes.batches import lines
from fakes.desks import answer, create, ended, keeping, make_desk, working, written
from fakes.object_servers import BUCKET, ObjectServer, run_object_server
from fakes.pipelines import ScriptedStage
from fakes.servers import Server
from fakes.waiting import wait_until
from structlog.testing import CapturingLogger

from pipeline.settings import Settings
from pipeline.stage import Delivery, Outcome
from pipeline.stores import object_pieces, object_store
from pipeline.stores.places import Places
from workers.batches import keeper
from workers.batches.lines import line_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    monkeypatch.setattr(object_store, "RETRIES", {"max_retries": 0})
    monkeypatch.setattr(object_pieces, "PAUSE", 0.0)  # for a window of 20 lines
    monkeypatch.setattr(keeper, "REST", 0.1)
    with run_object_server() as running:
        yield running


@pytest.fixture
def places(objects: ObjectServer) -> Places:
    return Places(*object_store.places(BUCKET, objects.options))


async def test_a_store_that_is_away_for_a_while_costs_no_line_and_repeats_none(
    server: Server, settings: Settings, objects: ObjectServer, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, failed, failing = make_desk(server, settings, places), 0, anyio.Event()
    log = CapturingLogger()
    monkeypatch.setattr(keeper, "log", log)  # one that was configured by another test's command keeps what it has

    def fault(method: str, key: str) -> tuple[int, str] | None:
        nonlocal failed
        if method != "PUT" or not failing.is_set() or failed >= 4:
            return None
        failed += 1
        return 503, "SlowDown"  # it has happened all the same

    async def slowly(delivery: Delivery) -> Outcome:
        if line_of(delivery.job.id) > 60:
            failing.set()
        await anyio.sleep(0.01)
        return await answer(delivery)

    objects.fault = fault
    stage = ScriptedStage(slowly)
    async with working(server, settings, stage), keeping(desk):
        state = await ended(desk, await create(desk, lines(200)))
        await wait_until(lambda: not [key for key in objects.objects if ".growing/" in key])
    assert failed == 4
    events = {call.args[0] for call in log.calls}
    assert "batch rests" in events
    assert "batch failed" not in events
    assert state.claims > 1, "the batch went on with appends of unknown end"
    assert (state.record.completed, state.record.failed) == (200, 0)
    found = [entry["custom_id"] for entry in await written(desk, state.record.output_file_id)]
    assert sorted(map(str, found)) == sorted(f"r{number}" for number in range(200))


async def test_an_owner_that_dies_leaves_its_objects_to_the_next(
    server: Server, settings: Settings, objects: ObjectServer, places: Places
) -> None:
    desk, heir = make_desk(server, settings, places), make_desk(server, settings, places)
    async with working(server, settings, ScriptedStage(answer)):
        async with keeping(desk):
            batch_id = await create(desk, lines(300))
            await wait_until(lambda: [key for key in objects.objects if "-results-1/" in key])
        assert not (await desk.store.get(batch_id, None)).record.terminal
        async with keeping(heir):
            state = await ended(heir, batch_id)
    assert state.claims == 2
    found = [entry["custom_id"] for entry in await written(heir, state.record.output_file_id)]
    assert sorted(map(str, found)) == sorted(f"r{number}" for number in range(300))


async def test_an_input_that_is_not_what_was_uploaded_fails_the_batch_and_runs_nothing(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    desk, stage = make_desk(server, settings), ScriptedStage(answer)
    batch_id = await create(desk, lines(10))
    file_id = (await desk.store.get(batch_id, None)).request.input_file_id
    stored = tmp_path / "files" / file_id
    stored.write_bytes(stored.read_bytes().replace(b'"content": "7"', b'"content": "8"'))
    async with working(server, settings, stage), keeping(desk):
        record = (await ended(desk, batch_id)).record
    assert record.status == "failed"
    assert [error.code for error in record.errors] == ["input_file_damaged"]
    assert stage.seen == []
