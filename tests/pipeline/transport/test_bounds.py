"""What is kept in Redis and in worker processes has a limit, and what lies beyond it an honest answer."""

from __future__ import annotations

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
)
from fakes.waiting import wait_until

from pipeline.errors import PipelineError, UpstreamOverloaded
from pipeline.stage import Defer, Done
from pipeline.transport import keyspace, registry
from pipeline.transport.cancels import Cancels, cancellation
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import Link
from pipeline.transport.deadletters import list_dead
from pipeline.transport.writer import Writer

pytestmark = pytest.mark.anyio
QUICK = settings(transport=quick())


async def echo(delivery):
    return Done(delivery.body)


def test_every_key_belongs_to_one_family() -> None:
    keys = [
        keyspace.jobs("s", "l"),
        keyspace.held_bytes("s", "l"),
        keyspace.delayed("s", "l"),
        keyspace.body("j", "w"),
        keyspace.replies("c"),
        keyspace.lines("b"),
        keyspace.lease("b"),
        keyspace.streamed("j"),
        keyspace.up("c"),
        keyspace.admitted("c"),
        keyspace.CANCEL,
        keyspace.CONSUMERS,
        keyspace.DEAD,
    ]
    names = [key.removeprefix(keyspace.PREFIX) for key in keys]
    assert [sum(name.startswith(family) for family in keyspace.FAMILIES) for name in names] == [1] * len(names)
    assert len(names) == len(keyspace.FAMILIES)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (None, ("config_mismatch", 5.0, "do not know their models")),
        (UpstreamOverloaded("it rests", retry_after=30.0), ("upstream_rate_limited", 30.0, "it rests")),
    ],
)
async def test_a_job_that_is_put_off_when_too_many_are_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch, refusal: PipelineError | None, told: tuple[str, float, str]
) -> None:
    monkeypatch.setattr(keyspace, "DELAYED_LIMIT", 2)

    async def defer(delivery):
        return Defer(30.0, msgspec.structs.replace(delivery.job, deferrals=1), otherwise=refusal)

    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        async with running_worker(url, QUICK, spec("dispatch", ScriptedStage(defer), slots=1)):
            waiters = [
                await client.submit(job_for(client, stages_left=("dispatch",)), body)
                for body in (b"1", b"2", b"3", b"4" * 100_000)
            ]
            for waiter in waiters[2:]:
                with anyio.fail_after(5):
                    reply = (await waiter.next()).reply
                assert reply.error is not None
                assert (reply.error.code, reply.error.retry_after) == told[:2]
                assert told[2] in reply.error.message
        assert await link.run(("ZCARD", keyspace.delayed("dispatch", "live"))) == 2
        assert await link.run(("XLEN", keyspace.jobs("dispatch", "live"))) == 0
        await link.run(("DEL", keyspace.delayed("dispatch", "live")))


async def test_cancellations_are_bounded_in_redis_and_in_a_worker(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyspace, "CANCEL_LIMIT", 300)
    async with raw_link(url) as link:
        clock = ServerClock()
        await clock.refresh(link)
        cancels = Cancels(link, clock, 60.0)
        for first in range(0, 1000, 100):
            burst = [(f"job-{n}", clock.now() + 60_000) for n in range(first, first + 100)]
            await link.run(cancellation(burst, 0))
            await cancels.replay()
        assert 300 <= await link.run(("XLEN", keyspace.CANCEL)) < 500
    assert len(cancels._deadlines) == 300
    assert "job-999" in cancels
    assert "job-0" not in cancels


async def test_dead_letters_are_bounded_in_number_and_in_size(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyspace, "DEAD_LIMIT", 20)
    config = settings(transport=quick(dead_letter_bodies=True))
    async with raw_link(url) as link:
        rival = Rival(link, "dispatch")
        job = make_job(stages_left=("dispatch",), model="ü" * 5000)
        for size in [keyspace.DEAD_BODY_LIMIT] * 60 + [keyspace.DEAD_BODY_LIMIT + 1]:
            await rival.add(job, b"x" * size)
        await rival.age(*await rival.fetch(), number=3)
        async with running_worker(url, config, spec("dispatch", ScriptedStage(echo))):
            await wait_until(lambda: _empty(link, rival.stream), timeout=20)
        letters = await list_dead(url, 1000)
        assert 20 <= len(letters) <= 25
        assert sorted(letter.has_body for letter in letters) == [False] + [True] * (len(letters) - 1)
        assert {len(letter.model) for letter in letters} == {keyspace.DEAD_TEXT_LIMIT}
        assert {letter.reason for letter in letters} == {"poison"}
        largest = await link.run(("MEMORY", "USAGE", keyspace.DEAD, "SAMPLES", 0)) / len(letters)
    assert 10_000 * largest < 300 * 2**20


async def _empty(link: Link, stream: str) -> bool:
    return int(await link.run(("XLEN", stream))) == 0


async def test_a_worker_that_cannot_write_does_not_read_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write, go = Writer._write, anyio.Event()

    async def blocked(writer: Writer) -> None:
        await go.wait()
        await write(writer)

    monkeypatch.setattr(Writer, "_write", blocked)
    dispatch = ScriptedStage(echo)
    async with raw_link(url) as link:
        rival = Rival(link, "dispatch")
        for _ in range(50):
            await rival.add(make_job(stages_left=("dispatch",)))
        async with running_worker(url, QUICK, spec("dispatch", dispatch, slots=4)):
            await wait_until(lambda: len(dispatch.seen) == 8)
            with pytest.raises(AssertionError):
                await wait_until(lambda: len(dispatch.seen) > 8, timeout=0.5)
            go.set()
            await wait_until(lambda: _empty(link, rival.stream))
    assert len(dispatch.seen) == 50


async def test_work_for_an_ingress_process_that_is_gone_ends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "GONE_AFTER", 1.0)
    ended = anyio.Event()

    async def call(_):
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    dispatch = ScriptedStage(call)
    async with running_worker(url, QUICK, spec("dispatch", dispatch)), raw_link(url) as link:
        clock = ServerClock()
        await clock.refresh(link)
        job = make_job(stages_left=("dispatch",), reply_to="ingress-of-old", admitted=clock.now())
        await Rival(link, "dispatch").add(job)
        await wait_until(lambda: dispatch.seen)
        with anyio.fail_after(5):
            await ended.wait()
        await wait_until(lambda: _empty(link, keyspace.jobs("dispatch", "live")))
