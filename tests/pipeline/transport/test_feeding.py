"""The feed's side of the transport: answers wait for their collector, losses are noticed, leases have one holder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from fakes.configs import settings as make_settings
from fakes.deliveries import make_job
from fakes.pipelines import ScriptedStage, forward, quick, raw_link, running_worker, spec
from fakes.proxy import proxy_to
from fakes.waiting import wait_until

from pipeline.errors import TransportError
from pipeline.job import BATCH, Job, Reply, encode
from pipeline.settings import Settings
from pipeline.stage import Defer, Delivery, Done, Outcome
from pipeline.transport import connection, feeding, keyspace, stage_stream, worker
from pipeline.transport.feeding import Arrived, FeedTransport, LineStream

pytestmark = pytest.mark.anyio

LARGE = b'"' + b"x" * 100_000 + b'"'


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(feeding, "BLOCK", 0.05)
    monkeypatch.setattr(feeding, "BEAT", 0.2)
    return make_settings(transport=quick())


@asynccontextmanager
async def feeding_to(url: str, settings: Settings) -> AsyncIterator[FeedTransport]:
    transport = FeedTransport(settings, url)
    async with transport.running():
        await wait_until(lambda: transport.connected, timeout=10)
        yield transport


@asynccontextmanager
async def lines_of(transport: FeedTransport, batch: str) -> AsyncIterator[LineStream]:
    stream = transport.line_stream(batch)
    await stream.listen()
    try:
        yield stream
    finally:
        await stream.close()


def batch_job(transport: FeedTransport, name: str, *stages_left: str) -> Job:
    now = transport.now()
    return make_job(id=name, stages_left=stages_left or ("dispatch",), lane=BATCH, reply_to="lines:b", admitted=now,
                    since=now, deadline=now + 60_000)  # fmt: skip


async def answer(delivery: Delivery) -> Outcome:
    return Done(LARGE if delivery.job.id.endswith("large") else delivery.body)


async def read(stream: LineStream, count: int) -> list[Arrived]:
    found: list[Arrived] = []
    with anyio.fail_after(10):
        while len(found) < count:
            found += await stream.read()
    return found


async def test_answers_wait_until_they_are_settled_and_large_ones_are_fetched(url: str, settings: Settings) -> None:
    async with (
        feeding_to(url, settings) as transport,
        running_worker(url, settings, spec("dispatch", ScriptedStage(answer))),
        raw_link(url) as link,
    ):
        jobs = [(batch_job(transport, name), b'"body"') for name in ("0-small", "0-large")]
        async with lines_of(transport, "b") as stream:
            assert all(await transport.add(jobs))
            first = await read(stream, 2)
        async with lines_of(transport, "b") as stream:  # whoever comes next gets them as well
            again = await read(stream, 2)
            assert {a.reply.id: await stream.body(a) for a in again} == {"0-small": b'"body"', "0-large": LARGE}
            assert {a.reply.id for a in first} == {a.reply.id for a in again}
            assert await link.run(("PTTL", keyspace.lines("b"))) > 23 * 3_600_000
            stream.settle()
            await stream.read()
            assert await link.run(("XLEN", keyspace.lines("b"))) == 1
            assert await link.run(("EXISTS", *(a.reference for a in again if a.reference))) == 0
        assert not (await transport.under_way("b")).jobs


async def test_answers_come_on_a_slow_way_too(url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "READ_COUNT", 16)
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT", 0.5)
    async with raw_link(url) as link, proxy_to(url) as proxy:
        for number in range(16):
            reply = encode(Reply(id=f"0-b-{number}-1.1"))
            await link.run(("XADD", keyspace.lines("b"), "*", "t", reply, "b", b"x" * 50_000))
        await link.run(("PEXPIRE", keyspace.lines("b"), 60_000))
        proxy.rate = 1_200_000  # 16 of them take longer than an answer may, half of them do not
        stream, found = FeedTransport(settings, proxy.url).line_stream("b"), 0
        with anyio.fail_after(10):
            while found < 16:
                with suppress(TransportError):
                    found += len(await stream.read())
        await stream.close()


async def test_answers_that_nobody_listens_for_wait_as_long_as_a_batch_has(url: str, settings: Settings) -> None:
    async with (
        feeding_to(url, settings) as transport,
        running_worker(url, settings, spec("dispatch", ScriptedStage(answer))),
        raw_link(url) as link,
    ):
        await transport.add([(batch_job(transport, "0-a"), b"{}")])

        async def answered() -> bool:
            return bool(await link.run(("XLEN", keyspace.lines("b"))))

        await wait_until(answered)
        assert await link.run(("PTTL", keyspace.lines("b"))) > 23 * 3_600_000


async def test_batch_jobs_that_hold_all_they_may_do_not_hold_up_the_next(
    url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_stream, "BLOCK", 0.5)
    async with (
        feeding_to(url, settings) as transport,
        running_worker(url, settings, spec("dispatch", ScriptedStage(answer), slots=4)),
        lines_of(transport, "b") as stream,
    ):
        await transport.add([(batch_job(transport, f"0-{number}"), b"{}") for number in range(90)])
        with anyio.fail_after(5):  # 30 rounds, which half a second each would make 15
            await read(stream, 90)


async def test_the_jobs_of_a_batch_are_found_wherever_they_are(url: str, settings: Settings) -> None:
    async def put_one_off(delivery: Delivery) -> Outcome:
        return Defer(60.0, delivery.job) if delivery.job.id == "0-b-7-1.1" else Done()

    async with feeding_to(url, settings) as transport, raw_link(url) as link:
        ids = [f"0-b-{number}-1.1" for number in range(600)]
        assert all(
            await transport.add([(batch_job(transport, name), b'"0-b-999-9.9"') for name in ("0-c-1-1.1", *ids)])
        )
        found = await transport.under_way("b")
        assert sorted(found.jobs) == sorted(ids)
        assert found.last_answer == "0-0"
        async with running_worker(url, settings, spec("dispatch", ScriptedStage(put_one_off))):

            async def one_is_left() -> bool:
                return (await transport.under_way("b")).jobs == {"0-b-7-1.1"}

            await wait_until(one_is_left, timeout=10)
        (newest, _), *_ = await link.run(("XREVRANGE", keyspace.lines("b"), "+", "-", "COUNT", 1))
        found = await transport.under_way("b")
        assert found.last_answer == newest.decode()
        async with lines_of(transport, "b") as stream:
            assert not stream.has_concluded(found.last_answer)
            await read(stream, 599)
            assert not stream.has_concluded(found.last_answer)
            await stream.read()
            assert stream.has_concluded(found.last_answer)


async def test_jobs_are_found_while_they_go_from_place_to_place(
    url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "FIND_COUNT", 4)
    monkeypatch.setattr(worker, "MOVE_EVERY", 0.001)

    async def put_off(delivery: Delivery) -> Outcome:
        return Defer(0.0, delivery.job)

    stages = (spec("resolve", ScriptedStage(forward), slots=2), spec("dispatch", ScriptedStage(put_off), slots=64))
    async with feeding_to(url, settings) as transport, raw_link(url) as link:
        ids = {f"0-b-{number}-1.1" for number in range(40)}
        await transport.add([(batch_job(transport, name, "resolve", "dispatch"), b"{}") for name in ids])
        async with running_worker(url, settings, *stages):
            for _ in range(10):
                assert (await transport.under_way("b")).jobs == ids
        await link.run(("FLUSHALL",))


async def test_a_flush_is_noticed_with_what_it_took(url: str, settings: Settings) -> None:
    async with feeding_to(url, settings) as transport, raw_link(url) as link:
        lost: list[int] = []
        transport.on_lost["b"] = lost.append
        (batch,) = await transport.add([(batch_job(transport, "0-a"), b"{}")])
        assert batch > 0
        await link.run(("FLUSHALL",))
        await wait_until(lambda: lost)
        assert max(lost) < batch


async def test_who_admits_nothing_for_long_has_lost_nothing(
    url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyspace, "ADMITTED_TTL_MS", 400)
    async with feeding_to(url, settings) as transport, raw_link(url) as link:
        lost: list[int] = []
        transport.on_lost["b"] = lost.append
        await transport.add([(batch_job(transport, "0-a"), b"{}")])
        since = anyio.current_time()
        await wait_until(lambda: lost or anyio.current_time() > since + 1)
        assert not lost
        assert await link.run(("EXISTS", keyspace.admitted(transport.consumer)))


async def test_a_lease_has_one_holder_and_goes_to_another_when_it_is_given_up(url: str, settings: Settings) -> None:
    async with feeding_to(url, settings) as one, feeding_to(url, settings) as other:
        assert await one.lease("b")
        assert not await other.lease("b")
        await other.release("b")  # which is not theirs
        assert not await other.lease("b")
        await one.release("b")
        assert await other.lease("b")


async def test_a_lease_is_renewed_for_as_long_as_its_holder_lives(url: str, settings: Settings) -> None:
    async with feeding_to(url, settings) as one, raw_link(url) as link:
        assert await one.lease("b")
        await link.run(("PEXPIRE", keyspace.lease("b"), 300))

        async def renewed() -> bool:
            return bool(await link.run(("PTTL", keyspace.lease("b"))) > 500)

        await wait_until(renewed)
        await link.run(("FLUSHALL",))
        await wait_until(renewed)


async def test_a_lease_can_be_taken_in_a_full_server(url: str, settings: Settings) -> None:
    async with feeding_to(url, settings) as transport, raw_link(url) as link:
        (_, before) = await link.run(("CONFIG", "GET", "maxmemory"))
        await link.run(("CONFIG", "SET", "maxmemory", 1))
        try:
            assert await transport.lease("b")
        finally:
            await link.run(("CONFIG", "SET", "maxmemory", before))
