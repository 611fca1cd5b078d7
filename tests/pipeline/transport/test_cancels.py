"""A client that leaves: wherever its job is, nobody works on it for long."""

from __future__ import annotations

import asyncio
import contextlib

import anyio
import pytest
from fakes.configs import settings
from fakes.pipelines import (
    ScriptedStage,
    connected_client,
    forward,
    job_for,
    quick,
    raw_link,
    running_worker,
    spec,
)
from fakes.waiting import wait_until

from pipeline.errors import Cancelled
from pipeline.stage import Done, Forward
from pipeline.transport import keyspace
from pipeline.transport.cancels import Cancels, cancellation
from pipeline.transport.client import open_client
from pipeline.transport.clock import ServerClock

pytestmark = pytest.mark.anyio
QUICK = settings(transport=quick())


async def echo(delivery):
    return Done(delivery.body)


async def _published(link) -> int:
    return int(await link.run(("XLEN", keyspace.CANCEL)))


async def _streams_empty(link) -> bool:
    lengths = [await link.run(("XLEN", keyspace.jobs(stage, "live"))) for stage in ("resolve", "dispatch")]
    return lengths == [0, 0]


async def test_a_job_cancelled_before_its_worker_started_never_runs(url: str) -> None:
    resolve = ScriptedStage(forward)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client), b"{}")
        waiter.cancel()
        with pytest.raises(Cancelled):
            await waiter.next()
        await wait_until(lambda: _published(link))
        async with running_worker(url, QUICK, spec("resolve", resolve)):
            await wait_until(lambda: _streams_empty(link))
    assert resolve.seen == []


async def test_a_job_cancelled_while_it_waits_never_runs(url: str) -> None:
    busy, first = anyio.Event(), anyio.Event()

    async def block(delivery):
        first.set()
        await busy.wait()
        return Done()

    dispatch = ScriptedStage(block)
    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", dispatch, slots=1)),
    ):
        one = await client.submit(job_for(client, stages_left=("dispatch",)), b"1")
        await first.wait()
        two = await client.submit(job_for(client, stages_left=("dispatch",)), b"2")
        two.cancel()
        await wait_until(lambda: _published(link))
        limit = anyio.current_time() + 0.2
        await wait_until(lambda: anyio.current_time() > limit)
        busy.set()
        await one.next()
        await wait_until(lambda: _streams_empty(link))
    assert [d.body for d in dispatch.seen] == [b"1"]


async def test_a_job_cancelled_between_stages_is_dropped_by_the_next(url: str) -> None:
    dispatch = ScriptedStage(echo)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:

        async def cancel_then_forward(delivery):
            waiter.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # too late: this stage hands the job on all the same
                await anyio.sleep_forever()
            return Forward(delivery.job, delivery.body)

        async with running_worker(url, QUICK, spec("resolve", ScriptedStage(cancel_then_forward))):
            waiter = await client.submit(job_for(client), b"{}")
            await wait_until(lambda: link.run(("XLEN", keyspace.jobs("dispatch", "live"))))
        async with running_worker(url, QUICK, spec("dispatch", dispatch)):
            await wait_until(lambda: _streams_empty(link))
    assert dispatch.seen == []


@pytest.mark.parametrize("streaming", [False, True])
async def test_work_in_flight_ends_within_a_second(url: str, streaming: bool) -> None:
    ended = anyio.Event()

    async def work(delivery):
        try:
            if streaming:
                await delivery.send(b"first")
            await anyio.sleep_forever()
        finally:
            ended.set()

    dispatch = ScriptedStage(work)
    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", dispatch)),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",), stream=streaming), b"{}")
        if streaming:
            assert (await waiter.next()).data == b"first"
        await wait_until(lambda: dispatch.seen)
        waiter.cancel()
        with anyio.fail_after(1):
            await ended.wait()
        await wait_until(lambda: _streams_empty(link))


async def test_a_client_that_leaves_while_its_job_is_admitted_leaves_a_cancelled_job(url: str) -> None:
    resolve = ScriptedStage(forward)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        await link.run(("CLIENT", "PAUSE", 300, "WRITE"))
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(client.submit, job_for(client), b"{}")
            await wait_until(lambda: client._admission._batch)
            tasks.start_soon(client.submit, job_for(client), b"later")  # the next flush: never sent
            await wait_until(lambda: client.status().waiting == 3)
            tasks.cancel_scope.cancel()
        assert client.status().waiting == 0
        await wait_until(lambda: _published(link))
        assert await link.run(("XLEN", keyspace.jobs("resolve", "live"))) == 2
        async with running_worker(url, QUICK, spec("resolve", resolve)):
            await wait_until(lambda: _streams_empty(link))
    assert resolve.seen == []


async def test_an_ingress_that_closes_cancels_what_it_still_waited_for(url: str) -> None:
    resolve = ScriptedStage(forward)
    async with raw_link(url) as link:
        async with open_client(QUICK, url) as client:
            await wait_until(lambda: client.status().connected)
            await client.submit(job_for(client), b"{}")
        assert await link.run(("EXISTS", keyspace.replies(client.consumer), keyspace.up(client.consumer))) == 0
        async with running_worker(url, QUICK, spec("resolve", resolve)):
            await wait_until(lambda: _streams_empty(link))
    assert resolve.seen == []


async def test_garbage_on_the_cancel_stream_is_passed_over(url: str) -> None:
    async with raw_link(url) as link:
        clock = ServerClock()
        await clock.refresh(link)
        cancels = Cancels(link, clock, 60.0)
        for fields in (("x", "y"), ("i", b"\xff", "d", 1), ("i", "a", "d", "soon")):
            await link.run(("XADD", keyspace.CANCEL, "*", *fields))
        await link.run(cancellation([("good", clock.now() + 60_000), ("late", clock.now() - 1)], 0))
        await cancels.replay()
        assert "good" in cancels
        assert "late" in cancels
        cancels.purge()
        assert "good" in cancels
        assert "late" not in cancels


async def test_old_cancellations_are_trimmed(url: str) -> None:
    async with raw_link(url) as link:
        for n in range(1, 400):
            await link.run(("XADD", keyspace.CANCEL, f"{n}-0", "i", "old", "d", 1))
        await link.run(cancellation([("new", 10**15)], 10**12))
        assert await _published(link) < 200
