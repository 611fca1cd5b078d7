"""Streamed answers: order, gaps, other runs, slow readers, lost workers, an ingress that is gone."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from fakes.configs import settings
from fakes.pipelines import (
    Rival,
    ScriptedStage,
    connected_client,
    job_for,
    quick,
    raw_link,
    running_worker,
    spec,
)
from fakes.proxy import proxy_to
from fakes.waiting import wait_until

from pipeline.errors import Cancelled, TransportUnavailable, WorkerLost
from pipeline.job import Frame, Reply, encode
from pipeline.stage import Done
from pipeline.transport import keyspace, registry, replies, writer
from pipeline.transport.client import Answer

pytestmark = pytest.mark.anyio
QUICK = settings(transport=quick())


async def _publish(link, client, *frames: Frame) -> None:
    await link.run(("XADD", keyspace.replies(client.consumer), "*", "f", encode(list(frames))))


async def _terminate(link, client, reply: Reply, body: bytes = b"") -> None:
    await link.run(("XADD", keyspace.replies(client.consumer), "*", "t", encode(reply), "b", body))


async def test_a_waiter_follows_the_first_run_it_sees_and_drops_repeats(url: str) -> None:
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client, stream=True), b"{}")
        frames = [Frame(waiter.id, "a", n, b"%d" % n) for n in range(3)]
        await _publish(link, client, frames[0], Frame(waiter.id, "b", 0, b"other run"), frames[1], frames[0], frames[1])
        await _publish(link, client, frames[2], Frame("unknown", "a", 0, b"nobody's"))
        await _terminate(link, client, Reply(id=waiter.id, run="a", frames=3))
        items = [await waiter.next() for _ in range(4)]
        assert [f.data for f in items[:3]] == [b"0", b"1", b"2"]
        assert items[3].reply.run == "a"


class Line:
    """Takes what is pushed while it is `open`."""

    def __init__(self) -> None:
        self.open = True
        self.taken: list[bytes] = []

    def push(self, data: bytes) -> bool:
        if self.open:
            self.taken.append(data)
        return self.open


async def test_frames_are_pushed_while_somebody_waits_and_overtake_nothing(url: str) -> None:
    line = Line()
    async with connected_client(url, QUICK) as client, anyio.create_task_group() as tasks:
        waiter = await client.submit(job_for(client, stream=True), b"{}")
        frames = [Frame(waiter.id, "a", n, b"%d" % n) for n in range(6)]

        async def follow() -> None:
            while isinstance(item := await waiter.next(line.push), Frame):
                line.taken.append(item.data)
            line.taken.append(item.body)

        waiter.take_frame(frames[0])
        assert line.taken == []  # nobody waits
        tasks.start_soon(follow)
        await wait_until(lambda: waiter._push)
        for frame in (frames[1], frames[1], Frame(waiter.id, "b", 2, b"other run"), frames[2]):
            waiter.take_frame(frame)
        assert line.taken == [b"0", b"1", b"2"]
        line.open = False
        waiter.take_frame(frames[3])
        line.open = True
        waiter.take_frame(frames[4])  # behind one that waits for its turn
        assert line.taken == [b"0", b"1", b"2"]
        await wait_until(lambda: waiter._push)
        waiter.take_frame(frames[5])
        waiter.take_reply(Reply(id=waiter.id, run="a", frames=6), b"end", "")
    assert line.taken == [b"0", b"1", b"2", b"3", b"4", b"5", b"end"]


async def test_after_a_cancelled_wait_nothing_is_pushed(url: str) -> None:
    line = Line()
    async with connected_client(url, QUICK) as client:
        waiter = await client.submit(job_for(client, stream=True), b"{}")
        with anyio.move_on_after(0.01):
            await waiter.next(line.push)
        waiter.take_frame(Frame(waiter.id, "a", 0, b"0"))
        assert (await waiter.next()).data == b"0"
    assert line.taken == []


async def test_a_gap_ends_the_stream_and_cancels_the_job(url: str) -> None:
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client, stream=True), b"{}")
        await _publish(link, client, Frame(waiter.id, "a", 0, b"0"), Frame(waiter.id, "a", 2, b"2"))
        assert (await waiter.next()).data == b"0"
        with pytest.raises(WorkerLost):
            await waiter.next()
        await wait_until(lambda: link.run(("XLEN", keyspace.CANCEL)))
        assert client.status().waiting == 0


@pytest.mark.parametrize(
    "reply",
    [Reply(id="", run="b", frames=0), Reply(id="", run="b", frames=1), Reply(id="", run="a", frames=2)],
    ids=["another run", "another run of the same length", "frames missing"],
)
async def test_a_terminal_that_does_not_fit_the_bytes_is_a_lost_worker(url: str, reply: Reply) -> None:
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client, stream=True), b"{}")
        await _publish(link, client, Frame(waiter.id, "a", 0, b"0"))
        await _terminate(link, client, Reply(id=waiter.id, run=reply.run, frames=reply.frames))
        assert (await waiter.next()).data == b"0"
        with pytest.raises(WorkerLost):
            await waiter.next()


async def test_a_terminal_whose_frames_were_all_lost_is_no_empty_answer(url: str) -> None:
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client, stream=True), b"{}")
        await _terminate(link, client, Reply(id=waiter.id, run="a", frames=3))
        with pytest.raises(WorkerLost):
            await waiter.next()


async def test_an_unreadable_reply_hurts_nobody_else(url: str) -> None:
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client), b"{}")
        stream = keyspace.replies(client.consumer)
        for fields in (("t", b"\xc1"), ("f", b"\xff"), ("t", b"\x81\xa2id\xa1\xff"), ("x", "y")):
            await link.run(("XADD", stream, "*", *fields))
        await _terminate(link, client, Reply(id=waiter.id), b"fine")
        assert (await waiter.next()).body == b"fine"


async def test_a_client_that_reads_too_slowly_is_cancelled(url: str) -> None:
    ended = anyio.Event()

    async def flood(delivery):
        try:
            while True:
                await delivery.send(b"x" * 50_000)
                await anyio.lowlevel.checkpoint()
        finally:
            ended.set()

    async with (
        connected_client(url, QUICK) as client,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(flood))),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",), stream=True), b"{}")
        with anyio.fail_after(5):
            await ended.wait()
        read = 0
        while waiter._items:
            read += len((await waiter.next()).data)
        with pytest.raises(Cancelled, match="too slowly"):
            await waiter.next()
    assert replies.WAITER_BYTES < read < 2 * replies.WAITER_BYTES


async def test_one_large_event_does_not_make_a_client_slow(url: str) -> None:
    large = b"x" * (3 * replies.WAITER_BYTES)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client, stream=True), b"{}")
        await _publish(link, client, Frame(waiter.id, "a", 0, b"0"), Frame(waiter.id, "a", 1, large))
        with anyio.fail_after(5):
            assert (await waiter.next()).data == b"0"
            assert (await waiter.next()).data == large
            await _terminate(link, client, Reply(id=waiter.id, run="a", frames=2))
            assert (await waiter.next()).reply.frames == 2


async def test_a_client_that_reads_at_once_is_not_slow_however_much_comes_at_once(url: str) -> None:
    frames = [b"x" * 50_000] * (3 * replies.WAITER_BYTES // 50_000)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client, stream=True), b"{}")
        await _publish(link, client, *(Frame(waiter.id, "a", seq, data) for seq, data in enumerate(frames)))
        with anyio.fail_after(5):
            assert [(await waiter.next()).data for _ in frames] == frames


async def test_a_stage_that_sends_faster_than_redis_takes_is_slowed_down(url: str, monkeypatch) -> None:
    monkeypatch.setattr(writer, "CONGESTED_BYTES", 100_000)
    monkeypatch.setattr(replies, "WAITER_BYTES", 2**30)
    count = 40

    async def flood(delivery):
        for _ in range(count):
            await delivery.send(b"x" * 50_000)
        return Done()

    async with (
        connected_client(url, QUICK) as client,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(flood))),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",), stream=True), b"{}")
        with anyio.fail_after(5):
            frames = [await waiter.next() for _ in range(count)]
            assert (await waiter.next()).reply.frames == count
    assert sum(len(f.data) for f in frames) == count * 50_000


async def test_frames_to_an_ingress_that_vanished_end_the_work_and_leave_nothing_that_stays(url: str) -> None:
    ended = anyio.Event()

    async def chat(delivery):
        try:
            for _ in range(1000):
                await delivery.send(b"data")
                await anyio.sleep(0.01)
        finally:
            ended.set()

    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(chat))),
    ):
        job = job_for(client, stages_left=("dispatch",), stream=True, reply_to="ingress-gone")
        await client.submit(job, b"{}")
        with anyio.fail_after(2):
            await ended.wait()
        await wait_until(lambda: _gone(link, keyspace.jobs("dispatch", "live")))
        assert 0 < await link.run(("PTTL", keyspace.replies("ingress-gone"))) <= keyspace.REPLIES_TTL_MS


async def test_a_stream_whose_way_back_was_deleted_ends_in_an_error(url: str) -> None:
    go = anyio.Event()

    async def chat(delivery):
        await go.wait()
        await delivery.send(b"data")
        await anyio.sleep_forever()

    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(chat))),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",), stream=True), b"{}")
        await link.run(("UNLINK", keyspace.replies(client.consumer)))
        go.set()
        with anyio.fail_after(5):
            answer = await waiter.next()
        assert isinstance(answer, Answer)
        assert answer.reply.error is not None
        assert answer.reply.error.code == "worker_lost"


async def _gone(link, stream) -> bool:
    return await link.run(("XLEN", stream)) == 0


async def test_a_job_whose_ingress_is_gone_is_dropped_before_its_handler(url: str, monkeypatch) -> None:
    monkeypatch.setattr(registry, "GONE_AFTER", 0.3)
    dispatch = ScriptedStage(lambda d: d.send(b""))
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        rival = Rival(link, "dispatch")
        async with running_worker(url, QUICK, spec("dispatch", dispatch)):
            await wait_until(lambda: client._registry.workers["dispatch"])
            limit = anyio.current_time() + 0.8
            await wait_until(lambda: anyio.current_time() > limit)
            job = job_for(client, stages_left=("dispatch",), reply_to="ingress-gone")
            await rival.add(msgspec.structs.replace(job, admitted=job.admitted - 5000))
            await wait_until(lambda: _gone(link, rival.stream))
    assert dispatch.seen == []


async def test_an_ingress_that_was_only_away_hears_what_became_of_its_jobs(url: str, monkeypatch) -> None:
    monkeypatch.setattr(registry, "GONE_AFTER", 0.5)
    called = []

    async def call(delivery):
        called.append(delivery.job.id)
        if delivery.job.stream:
            await delivery.send(b"data")
        await anyio.sleep_forever()

    async with (
        proxy_to(url) as proxy,
        connected_client(proxy.url, QUICK) as client,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(call), slots=2)),
    ):
        jobs = [job_for(client, stages_left=("dispatch",), stream=stream) for stream in (False, True, False)]
        waiters = [await client.submit(job, b"{}") for job in jobs]
        assert isinstance(await waiters[1].next(), Frame)
        assert len(called) == 2, "the third waits for a slot"
        proxy.refuse = True
        proxy.cut()
        away = anyio.current_time() + 1.5
        await wait_until(lambda: anyio.current_time() > away)
        proxy.refuse = False
        with anyio.fail_after(5):
            answers = [await waiter.next() for waiter in waiters]
        assert [answer.reply.error.code for answer in answers] == ["redis_unavailable"] * 3
        assert len(called) == 2


async def test_a_terminal_for_a_vanished_ingress_does_not_stay(url: str) -> None:
    async def answer(delivery):
        return Done(b"x" * 100_000)

    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(answer))),
    ):
        await client.submit(job_for(client, stages_left=("dispatch",), reply_to="ingress-gone"), b"{}")
        await wait_until(lambda: link.run(("EXISTS", keyspace.replies("ingress-gone"))))
        assert 0 < await link.run(("PTTL", keyspace.replies("ingress-gone"))) <= 60_000


async def test_the_reply_stream_is_trimmed_by_its_owner(url: str, monkeypatch) -> None:
    monkeypatch.setattr(replies, "READ_COUNT", 4)

    async def answer(delivery):
        return Done(b"x")

    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(answer))),
    ):
        for _ in range(30):
            waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
            await waiter.next()
        assert await link.run(("XLEN", keyspace.replies(client.consumer))) < 12


async def test_answers_do_not_stay_in_redis_while_nothing_follows_them(url: str, monkeypatch) -> None:
    monkeypatch.setattr(replies, "BLOCK", 0.05)

    async def answer(delivery):
        return Done(b"x")

    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(answer))),
    ):
        stream = keyspace.replies(client.consumer)
        for _ in range(2):
            waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
            await waiter.next()
            await wait_until(lambda: _gone(link, stream), timeout=2)
        assert await link.run(("EXISTS", stream)) == 1, "frames are written only to a stream that is there"


async def test_a_large_answer_that_is_gone_is_an_error(url: str) -> None:
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client), b"{}")
        fields = ("t", encode(Reply(id=waiter.id)), "r", keyspace.body(waiter.id, "gone"))
        await link.run(("XADD", keyspace.replies(client.consumer), "*", *fields))
        with pytest.raises(TransportUnavailable):
            await waiter.next()


async def test_large_answers_do_not_stay_in_redis(url: str) -> None:
    async def answer(delivery):
        return Done(b"x" * 100_000)

    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(answer))),
    ):
        for _ in range(3):
            waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
            assert len((await waiter.next()).body) == 100_000
        (left,) = await link.run(("KEYS", keyspace.BODIES + "*"))
        assert 0 < await link.run(("PTTL", left)) <= 10_000
