"""The registry: who is up, who is gone, and what an outage says about neither."""

from __future__ import annotations

import anyio
import pytest
from fakes.pipelines import raw_link
from fakes.waiting import wait_until

from pipeline.job import BATCH, LANES, LIVE
from pipeline.transport import keyspace, registry
from pipeline.transport.clock import ServerClock
from pipeline.transport.registry import Registry, consumer_name, read_metrics, read_processes, this_process

pytestmark = pytest.mark.anyio


async def _registry(link, consumer: str, stages: tuple[str, ...] = (), lanes: tuple[str, ...] = LANES) -> Registry:
    clock = ServerClock()
    await clock.refresh(link)
    return Registry(link, clock, this_process(consumer, "worker", stages, "digest", lanes))


async def test_processes_see_each_other_until_they_leave(url: str) -> None:
    async with raw_link(url) as link:
        me, other = await _registry(link, "me"), await _registry(link, "other", ("dispatch",))
        await other.beat()
        await me.beat()
        assert me.live == {"me", "other"}
        assert me.workers["dispatch"] == 1
        assert me.without_worker("dispatch") == 0.0
        assert {name for name, _ in await read_metrics(link)} == {"me", "other"}
        await other.leave()
        await me.beat()
        assert me.live == {"me"}
        assert me.without_worker("dispatch") < 1
        await me.leave()
        assert await read_metrics(link) == []
        assert await read_processes(link, []) == []


async def test_what_rests_for_one_process_is_known_to_all(url: str) -> None:
    async with raw_link(url) as link:
        me, one, other = [await _registry(link, name) for name in ("me", "one", "other")]
        one.resting.models = lambda: {"gpt-4": 3.0, "small": 1.0}
        other.resting.models = lambda: {"gpt-4": 7.5}
        for process in (one, other, me):
            await process.beat()
        assert me.backing_off == {"gpt-4": 7.5, "small": 1.0}
        for process in (one, other, me):
            await process.leave()


async def test_a_fresh_process_calls_nobody_gone(url: str) -> None:
    async with raw_link(url) as link:
        me = await _registry(link, "me")
        await me.beat()
        assert not me.gone("never-seen", since_ms=0)
        assert me.without_worker("dispatch") < 1


async def test_a_process_is_gone_after_a_while_unless_its_job_is_younger(url: str, monkeypatch) -> None:
    monkeypatch.setattr(registry, "GONE_AFTER", 0.1)
    async with raw_link(url) as link:
        me = await _registry(link, "me")

        async def gone() -> bool:
            await me.beat()
            return me.gone("never-seen", since_ms=0)

        await wait_until(gone)
        assert not me.gone("never-seen", since_ms=me._clock.now())
        assert not me.gone("me", since_ms=0)


async def test_an_outage_makes_nobody_seem_gone(url: str, monkeypatch) -> None:
    monkeypatch.setattr(registry, "BEAT", 0.01)
    monkeypatch.setattr(registry, "GONE_AFTER", 0.2)
    async with raw_link(url) as link:
        me, other = await _registry(link, "me"), await _registry(link, "other", ("dispatch",))
        await other.beat()
        await me.beat()
        away = me._looked + 0.5
        await wait_until(lambda: anyio.current_time() > away)
        await link.run(("FLUSHALL",))  # what was registered has expired meanwhile
        await me.beat()
        assert not me.gone("other", since_ms=0)
        assert me.without_worker("dispatch") < 0.2


async def test_a_registration_that_does_not_decode_is_passed_over(url: str) -> None:
    async with raw_link(url) as link:
        me = await _registry(link, "me")
        soon = me._clock.now() + 10_000
        await link.run(("ZADD", keyspace.CONSUMERS, soon, b"\xff\xfe", soon, "garbage", soon, "empty"))
        await link.run(("HSET", keyspace.up("garbage"), "p", b"\xc1"))
        await link.run(("PEXPIRE", keyspace.up("garbage"), 10_000))
        await me.beat()
        assert me.live == {"me"}


async def test_a_registration_without_an_end_is_passed_over(url: str) -> None:
    async with raw_link(url) as link:
        me = await _registry(link, "me")
        await link.run(("ZADD", keyspace.CONSUMERS, "+inf", "immortal"))
        await me.beat()
        assert me.live == {"me"}


def test_consumer_names_are_never_equal() -> None:
    assert consumer_name("ingress") != consumer_name("ingress")
    assert consumer_name("ingress").startswith("ingress-")


async def test_a_process_that_serves_batches_alone_is_no_worker_for_live_jobs(url: str) -> None:
    async with raw_link(url) as link:
        me, other = await _registry(link, "me"), await _registry(link, "other", ("dispatch",), (BATCH,))
        await other.beat()
        await me.beat()
        assert me.live == {"me", "other"}
        assert me.workers["dispatch"] == 0
        await other.leave()
        await me.leave()


async def test_where_live_calls_met_a_limit_is_heard_by_the_processes_of_batches(url: str) -> None:
    heard: list[dict[str, float]] = []
    async with raw_link(url) as link:
        live = await _registry(link, "live", ("dispatch",), (LIVE,))
        both = await _registry(link, "both", ("dispatch",))
        me = await _registry(link, "me", ("dispatch",), (BATCH,))
        live.resting.deployments = lambda: {"a": 30.0}
        both.resting.deployments = lambda: {"b": 30.0}
        me.resting.heed = lambda resting: heard.append(dict(resting))
        for process in (live, both, me):
            await process.beat()
        assert heard == [{"a": pytest.approx(30, abs=1)}]
        for process in (live, both, me):
            await process.leave()
