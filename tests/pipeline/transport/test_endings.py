"""Jobs that do not simply succeed: poison, unreadable entries, bugs, deferrals, deadlines."""

from __future__ import annotations

import asyncio

import anyio
import msgspec
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
from fakes.waiting import wait_until

from pipeline.errors import DeadlineExceeded, InvalidRequest
from pipeline.job import BATCH, Facts, PromptRef, encode
from pipeline.stage import Defer, Done, Fail, Forward
from pipeline.transport import keyspace
from pipeline.transport.deadletters import drop_dead, list_dead, read_dead
from pipeline.transport.overview import COUNTED, read_overview
from pipeline.transport.suspects import suspect_caps

pytestmark = pytest.mark.anyio
QUICK = settings(transport=quick())


async def echo(delivery):
    return Done(delivery.body)


async def test_the_circle_of_suspects_narrows_to_one() -> None:
    assert suspect_caps(3, 64) == {2: 8, 3: 1}
    assert suspect_caps(5, 2000)[5] == 1
    assert suspect_caps(1, 64) == {}
    assert suspect_caps(2, 1) == {2: 1}


async def test_a_poison_job_becomes_a_dead_letter_and_its_client_gets_an_error(url: str) -> None:
    dispatch = ScriptedStage(echo)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        rival = Rival(link, "dispatch")
        job = job_for(client, stages_left=("dispatch",), model="m", prompt=PromptRef(id="greet"))
        waiter = await client.submit(job, b"secret")
        (entry,) = await rival.fetch()
        await rival.age(entry, number=3)
        async with running_worker(url, QUICK, spec("dispatch", dispatch)):
            with anyio.fail_after(5):
                answer = await waiter.next()
        assert "took its process down" in answer.reply.error.message
        assert answer.reply.facts.prompt_id == "greet"
        assert dispatch.seen == []
        assert await link.run(("XLEN", rival.stream)) == 0
    (letter,) = await list_dead(url)
    assert (letter.reason, letter.deliveries, letter.job_id, letter.has_body) == ("poison", 4, waiter.id, False)
    assert (await read_dead(url, letter.id)) == letter
    assert await read_dead(url, "1-1") is None
    assert await drop_dead(url, []) == 0
    assert await drop_dead(url, [letter.id]) == 1
    assert await drop_dead(url, None) == 0


async def test_neighbours_of_a_poison_are_answered_while_suspects_run_alone(url: str) -> None:
    running, most = 0, 0

    async def count(delivery):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        return Done(b"%d" % delivery.number)

    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        rival = Rival(link, "dispatch")
        waiters = [await client.submit(job_for(client, stages_left=("dispatch",)), b"{}") for _ in range(4)]
        entries = await rival.fetch()
        await rival.age(*entries, number=2)
        await rival.age(entries[1], number=3)
        async with running_worker(url, QUICK, spec("dispatch", ScriptedStage(count), slots=16)):
            with anyio.fail_after(10):
                answers = [await waiter.next() for waiter in waiters]
    assert [a.body for a in answers] == [b"3", b"", b"3", b"3"]
    assert answers[1].reply.error is not None
    assert most == 1
    assert await drop_dead(url, None) == 1


async def test_a_suspect_without_room_is_handed_back_as_it_was(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url, slots=16) as stream:
        rival = Rival(link, "dispatch")
        entries = [await rival.put("h", b"x", "b", b"") for _ in range(5)]
        await rival.fetch()
        await rival.age(*entries, number=2)
        (claimed,) = await stream.fetch(16)
        assert claimed.number == 3
        assert sorted(number for _, number in (await rival.pending()).values()) == [2, 2, 2, 2, 3]
        stream._read_failed = True
        assert await stream.fetch(16) == []  # nor does its history bring them back


UNREADABLE = [
    ("b", b"no header"),
    ("h", b"\xc1 not msgpack", "b", b"{}"),
    ("h", b"\x81\xa2id\xa1\xff", "b", b"{}"),
    ("", ""),
    ("h", b"", "s", "9" * 5000),
    ("h", b"\x91" * 5000),
    ("h", encode(make_job(stages_left=("dispatch",))), "r", b"\xff\xfe"),
    ("h", encode(make_job(stages_left=("dispatch",))), "r", keyspace.DEAD),
    ("h", encode(make_job(stages_left=()))),
    ("h", encode(make_job(stages_left=("resolve", "dispatch")))),
    ("h", encode(make_job(stages_left=("dispatch",), lane=BATCH))),
]


async def test_entries_that_do_not_decode_are_dead_letters_at_first_sight(url: str) -> None:
    dispatch = ScriptedStage(echo)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        rival = Rival(link, "dispatch")
        for fields in UNREADABLE:
            await rival.put(*fields)
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"neighbour")
        async with running_worker(url, QUICK, spec("dispatch", dispatch)):
            with anyio.fail_after(5):
                assert (await waiter.next()).body == b"neighbour"
            await wait_until(lambda: _empty(link, rival.stream))
            assert await rival.pending() == {}
    letters = await list_dead(url)
    assert [letter.reason for letter in letters] == ["unreadable"] * len(UNREADABLE)
    assert len(dispatch.seen) == 1


async def _empty(link, stream) -> bool:
    return await link.run(("XLEN", stream)) == 0


async def test_a_bug_in_a_stage_ends_one_job_in_the_dead_letters(url: str) -> None:
    async def buggy(delivery):
        match delivery.body:
            case b"raise":
                raise ValueError("a bug")
            case b"forward":
                return Forward(delivery.job, b"to where?")
            case b"type":
                return Done("text")
            case b"cancelled":
                task = asyncio.ensure_future(asyncio.sleep(60))
                task.cancel()
                await task
            case b"foreseen":
                raise InvalidRequest("not like this")
        return Done(b"fine")

    keep = settings(transport=quick(dead_letter_bodies=True))
    async with (
        connected_client(url, keep) as client,
        running_worker(url, keep, spec("dispatch", ScriptedStage(buggy))),
    ):
        bodies = (b"raise", b"forward", b"type", b"cancelled", b"foreseen", b"fine")
        waiters = [await client.submit(job_for(client, stages_left=("dispatch",)), body) for body in bodies]
        with anyio.fail_after(5):
            answers = [await waiter.next() for waiter in waiters]
    assert [a.reply.error and a.reply.error.code for a in answers] == [*["internal_error"] * 4, "invalid_request", None]
    letters = await list_dead(url)
    reasons = {letter.reason for letter in letters}
    assert reasons == {"bug: ValueError", "bug: IndexError", "bug: TypeError", "bug: CancelledError"}
    assert any(letter.has_body for letter in letters)


async def test_a_failure_tells_its_facts(url: str) -> None:
    async def fail(delivery):
        return Fail(InvalidRequest("no"), Facts(model="tried", attempts=3))

    async with (
        connected_client(url, QUICK) as client,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(fail))),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        assert (await waiter.next()).reply.facts == Facts(model="tried", attempts=3)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_deferred_job_comes_back_as_first_delivery_and_no_byte_is_lost_count_of(url: str, size: int) -> None:
    async def defer_twice(delivery):
        if delivery.job.deferrals < 2:
            job = msgspec.structs.replace(delivery.job, deferrals=delivery.job.deferrals + 1)
            return Defer(0.05, job)
        return Forward(delivery.job, delivery.body)

    resolve = ScriptedStage(defer_twice)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client), b"x" * size)
        stages = (spec("resolve", resolve), spec("dispatch", ScriptedStage(echo)))
        async with running_worker(url, QUICK, *stages):
            with anyio.fail_after(5):
                assert (await waiter.next()).body == b"x" * size
        for stage in ("resolve", "dispatch"):
            assert await link.run(("EXISTS", keyspace.held_bytes(stage, "live"), keyspace.delayed(stage, "live"))) == 0
            assert await link.run(("XLEN", keyspace.jobs(stage, "live"))) == 0
        bodies = [
            key for key in await link.run(("KEYS", keyspace.BODIES + "*")) if await link.run(("PTTL", key)) > 11_000
        ]
        assert bodies == []
    assert [d.number for d in resolve.seen] == [1, 1, 1]


async def test_a_due_job_is_moved_once_although_something_foreign_stands_where_bytes_are_counted(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url) as stream:
        member = b"%08d%bb%010d%b" % (6, b"header", 4, b"body")
        await link.run(("ZADD", keyspace.delayed("dispatch", "live"), 1, member))
        await link.run(("SET", keyspace.held_bytes("dispatch", "live"), "foreign"))
        for _ in range(2):
            await link.call(*stream.move_due())
        assert await link.run(("XLEN", keyspace.jobs("dispatch", "live"))) == 1
        assert await link.run(("GET", keyspace.held_bytes("dispatch", "live"))) == b"4"
        await link.run(("FLUSHALL",))


async def test_many_due_jobs_are_moved_at_once_and_garbage_among_them_is_a_dead_letter(url: str) -> None:
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        delayed = keyspace.delayed("dispatch", "live")
        await link.run(("ZADD", delayed, 1, b"garbage", 2, b"00000001x", 3, b""))

        async def defer(delivery):
            if delivery.job.deferrals:
                return Done(b"done")
            return Defer(0.0, msgspec.structs.replace(delivery.job, deferrals=1))

        async with running_worker(url, QUICK, spec("dispatch", ScriptedStage(defer), slots=512)):
            waiters = [await client.submit(job_for(client, stages_left=("dispatch",)), b"{}") for _ in range(300)]
            with anyio.fail_after(5):
                for waiter in waiters:
                    assert (await waiter.next()).body == b"done"
            await wait_until(lambda: _empty(link, keyspace.jobs("dispatch", "live")))
    assert await drop_dead(url, None) == 3


async def test_a_job_past_its_deadline_is_dropped_before_its_stage_sees_it(url: str) -> None:
    dispatch = ScriptedStage(echo)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client, seconds=0.05, stages_left=("dispatch",)), b"{}")
        await wait_until(lambda: client.now() > waiter.deadline)
        async with running_worker(url, QUICK, spec("dispatch", dispatch)):
            with anyio.fail_after(5):
                answer = await waiter.next()
        assert answer.reply.error.code == "deadline_exceeded"
        assert dispatch.seen == []
        assert await link.run(("XLEN", keyspace.DEAD)) == 0


async def test_a_deadline_ends_the_work_in_a_stage(url: str) -> None:
    async def forever(delivery):
        await anyio.sleep_forever()

    async with (
        connected_client(url, QUICK) as client,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(forever))),
    ):
        waiter = await client.submit(job_for(client, seconds=0.3, stages_left=("dispatch",)), b"{}")
        with anyio.fail_after(1.2):
            answer = await waiter.next()
    assert (answer.reply.error.code, answer.reply.error.stage) == ("deadline_exceeded", "dispatch")


async def test_a_waiter_nobody_answers_gives_up_soon_after_its_deadline(url: str) -> None:
    async with connected_client(url, QUICK) as client:
        waiter = await client.submit(job_for(client, seconds=0.1), b"{}")
        with anyio.fail_after(3), pytest.raises(DeadlineExceeded):
            await waiter.next()
        assert client.status().waiting == 0


async def test_the_overview_counts_what_is_where(url: str) -> None:
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        rival = Rival(link, "resolve")
        for _ in range(3):
            await client.submit(job_for(client), b"12345")
        await rival.fetch(1)
        overview = await read_overview(url, ("resolve", "dispatch"))
    (resolve, *others) = overview.stages
    assert (resolve.stage, resolve.lane, resolve.backlog, resolve.pending, resolve.bytes) == (
        "resolve",
        "live",
        2,
        1,
        15,
    )
    assert resolve.oldest_seconds >= 0
    assert [o.backlog for o in others] == [0, 0, 0]
    assert [p.role for p in overview.processes] == ["ingress"]
    assert " at /" in overview.server.name
    assert overview.server.memory > 0
    assert (overview.server.eviction, overview.server.persistence) == ("noeviction", "append-only file")
    assert overview.counts.keys() == COUNTED.keys()
