"""One batch on a real server, with scripted stages in place of workers: retries, disks, owners."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import msgspec
import pytest
from fakes.batches import line, lines
from fakes.desks import answer, create, ended, keeping, make_desk, working, written
from fakes.pipelines import ScriptedStage, raw_link
from fakes.servers import Server
from fakes.waiting import wait_until

from pipeline.errors import DeadlineExceeded, InvalidRequest, UpstreamOverloaded, UpstreamUnavailable
from pipeline.job import BATCH, Facts, Job
from pipeline.settings import BatchSettings, Settings
from pipeline.stage import Delivery, Done, Fail, Outcome
from pipeline.stores.batch_progress import Latency
from pipeline.stores.batch_records import BatchOrder, Record
from pipeline.stores.batches import WINDOW
from pipeline.stores.local import LocalBlobs
from pipeline.transport import keyspace
from pipeline.transport.feeding import FeedTransport
from workers.batches import feeder
from workers.batches.lines import line_of
from workers.batches.parts import Parts, open_parts
from workers.batches.tally import count

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def test_a_line_that_never_has_an_answer_in_time_is_tried_three_times(server: Server, settings: Settings) -> None:
    async def late(delivery: Delivery) -> Outcome:
        if line_of(delivery.job.id) == 2:
            return Fail(DeadlineExceeded("too late"))
        return await answer(delivery)

    stage, desk = ScriptedStage(late), make_desk(server, settings)
    async with working(server, settings, stage), keeping(desk):
        state = await ended(desk, await create(desk, lines(3)))
    record = state.record
    assert (record.status, record.completed, record.failed) == ("completed", 2, 1)
    assert [line_of(delivery.job.id) for delivery in stage.seen].count(2) == 3
    (error,) = await written(desk, record.error_file_id)
    assert error["response"]["status_code"] == 504  # type: ignore[index]


async def test_a_line_whose_batch_expires_has_not_been_tried_in_vain(
    server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0

    async def at_the_end(delivery: Delivery) -> Outcome:
        nonlocal ahead
        ahead = WINDOW
        return Fail(DeadlineExceeded("too late"))

    stage, desk = ScriptedStage(at_the_end), make_desk(server, settings)
    monkeypatch.setattr(desk.transport, "time", lambda: time.time() + ahead)
    async with working(server, settings, stage), keeping(desk):
        record = (await ended(desk, await create(desk, lines(10)))).record
    assert (record.status, record.failed) == ("expired", 10)
    codes = [entry["error"]["code"] for entry in await written(desk, record.error_file_id)]  # type: ignore[index]
    assert codes == ["batch_expired"] * 10


async def test_a_feed_whose_clock_is_days_ahead_ends_no_batch(
    server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await create(make_desk(server, settings), lines(3))
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 2 * WINDOW)
    desk, over, beat = make_desk(server, settings), anyio.Event(), FeedTransport._beat
    close = desk.store.close

    async def noting(batch: str) -> bool:
        over.set()
        return await close(batch)

    async def late(transport: FeedTransport) -> None:
        with anyio.move_on_after(0.5):
            await over.wait()
        await beat(transport)

    monkeypatch.setattr(desk.store, "close", noting)
    monkeypatch.setattr(FeedTransport, "_beat", late)  # it learns the server's time later than that there is a batch
    async with working(server, settings, ScriptedStage(answer)), keeping(desk):
        state = await ended(desk, batch_id)
    assert (state.record.status, state.record.completed) == ("completed", 3)
    assert state.record.times["completed_at"] <= right()


async def test_a_line_that_was_tried_says_why_it_has_no_answer_when_its_batch_is_cancelled(
    server: Server, settings: Settings
) -> None:
    async def one_is_never_served(delivery: Delivery) -> Outcome:
        return Fail(UpstreamUnavailable("500")) if line_of(delivery.job.id) == 2 else await answer(delivery)

    stage, desk = ScriptedStage(one_is_never_served), make_desk(server, settings)
    async with working(server, settings, stage), keeping(desk):
        batch_id = await create(desk, lines(3))

        async def is_put_off() -> bool:
            return bool((await desk.store.get(batch_id, None)).record.progress.causes)

        await wait_until(is_put_off, timeout=10)
        await desk.store.cancel(await desk.store.get(batch_id, None))
        record = (await ended(desk, batch_id)).record
    assert (record.status, record.completed, record.failed) == ("cancelled", 2, 1)
    (entry,) = await written(desk, record.error_file_id)
    assert entry["error"] == {
        "code": "batch_cancelled",
        "message": "Its last try ended in upstream_unavailable. "
        "This request had no answer before its batch was cancelled.",
    }


async def test_lines_that_nobody_can_serve_hold_the_feeding_up_and_come_again(
    server: Server, settings: Settings
) -> None:
    served = False

    async def overloaded(delivery: Delivery) -> Outcome:
        return await answer(delivery) if served else Fail(UpstreamOverloaded("not now"))

    stage, desk = ScriptedStage(overloaded), make_desk(server, settings)
    async with working(server, settings, stage), keeping(desk):
        batch_id = await create(desk, lines(100))
        await wait_until(lambda: len(stage.seen) >= 40, timeout=20)
        assert len({line_of(delivery.job.id) for delivery in stage.seen}) <= 20
        served = True
        state = await ended(desk, batch_id)
    assert (state.record.completed, state.record.failed) == (100, 0)


async def test_a_full_server_is_not_asked_for_every_line_and_costs_none(
    server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder, "FEED_MOST", 5)
    desk, tried = make_desk(server, settings), list[float]()
    add = desk.transport.add

    async def noting(jobs: Sequence[tuple[Job, bytes]]) -> list[int]:
        tried.append(anyio.current_time())
        return await add(jobs)

    monkeypatch.setattr(desk.transport, "add", noting)
    async with raw_link(server.url) as link, working(server, settings, ScriptedStage(answer)), keeping(desk):
        (_, before) = await link.run(("CONFIG", "GET", "maxmemory"))
        await link.run(("CONFIG", "SET", "maxmemory", 1))
        try:
            batch_id = await create(desk, lines(50))
            await wait_until(lambda: len(tried) > 1, timeout=10)
        finally:
            await link.run(("CONFIG", "SET", "maxmemory", before))
        record = (await ended(desk, batch_id)).record
    assert tried[1] - tried[0] >= feeder.REFUSED_PAUSE
    assert (record.completed, record.failed) == (50, 0)


async def test_lines_that_somebody_deleted_are_missed_and_fed_again(server: Server, settings: Settings) -> None:
    settings = msgspec.structs.replace(settings, batches=BatchSettings(batch_window=20))
    stage, desk, stream = ScriptedStage(answer), make_desk(server, settings), keyspace.jobs("dispatch", BATCH)
    async with raw_link(server.url) as link, keeping(desk):
        batch_id = await create(desk, lines(3))

        async def fed() -> bool:
            return bool(await link.run(("XLEN", stream)) == 3)

        await wait_until(fed, timeout=10)
        await link.run(("DEL", stream))
        async with working(server, settings, stage):
            state = await ended(desk, batch_id)
    assert (state.record.completed, state.record.progress.retries) == (3, 3)


async def test_a_line_whose_body_redis_lost_is_fed_again(server: Server, settings: Settings) -> None:
    settings = msgspec.structs.replace(settings, batches=BatchSettings(batch_window=20))
    desk = make_desk(server, settings)
    async with raw_link(server.url) as link, keeping(desk):
        batch_id = await create(desk, line("large", "x" * 100_000))

        async def bodies() -> bool:
            found = await link.run(("KEYS", f"{keyspace.BODIES}*"))
            return bool(found) and bool(await link.run(("DEL", *found)))

        await wait_until(bodies, timeout=10)
        async with working(server, settings, ScriptedStage(answer)):
            record = (await ended(desk, batch_id)).record
    assert (record.completed, record.progress.causes) == (1, {"redis_unavailable": 1})


async def test_a_batch_tells_how_it_comes_along(server: Server, settings: Settings) -> None:
    let_go = anyio.Event()

    async def mixed(delivery: Delivery) -> Outcome:
        number = line_of(delivery.job.id)
        if number == 1 and delivery.job.id.endswith(".1"):
            return Fail(UpstreamOverloaded("not now"))
        if number == 2:
            return Fail(InvalidRequest("not like that"))
        if number > 2:
            await let_go.wait()
        return Done(b"{}", Facts(provider_ms=40.0))

    desk = make_desk(server, settings)
    async with working(server, settings, ScriptedStage(mixed)), keeping(desk):
        batch_id = await create(desk, lines(10))

        async def halfway() -> bool:
            progress = (await desk.store.get(batch_id, None)).record.progress
            return (progress.open, progress.resting, progress.retries) == (8, 0, 1)

        await wait_until(halfway)
        let_go.set()
        progress = (await ended(desk, batch_id)).record.progress
    assert (progress.open, progress.resting, progress.retries) == (0, 0, 1)
    assert progress.causes == {"upstream_rate_limited": 1}
    assert progress.failures == {"invalid_request": 1}
    assert progress.latency_ms == Latency(p50=40.0, p99=40.0)


async def test_outcomes_that_took_long_to_write_are_counted_although_nothing_else_goes_on(
    server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = msgspec.structs.replace(settings, batches=BatchSettings())  # a line has minutes
    desk, batch_id, let_go = make_desk(server, settings), "", anyio.Event()
    append = Parts.append

    async def record() -> Record:
        return (await desk.store.get(batch_id, None)).record

    async def late(parts: Parts, kind: str, data: bytes) -> None:
        async def is_told() -> bool:
            progress = (await record()).progress
            return let_go.is_set() or (progress.open == 1 and bool(progress.waiting))

        await wait_until(is_told, timeout=20)
        await append(parts, kind, data)

    async def one_is_held(delivery: Delivery) -> Outcome:
        if line_of(delivery.job.id) == 2:
            await let_go.wait()
        return await answer(delivery)

    async def counted() -> bool:
        return (await record()).completed == 1

    monkeypatch.setattr(Parts, "append", late)
    async with working(server, settings, ScriptedStage(one_is_held)), keeping(desk):
        batch_id = await create(desk, lines(2))
        await wait_until(counted, timeout=10)
        let_go.set()
        await ended(desk, batch_id)


def test_codes_that_providers_make_up_are_told_apart_to_a_bound() -> None:
    codes: Counter[str] = Counter()
    for number in range(100):
        count(codes, f"code-{number}")
    assert (len(codes), codes["other"], codes.total()) == (33, 68, 100)


async def test_a_full_disk_stops_a_batch_and_half_a_line_is_never_there(
    server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk(server, settings)
    blobs = desk.store.blobs
    assert isinstance(blobs, LocalBlobs)

    refused: list[int] = []
    patched = anyio.Event()

    def full(size: int) -> None:
        refused.append(size)
        raise OSError(28, "No space left on device")

    async def half(delivery: Delivery) -> Outcome:
        if line_of(delivery.job.id) > 100:
            await patched.wait()
        return await answer(delivery)

    async with working(server, settings, ScriptedStage(half)), keeping(desk):
        batch_id = await create(desk, lines(200))

        async def begun() -> bool:
            return (await desk.store.get(batch_id, None)).record.completed > 0

        await wait_until(begun)
        monkeypatch.setattr(blobs, "check_room", full)
        patched.set()
        await wait_until(lambda: len(refused) > 2)
        monkeypatch.undo()
        state = await ended(desk, batch_id)
    assert state.record.completed == 200
    found = [entry["custom_id"] for entry in await written(desk, state.record.output_file_id)]
    assert sorted(map(str, found)) == sorted(f"r{number}" for number in range(200))


async def test_an_output_that_does_not_fit_waits_for_the_disk_with_its_owner(
    server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk(server, settings)
    refused: list[int] = []

    def full(size: int) -> None:
        refused.append(size)
        raise OSError(28, "No space left on device")

    batch_id = await create(desk, lines(20))
    with monkeypatch.context() as patch:
        patch.setattr("workers.batches.ledger.FULL_PAUSE", 0.01)
        patch.setattr(desk.files.blobs, "check_room", full)
        async with working(server, settings, ScriptedStage(answer)), keeping(desk):
            await wait_until(lambda: len(refused) > 2)
            assert (await desk.store.get(batch_id, None)).record.status == "finalizing"
            patch.undo()
            state = await ended(desk, batch_id)
    assert (state.claims, state.record.status) == (1, "completed")
    assert len(await written(desk, state.record.output_file_id)) == 20


async def test_two_feeds_share_batches_and_a_batch_has_one_owner(server: Server, settings: Settings) -> None:
    one, other = make_desk(server, settings), make_desk(server, settings)
    async with working(server, settings, ScriptedStage(answer)), keeping(one), keeping(other):
        ids = [await create(one, lines(50), owner) for owner in ("a", "b", "a", "b")]
        states = [await ended(one, batch_id) for batch_id in ids]
    assert [state.claims for state in states] == [1] * 4
    assert [state.record.completed for state in states] == [50] * 4


async def test_lines_that_were_lost_with_their_owner_are_fed_again_while_others_hold_the_lane(
    server: Server, settings: Settings
) -> None:
    patient = msgspec.structs.replace(settings, batches=BatchSettings(batch_window=20, batch_line_timeout=600))
    desk, heir = make_desk(server, patient), make_desk(server, patient)
    async with raw_link(server.url) as link:

        async def waiting() -> list[str]:
            entries = await link.run(("XRANGE", keyspace.jobs("dispatch", BATCH), "-", "+"))
            return [entry.decode() for entry, _ in entries]

        async with keeping(desk):  # no worker fetches anything yet
            stays = await create(desk, lines(4))
            await wait_until(lambda: all_of(waiting, 4))
            kept = set(await waiting())
            lost = await create(desk, lines(6))
            await wait_until(lambda: all_of(waiting, 10))
        await link.run(("XDEL", keyspace.jobs("dispatch", BATCH), *(e for e in await waiting() if e not in kept)))

        async def answer_one_batch(delivery: Delivery) -> Outcome:
            if stays.removeprefix("batch_") in delivery.job.id:
                await anyio.sleep_forever()
            return await answer(delivery)

        stage = ScriptedStage(answer_one_batch)
        async with keeping(heir), working(server, patient, stage):
            assert (await ended(heir, lost)).record.completed == 6
            numbers = [line_of(d.job.id) for d in stage.seen if stays.removeprefix("batch_") in d.job.id]
            assert sorted(numbers) == [1, 2, 3, 4], "what was under way was fed again"
        await link.run(("FLUSHALL",))


async def all_of(waiting: Callable[[], Awaitable[list[str]]], count: int) -> bool:
    return len(await waiting()) == count


async def test_a_batch_that_loses_its_input_keeps_what_is_done(server: Server, settings: Settings) -> None:
    desk, heir = make_desk(server, settings), make_desk(server, settings)

    async def some(delivery: Delivery) -> Outcome:
        if line_of(delivery.job.id) > 10:
            await anyio.sleep_forever()
        return await answer(delivery)

    async with working(server, settings, ScriptedStage(some)):
        async with keeping(desk):
            batch_id = await create(desk, lines(15))

            async def ten_are_done() -> bool:
                return (await desk.store.get(batch_id, None)).record.completed == 10

            await wait_until(ten_are_done)
        assert await desk.files.blobs.delete((await desk.store.get(batch_id, None)).request.input_file_id)
        async with keeping(heir):
            record = (await ended(heir, batch_id)).record
    assert (record.status, record.errors[0].code) == ("failed", "input_file_not_found")
    assert (record.total, record.completed, record.failed) == (15, 10, 0)
    assert len(await written(heir, record.output_file_id)) == 10


async def test_of_a_batch_whose_owner_died_at_its_end_nothing_is_left(server: Server, settings: Settings) -> None:
    desk = make_desk(server, settings)
    state = await desk.store.create(BatchOrder("", "/v1/chat/completions", "file-x"))
    assert await desk.store.claim(state) == 1
    async with open_parts(desk.store.blobs, state.request.id, 1, ()):
        await desk.store.save(state.request.id, Record(owner=1, status="completed"))
    directory = Path(settings.data_dir) / "batches"

    async with keeping(desk):
        await wait_until(lambda: not any(path.is_file() for path in directory.iterdir()))
    assert (await desk.store.get(state.request.id, None)).record.status == "completed"
