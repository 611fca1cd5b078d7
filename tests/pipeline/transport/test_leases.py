"""Who owns a delivery: leases, claims, the owner's fence, release."""

from __future__ import annotations

import anyio
import pytest
from fakes.configs import settings
from fakes.deliveries import make_job
from fakes.pipelines import (
    Rival,
    ScriptedStage,
    connected_client,
    job_for,
    quick,
    raw_link,
    running_worker,
    spec,
    stage_stream,
)
from fakes.proxy import proxy_to
from fakes.waiting import wait_until

from pipeline import metrics
from pipeline.job import BATCH, LIVE, encode
from pipeline.runner import Stop, run_stages
from pipeline.stage import Done, Forward
from pipeline.transport import keyspace
from pipeline.transport import stage_stream as stage_stream_module
from pipeline.transport.connection import RENEW, Link
from pipeline.transport.delivery import End
from pipeline.transport.writes import Drop

pytestmark = pytest.mark.anyio
QUICK = settings(transport=quick())


async def echo(delivery):
    return Done(b"%d" % delivery.number)


async def sleeper(delivery):
    await anyio.sleep_forever()


async def test_an_orphan_is_claimed_after_its_lease_as_second_delivery(url: str) -> None:
    dispatch = ScriptedStage(echo)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        rival = Rival(link, "dispatch")
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        assert len(await rival.fetch()) == 1
        async with running_worker(url, QUICK, spec("dispatch", dispatch)):
            with anyio.fail_after(4):
                answer = await waiter.next()
    assert answer.body == b"2"
    assert len(dispatch.seen) == 1


async def test_leases_outlast_a_connection_that_goes_silent(url: str) -> None:
    lease = 2.0
    dispatch = ScriptedStage(sleeper)
    async with (
        proxy_to(url) as proxy,
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(proxy.url, settings(transport=quick(lease)), spec("dispatch", dispatch)),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        await wait_until(lambda: dispatch.seen)
        proxy.silent_from = RENEW.sha.encode()
        await wait_until(lambda: proxy.silenced)
        began = anyio.current_time()

        async def renewed() -> bool:
            (pending,) = await link.run(("XPENDING", keyspace.jobs("dispatch", LIVE), keyspace.GROUP, "-", "+", 1))
            return pending[2] / 1000 < anyio.current_time() - began

        await wait_until(renewed, timeout=lease * 2 / 3)  # the last time was a third of a lease ago
        waiter.cancel()


async def test_orphans_behind_many_live_leases_are_reached(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url, slots=400, lease=60) as stream:
        rival = Rival(link, "dispatch")
        entries = [await rival.put("h", b"x", "b", b"") for _ in range(400)]
        await rival.fetch()
        await rival.age(*entries[390:], idle=120)
        claimed = []
        for _ in range(3):
            if len(claimed) < 10:
                claimed += [d.source.entry for d in await stream.fetch(5)]
    assert sorted(claimed) == sorted(entries[390:])


async def _nothing() -> None:
    """Stands for a renewal that came too late."""


async def test_our_own_idle_entries_are_never_returned_as_new(url: str, monkeypatch) -> None:
    async with raw_link(url) as link, stage_stream(url, lease=0.05) as stream:
        monkeypatch.setattr(stream, "renew", _nothing)
        rival = Rival(link, "dispatch", name="reader")
        await rival.put("h", b"x", "b", b"")
        await rival.link.call(("XGROUP", "CREATE", rival.stream, keyspace.GROUP, "0", "MKSTREAM"))
        await wait_until(lambda: stream.fetch(4))
        (held,) = stream.held
        await rival.age(held.source.entry, idle=100)
        stream._claim_at = 0.0
        assert await stream.fetch(4) == []
        assert stream.held == (held,)


async def test_an_outcome_that_is_not_written_yet_keeps_its_delivery_from_being_run_again(
    url: str, monkeypatch
) -> None:
    async with raw_link(url) as link, stage_stream(url, lease=0.05) as stream:
        monkeypatch.setattr(stream, "renew", _nothing)
        rival = Rival(link, "dispatch", name="reader")
        entry = await rival.put("h", b"x", "b", b"")
        await rival.link.call(("XGROUP", "CREATE", rival.stream, keyspace.GROUP, "0", "MKSTREAM"))
        await wait_until(lambda: stream.fetch(4))
        (held,) = stream.held
        stream._writer.settle(held, Drop())
        assert stream.held == ()
        await rival.age(entry, idle=100)
        stream._claim_at = 0.0
        assert await stream.fetch(4) == []
        stream._read_failed = True
        assert await stream.fetch(4) == []
        stream._writer.finish()
        await stream._writer.run()
        assert await rival.pending() == {}
        assert stream._held == {}


async def test_a_reply_that_was_lost_on_its_way_is_read_from_history(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url) as stream:
        rival = Rival(link, "dispatch", name="reader")
        entries = [await rival.put("h", b"x", "b", b"") for _ in range(3)]
        await rival.fetch()
        stream._read_failed = True
        assert [d.source.entry for d in await stream.fetch(2)] == entries[:2]
        assert [(d.source.entry, d.number) for d in await stream.fetch(2)] == [(entries[2], 1)]
        assert await stream.fetch(2) == []


async def test_a_lost_lease_cancels_the_work_and_its_late_outcome_changes_nothing(url: str) -> None:
    ended, go = anyio.Event(), anyio.Event()

    async def stubborn(delivery):
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            ended.set()
            with anyio.CancelScope(shield=True):
                await go.wait()
            return Done(b"late")

    dispatch = ScriptedStage(stubborn)
    stale = metrics.STALE_SETTLES["dispatch",]._value.get()
    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", dispatch)),
    ):
        rival = Rival(link, "dispatch")
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        await wait_until(lambda: dispatch.seen)
        (entry,) = await rival.pending()
        await rival.age(entry, idle=0, number=2)
        with anyio.fail_after(3):
            await ended.wait()
        assert dispatch.seen[0].end is End.LOST
        go.set()
        await wait_until(lambda: metrics.STALE_SETTLES["dispatch",]._value.get() == stale + 1)
        assert await rival.pending() == {entry: ("rival", 2)}
        assert await link.run(("XLEN", rival.stream)) == 1
        with anyio.move_on_after(0.3) as scope:
            await waiter.next()
        assert scope.cancelled_caught
        await link.call(("XACK", rival.stream, keyspace.GROUP, entry), ("XDEL", rival.stream, entry))


async def test_what_a_process_that_stood_still_had_been_handed_meanwhile_is_run_by_others_alone(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Link.call

    async def late(link: Link, *commands, wait: float = 0.0):
        """Answer a read only once a lease has passed, and somebody else has claimed what it holds."""
        replies = await call(link, *commands, wait=wait)
        if commands[0][0] == "XREADGROUP" and replies[0]:
            await rival.age(*await rival.pending(), idle=0)
            limit = anyio.current_time() + 0.1
            await wait_until(lambda: anyio.current_time() > limit)
        return replies

    async with raw_link(url) as raw, stage_stream(url, lease=0.1) as stream:
        rival = Rival(raw, "dispatch")
        await stream.prepare()
        entry = await rival.add(make_job(stages_left=("dispatch",)))
        monkeypatch.setattr(Link, "call", late)
        (delivery,) = await stream.fetch(4)
        assert delivery.end is End.LOST
        assert await rival.pending() == {entry: ("rival", 1)}


async def test_a_worker_without_jobs_waits_no_longer_than_until_its_next_claim(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, waits = Link.call, []

    async def noted(link: Link, *commands, wait: float = 0.0):
        if commands[0][0] == "XREADGROUP":
            waits.append(wait)
        return await call(link, *commands, wait=wait)

    monkeypatch.setattr(Link, "call", noted)
    monkeypatch.setattr(stage_stream_module, "CLAIM_EVERY", 0.2)
    monkeypatch.setattr(stage_stream_module, "BLOCK", 0.5)
    async with stage_stream(url) as stream:
        await stream.prepare()
        assert await stream.fetch(4) == []
    assert 0.1 < waits[0] <= 0.24


async def test_a_lease_is_renewed_while_the_work_goes_on(url: str) -> None:
    done = anyio.Event()

    async def slow(delivery):
        await done.wait()
        return Done(b"%d" % delivery.number)

    one, two = ScriptedStage(slow), ScriptedStage(slow)
    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", one)),
        running_worker(url, QUICK, spec("dispatch", two)),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        await wait_until(lambda: one.seen or two.seen)
        rival, limit = Rival(link, "dispatch"), anyio.current_time() + 2.5
        await wait_until(lambda: anyio.current_time() > limit)
        assert [number for _, number in (await rival.pending()).values()] == [1]
        done.set()
        assert (await waiter.next()).body == b"1"
    assert len(one.seen + two.seen) == 1


async def test_a_hard_stop_hands_back_uncounted_and_claimable_at_once(url: str) -> None:
    config = settings(transport=quick(lease=30, grace=0.2))
    first, second = ScriptedStage(sleeper), ScriptedStage(echo)
    async with connected_client(url, config) as client:
        async with running_worker(url, config, spec("dispatch", first)):
            waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
            await wait_until(lambda: first.seen)
        async with running_worker(url, config, spec("dispatch", second)):
            with anyio.fail_after(3):
                assert (await waiter.next()).body == b"1"


async def test_what_is_in_hand_is_finished_during_the_drain(url: str) -> None:
    stop_seen = anyio.Event()

    async def finish(delivery):
        await stop_seen.wait()
        return Done(b"finished")

    dispatch = ScriptedStage(finish)
    async with (
        connected_client(url, QUICK) as client,
        running_worker(url, QUICK, spec("dispatch", dispatch)) as stop,
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        await wait_until(lambda: dispatch.seen)
        stop()
        stop_seen.set()
        assert (await waiter.next()).body == b"finished"


async def test_deliveries_that_come_during_the_stop_are_handed_back_unstarted(url: str) -> None:
    dispatch = ScriptedStage(sleeper)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        rival = Rival(link, "dispatch")
        await rival.fetch()
        stop = Stop()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_stages, [spec("dispatch", dispatch)], QUICK, url, stop)
            await wait_until(lambda: client._registry.workers["dispatch"], timeout=5)
            stop()  # while its read waits
            job = job_for(client, stages_left=("dispatch",))
            await rival.add(job)
        if pending := await rival.pending():  # delivered, not run, not counted
            assert [number for _, number in pending.values()] == [0]
        assert dispatch.seen == []
        await link.run(("UNLINK", rival.stream))


async def test_a_renewal_beside_a_release_does_not_take_back_what_is_handed_back(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url, slots=300, lease=60) as stream:
        rival = Rival(link, "dispatch")
        for _ in range(200):
            await rival.put("h", b"x", "b", b"")
        await wait_until(lambda: stream.fetch(300))
        deliveries = stream.held
        async with anyio.create_task_group() as both:
            both.start_soon(stream.renew)
            both.start_soon(stream.release, deliveries)
            both.start_soon(stream.renew)
        key = keyspace.jobs("dispatch", LIVE)
        pending = await link.run(("XPENDING", key, keyspace.GROUP, "IDLE", 60_000, "-", "+", 1000))
        assert len(pending) == len(deliveries) > 0


async def test_a_stale_settle_touches_neither_stream_nor_counter(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url) as stream:
        rival = Rival(link, "dispatch", BATCH)
        entry = await rival.put("h", encode(make_job(stages_left=("dispatch",), lane=BATCH)), "s", 5, "b", b"12345")
        await link.run(("SET", keyspace.held_bytes("dispatch", BATCH), 5))
        await link.call(("XGROUP", "CREATE", rival.stream, keyspace.GROUP, "0"))
        await wait_until(lambda: stream.fetch(4))
        await rival.age(entry)
        stream._writer.settle(stream.held[0], Done(b""))
        stream._writer.finish()
        await stream._writer.run()
        assert list(await rival.pending()) == [entry]
        assert await link.run(("GET", keyspace.held_bytes("dispatch", BATCH))) == b"5"


async def test_a_reply_whose_group_was_lost_is_written_without_its_fence_and_a_forward_is_left_alone(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url) as stream:
        rival = Rival(link, "dispatch")
        await link.call(("XGROUP", "CREATE", rival.stream, keyspace.GROUP, "0", "MKSTREAM"))
        jobs = [
            make_job(stages_left=left, reply_to=to) for left, to in ((("dispatch",), "me"), (("dispatch", "x"), ""))
        ]
        for job in jobs:
            await rival.add(job)
        await wait_until(lambda: stream.fetch(4))
        done, forwarded = stream.held
        await link.run(("XGROUP", "DESTROY", rival.stream, keyspace.GROUP))
        stream._writer.settle(done, Done(b"told"))
        stream._writer.settle(forwarded, Forward(forwarded.job, b"{}"))
        stream._writer.finish()
        await stream._writer.run()
        ((_, fields),) = await link.run(("XRANGE", keyspace.replies("me"), "-", "+"))
        assert b"told" in fields
        assert 0 < await link.run(("PTTL", keyspace.replies("me"))) <= 60_000
        assert await link.run(("EXISTS", keyspace.jobs("x", "live"))) == 0
        assert await link.run(("XLEN", rival.stream)) == 2


async def test_a_lost_group_ends_no_work(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url) as stream:
        rival = Rival(link, "dispatch")
        await link.call(("XGROUP", "CREATE", rival.stream, keyspace.GROUP, "0", "MKSTREAM"))
        await rival.add(make_job(stages_left=("dispatch",)))
        await wait_until(lambda: stream.fetch(4))
        (held,) = stream.held
        await link.run(("XGROUP", "DESTROY", rival.stream, keyspace.GROUP))
        await stream.renew()
        assert held.end is None


async def test_a_byte_counter_that_is_none_has_nothing_written_twice(url: str) -> None:
    counter = keyspace.held_bytes("dispatch", "live")
    async with raw_link(url) as link, stage_stream(url) as stream:
        rival = Rival(link, "dispatch")
        await link.call(("XGROUP", "CREATE", rival.stream, keyspace.GROUP, "0", "MKSTREAM"), ("SET", counter, "many"))
        await rival.add(make_job(stages_left=("dispatch",), reply_to="me"))
        await wait_until(lambda: stream.fetch(4))
        (held,) = stream.held
        stream._writer.settle(held, Done(b"told"))
        stream._writer.finish()
        with anyio.fail_after(5):
            await stream._writer.run()
        assert await link.run(("XLEN", keyspace.replies("me"))) == 1
        assert await rival.pending() == {}
        assert await link.run(("EXISTS", counter)) == 0


async def test_bytes_are_counted_down_job_by_job_and_the_counter_vanishes_with_the_last(url: str) -> None:
    counter = keyspace.held_bytes("dispatch", "live")
    async with raw_link(url) as link, stage_stream(url) as stream:
        rival = Rival(link, "dispatch")
        await link.call(("XGROUP", "CREATE", rival.stream, keyspace.GROUP, "0", "MKSTREAM"), ("SET", counter, 30))
        for size in (10, 20):
            await rival.add(make_job(stages_left=("dispatch",)), b"x" * size)
        await wait_until(lambda: stream.fetch(4))
        for delivery, left in zip(stream.held, (b"20", None), strict=True):
            stream._writer.settle(delivery, Drop())
            await stream._writer._write()
            assert await link.run(("GET", counter)) == left


async def test_two_workers_share_the_load(url: str) -> None:
    release = anyio.Event()

    async def wait(delivery):
        await release.wait()
        return Done()

    one, two = ScriptedStage(wait), ScriptedStage(wait)
    async with (
        connected_client(url, QUICK) as client,
        running_worker(url, QUICK, spec("dispatch", one, slots=4)),
        running_worker(url, QUICK, spec("dispatch", two, slots=4)),
    ):
        waiters = [await client.submit(job_for(client, stages_left=("dispatch",)), b"{}") for _ in range(8)]
        await wait_until(lambda: len(one.seen) == len(two.seen) == 4)
        release.set()
        for waiter in waiters:
            await waiter.next()


async def test_only_consumers_that_are_gone_and_hold_nothing_are_removed(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url) as stream:
        holder, idle = Rival(link, "dispatch", name="holder"), Rival(link, "dispatch", name="idle")
        alive = Rival(link, "dispatch", name="alive")
        await holder.put("h", b"x")
        await holder.fetch()
        for rival in (idle, alive):
            await link.run(("XGROUP", "CREATECONSUMER", rival.stream, keyspace.GROUP, rival.name))
        await stream.retire({"alive"})
        found = await link.run(("XINFO", "CONSUMERS", holder.stream, keyspace.GROUP))
        assert sorted(consumer[1] for consumer in found) == [b"alive", b"holder"]
        assert list(await holder.pending())
