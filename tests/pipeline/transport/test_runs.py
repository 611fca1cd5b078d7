"""Streams whose job is delivered more than once: what of which run reaches the client, and what runs again."""

from __future__ import annotations

import anyio
import pytest
from fakes.configs import settings
from fakes.pipelines import Rival, ScriptedStage, connected_client, job_for, quick, raw_link, running_worker, spec

from pipeline.stage import Done
from pipeline.transport import keyspace

pytestmark = pytest.mark.anyio
QUICK = settings(transport=quick())


async def test_a_redelivered_stream_that_sent_bytes_is_never_run_again(url: str) -> None:
    dispatch = ScriptedStage(lambda d: d.send(b"twice"))
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        rival = Rival(link, "dispatch")
        waiter = await client.submit(job_for(client, stages_left=("dispatch",), stream=True), b"{}")
        (entry,) = await rival.fetch()
        await link.run(("SET", keyspace.streamed(waiter.id), 1, "PX", 60_000))
        await rival.age(entry)
        async with running_worker(url, QUICK, spec("dispatch", dispatch)):
            with anyio.fail_after(5):
                answer = await waiter.next()
        assert await link.run(("EXISTS", keyspace.streamed(waiter.id))) == 0
    assert answer.reply.error.code == "worker_lost"
    assert dispatch.seen == []


async def test_a_redelivered_stream_that_sent_nothing_runs_and_its_mark_goes_with_its_end(url: str) -> None:
    end = anyio.Event()

    async def stream(delivery):
        await delivery.send(b"data")
        await end.wait()
        return Done()

    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        rival = Rival(link, "dispatch")
        waiter = await client.submit(job_for(client, stages_left=("dispatch",), stream=True), b"{}")
        await rival.age(*await rival.fetch())
        async with running_worker(url, QUICK, spec("dispatch", ScriptedStage(stream))):
            with anyio.fail_after(5):
                assert (await waiter.next()).data == b"data"
                assert 0 < await link.run(("PTTL", keyspace.streamed(waiter.id))) <= 30_000
                end.set()
                assert (await waiter.next()).reply.frames == 1
        assert await link.run(("EXISTS", keyspace.streamed(waiter.id))) == 0


async def test_a_stream_that_a_hard_stop_interrupts_ends_at_once_and_is_never_run_again(url: str) -> None:
    async def begin(delivery):
        await delivery.send(b"data")
        await anyio.sleep_forever()

    config = settings(transport=quick(grace=0.2))
    second = ScriptedStage(begin)
    async with connected_client(url, config) as client, raw_link(url) as link:
        async with running_worker(url, config, spec("dispatch", ScriptedStage(begin))):
            waiter = await client.submit(job_for(client, stages_left=("dispatch",), stream=True), b"{}")
            assert (await waiter.next()).data == b"data"
        with anyio.fail_after(0.3):
            answer = await waiter.next()
        async with running_worker(url, config, spec("dispatch", second)):
            waiter = await client.submit(job_for(client, stages_left=("dispatch",), stream=True), b"{}")
            assert (await waiter.next()).data == b"data"
        assert await link.run(("XLEN", keyspace.jobs("dispatch", "live"))) == 0
    assert answer.reply.error.code == "worker_lost"
    assert [delivery.job.id for delivery in second.seen] == [waiter.id]


async def test_frames_of_a_run_whose_first_was_refused_reach_nobody(url: str) -> None:
    refused = anyio.Event()

    async def late(delivery):
        if delivery.number > 1:
            await delivery.send(b"right")
            return Done()
        await rival.age(delivery.source.entry, idle=0)
        try:
            await delivery.send(b"late")  # the second goes out with it, the others while it is on its way
            while True:
                await delivery.send(b"late")
                await anyio.lowlevel.checkpoint()
        finally:
            refused.set()

    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        rival = Rival(link, "dispatch")
        async with running_worker(url, QUICK, spec("dispatch", ScriptedStage(late))):
            waiter = await client.submit(job_for(client, stages_left=("dispatch",), stream=True), b"{}")
            with anyio.fail_after(5):
                await refused.wait()
                await rival.age(*await rival.pending())
                assert (await waiter.next()).data == b"right"
                assert (await waiter.next()).reply.frames == 1
