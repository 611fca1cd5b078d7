"""Lanes: live goes first, batch leaves the reserve alone and is still served."""

from __future__ import annotations

import anyio
import pytest
from fakes.configs import settings
from fakes.deliveries import make_job
from fakes.pipelines import Rival, ScriptedStage, quick, raw_link, running_worker, spec, stage_stream
from fakes.waiting import wait_until

from pipeline.job import BATCH, LANES, LIVE
from pipeline.stage import Done
from pipeline.transport import keyspace
from pipeline.transport.stage_stream import BESIDE

pytestmark = pytest.mark.anyio
QUICK = settings(transport=quick())


def _job(lane: str):
    return make_job(stages_left=("dispatch",), lane=lane, deadline=10**14)


async def test_batch_never_holds_the_slots_reserved_for_live(url: str) -> None:
    go, held, most = anyio.Event(), 0, 0

    async def wait(delivery):
        nonlocal held, most
        if delivery.job.lane == BATCH:
            held += 1
            most = max(most, held)
            await go.wait()
            held -= 1
        return Done()

    dispatch = ScriptedStage(wait)
    async with raw_link(url) as link:
        live, batch = Rival(link, "dispatch", LIVE), Rival(link, "dispatch", BATCH)
        for _ in range(20):
            await batch.add(_job(BATCH))
        async with running_worker(url, QUICK, spec("dispatch", dispatch, slots=8)):
            await wait_until(lambda: held == 6)
            for _ in range(10):
                await live.add(_job(LIVE))
            await wait_until(lambda: _length(link, live, 0))
            assert held == 6
            go.set()
            await wait_until(lambda: _length(link, batch, 0))
    assert most == 6


async def _length(link, rival: Rival, expected: int) -> bool:
    return await link.run(("XLEN", rival.stream)) == expected


async def test_live_goes_first(url: str) -> None:
    order: list[str] = []

    async def note(delivery):
        order.append(delivery.job.lane)
        return Done()

    async with raw_link(url) as link:
        live, batch = Rival(link, "dispatch", LIVE), Rival(link, "dispatch", BATCH)
        for _ in range(30):
            await batch.add(_job(BATCH))
            await live.add(_job(LIVE))
        async with running_worker(url, QUICK, spec("dispatch", ScriptedStage(note), slots=4)):
            await wait_until(lambda: len(order) == 60)
    # The first read does not know yet how much waits, so it takes some of both.
    assert order[:34].count(LIVE) >= 28


@pytest.mark.parametrize("slots", [1, 2])
async def test_few_slots_serve_both_lanes(url: str, slots: int) -> None:
    dispatch = ScriptedStage(lambda d: _done())
    async with raw_link(url) as link:
        live, batch = Rival(link, "dispatch", LIVE), Rival(link, "dispatch", BATCH)
        for _ in range(3):
            await batch.add(_job(BATCH))
            await live.add(_job(LIVE))
        async with running_worker(url, QUICK, spec("dispatch", dispatch, slots=slots)):
            await wait_until(lambda: len(dispatch.seen) == 6)
        assert await link.run(("EXISTS", keyspace.held_bytes("dispatch", BATCH))) == 0


async def test_a_batch_job_whose_outcome_is_still_to_be_written_is_in_nobodys_way(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url, slots=2) as stream:
        batch = Rival(link, "dispatch", BATCH)
        await batch.add(_job(BATCH))
        await batch.add(_job(BATCH))
        await stream.prepare()
        (first,) = await stream.fetch(2)
        assert await stream.fetch(2) == []
        stream.finished(first)
        (second,) = await stream.fetch(2)
        assert second.source.entry != first.source.entry
        assert stream.size == 2


async def _done() -> Done:
    return Done()


async def test_while_live_jobs_come_a_read_brings_few_of_a_batch(url: str, monkeypatch) -> None:
    async with raw_link(url) as link, stage_stream(url, slots=400, lease=60) as stream:
        live, batch = Rival(link, "dispatch", LIVE), Rival(link, "dispatch", BATCH)
        for _ in range(100):
            await batch.add(_job(BATCH))
        await live.add(_job(LIVE))
        await stream.prepare()
        assert len(await stream.fetch(60)) == 31
        assert len(await stream.fetch(60)) == BESIDE
        monkeypatch.setattr("pipeline.transport.stage_stream.LATELY", 0.0)
        assert len(await stream.fetch(60)) == 30


async def test_live_outcomes_are_written_before_those_of_a_batch(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url) as stream:
        live, batch = Rival(link, "dispatch", LIVE), Rival(link, "dispatch", BATCH)
        await batch.add(_job(BATCH))
        await live.add(_job(LIVE))
        await stream.prepare()
        deliveries = sorted(await stream.fetch(2), key=lambda delivery: delivery.source.lane)
        writer = deliveries[0]._writer
        for delivery in deliveries:
            writer.settle(delivery, Done())
        order: list[str] = []
        writer.written["dispatch"] = lambda delivery: order.append(delivery.source.lane)
        await writer._write()
        assert order == [LIVE, BATCH]


async def test_long_turns_hold_back_a_batch_while_live_jobs_come(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url, slots=400, lease=60) as stream:
        live, batch = Rival(link, "dispatch", LIVE), Rival(link, "dispatch", BATCH)
        for _ in range(150):
            await batch.add(_job(BATCH))
        await stream.prepare()
        stream.turned(1.0)
        assert len(await stream.fetch(80)) == 40, "there was no live job yet"
        await live.add(_job(LIVE))
        assert len(await stream.fetch(80)) == 41
        stream.turned(1.0)
        await live.add(_job(LIVE))
        assert len(await stream.fetch(80)) == 1, "80 are held, 64 may be"


async def test_a_worker_of_one_lane_leaves_the_other_alone_and_has_all_slots_for_its_own(url: str) -> None:
    go, served = anyio.Event(), {LIVE: list[str](), BATCH: list[str]()}

    def stage(own: str) -> ScriptedStage:
        async def note(delivery):
            served[own].append(delivery.job.lane)
            await go.wait()
            return Done()

        return ScriptedStage(note)

    async with raw_link(url) as link:
        rivals = {lane: Rival(link, "dispatch", lane) for lane in LANES}
        for lane in LANES:
            for _ in range(6):
                await rivals[lane].add(_job(lane))
        async with (
            running_worker(url, QUICK, spec("dispatch", stage(LIVE), slots=4), lanes=(LIVE,)),
            running_worker(url, QUICK, spec("dispatch", stage(BATCH), slots=4), lanes=(BATCH,)),
        ):
            await wait_until(lambda: len(served[LIVE]) == len(served[BATCH]) == 4)
            go.set()
            for lane in LANES:
                await wait_until(lambda lane=lane: _length(link, rivals[lane], 0))
    assert served == {LIVE: [LIVE] * 6, BATCH: [BATCH] * 6}


async def test_what_a_dead_worker_of_a_lane_held_goes_to_another_of_that_lane(url: str) -> None:
    live, batch = ScriptedStage(lambda _: _done()), ScriptedStage(lambda _: _done())
    async with raw_link(url) as link:
        dead = Rival(link, "dispatch", BATCH)
        entry = await dead.add(_job(BATCH))
        await dead.fetch()
        await dead.age(entry)
        async with (
            running_worker(url, QUICK, spec("dispatch", live), lanes=(LIVE,)),
            running_worker(url, QUICK, spec("dispatch", batch), lanes=(BATCH,)),
        ):
            await wait_until(lambda: batch.seen)
    assert not live.seen
