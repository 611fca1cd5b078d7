"""Redis that is away, slow, flushed, restarted: nothing hangs, nothing spins, nothing runs twice."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from chaos.wire import Wire
from fakes.configs import settings
from fakes.deliveries import make_job
from fakes.pipelines import (
    Rival,
    ScriptedStage,
    connected_client,
    forward,
    job_for,
    quick,
    raw_link,
    running_worker,
    spec,
    stage_stream,
)
from fakes.proxy import proxy_to
from fakes.servers import start_server
from fakes.waiting import wait_until
from redis.exceptions import ResponseError

from pipeline.errors import ConfigurationError, TransportFull, TransportUnavailable
from pipeline.job import Reply, encode
from pipeline.stage import Done
from pipeline.transport import client as client_module
from pipeline.transport import connection, keyspace
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import LISTEN, Backoff, Link
from pipeline.transport.delivery import HeldDelivery, Source
from pipeline.transport.writer import Writer

pytestmark = pytest.mark.anyio
QUICK = settings(transport=quick())


async def echo(delivery):
    return Done(delivery.body)


async def _ask(client, body: bytes = b"{}") -> bytes:
    waiter = await client.submit(job_for(client), body)
    with anyio.fail_after(5):
        return (await waiter.next()).body


@pytest.mark.parametrize(
    "disaster",
    [
        ("SCRIPT", "FLUSH"),
        ("DEL", keyspace.jobs("resolve", "live")),
        ("XGROUP", "DESTROY", keyspace.jobs("dispatch", "live"), keyspace.GROUP),
        ("DEL", keyspace.jobs("dispatch", "batch")),
        ("FLUSHALL",),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("CLIENT", "PAUSE", 300, "ALL"),
    ],
    ids=lambda command: " ".join(str(word) for word in command[:2]),
)
async def test_the_pipeline_heals_itself_after(url: str, disaster: tuple[str, ...]) -> None:
    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("resolve", ScriptedStage(forward)), spec("dispatch", ScriptedStage(echo))),
    ):
        assert await _ask(client, b"before") == b"before"
        await link.call(disaster)
        limit = anyio.current_time() + 5

        async def answered() -> bool:
            try:
                with anyio.fail_after(1):
                    waiter = await client.submit(job_for(client), b"after")
                    return (await waiter.next()).body == b"after"
            except (TimeoutError, TransportUnavailable):
                return False

        await wait_until(answered, timeout=5)
        assert anyio.current_time() < limit


@pytest.mark.parametrize(
    "disaster", [("FLUSHALL",), ("XGROUP", "DESTROY", keyspace.jobs("dispatch", "live"), "workers")]
)
async def test_work_in_hand_is_answered_although_its_group_was_lost(url: str, disaster: tuple[str, ...]) -> None:
    go = anyio.Event()

    async def wait(delivery):
        await go.wait()
        return Done(b"in hand")

    dispatch = ScriptedStage(wait)
    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, QUICK, spec("dispatch", dispatch)),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        await wait_until(lambda: dispatch.seen)
        await link.call(disaster)
        limit = anyio.current_time() + 1.0  # long enough for a renewal to miss it
        await wait_until(lambda: anyio.current_time() > limit)
        go.set()
        with anyio.fail_after(3):
            assert (await waiter.next()).body == b"in hand"
        await wait_until(lambda: link.run(("EXISTS", keyspace.jobs("dispatch", "live"))))
    assert len(dispatch.seen) == 1


async def test_an_outcome_that_meets_a_lost_group_is_still_told_to_its_client(url: str) -> None:
    async with connected_client(url, QUICK) as client, raw_link(url) as link:

        async def destroy(delivery):
            await link.call(("XGROUP", "DESTROY", keyspace.jobs("dispatch", "live"), keyspace.GROUP))
            return Done(b"told")

        dispatch = ScriptedStage(destroy)
        async with running_worker(url, QUICK, spec("dispatch", dispatch, slots=1)):
            waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
            with anyio.fail_after(3):
                assert (await waiter.next()).body == b"told"
        await link.run(("UNLINK", keyspace.jobs("dispatch", "live")))


async def test_after_a_failover_everybody_comes_to_the_new_primary(url: str, tmp_path: Path) -> None:
    stages = (spec("resolve", ScriptedStage(forward)), spec("dispatch", ScriptedStage(echo)))
    async with proxy_to(url) as proxy, raw_link(url) as old:
        with start_server(tmp_path) as promoted:
            async with connected_client(proxy.url, QUICK) as client, running_worker(proxy.url, QUICK, *stages):
                assert await _ask(client, b"before") == b"before"
                await old.run(("REPLICAOF", "127.0.0.1", 1))  # it lives on, and lets its clients keep their connections
                proxy.move_to(promoted.url)

                async def answered() -> bool:
                    try:
                        return await _ask(client, b"after") == b"after"
                    except (TimeoutError, TransportUnavailable):
                        return False

                try:
                    await wait_until(answered, timeout=10)
                finally:
                    await old.run(("REPLICAOF", "NO", "ONE"))
                    await old.run(("FLUSHALL",))


async def test_the_rest_goes_on_when_an_outcome_is_the_first_to_meet_a_lost_group(url: str) -> None:
    async with raw_link(url) as link, stage_stream(url) as stream:
        rival = Rival(link, "dispatch")
        await stream.prepare()
        for _ in range(2):
            await rival.add(make_job(stages_left=("dispatch",), reply_to="ingress"))
        first, second = await stream.fetch(4)
        await link.run(("FLUSHALL",))
        stream._writer.settle(first, Done(b"told"))
        stream._writer.finish()
        await stream._writer.run()
        assert await link.run(("XLEN", keyspace.replies("ingress"))) == 1
        await stream.fetch(1)
        await stream.renew()
        assert second.end is None, "nobody else can have it: the group knew of nobody when it was made"
        await link.run(("UNLINK", rival.stream))


async def test_jobs_that_redis_lost_are_answered_with_an_error_soon(url: str, monkeypatch) -> None:
    monkeypatch.setattr(client_module, "LOST_AFTER", 0.3)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        lost = await client.submit(job_for(client), b"{}")
        await link.run(("FLUSHALL",))
        kept = await client.submit(job_for(client), b"{}")
        with anyio.fail_after(4), pytest.raises(TransportUnavailable, match="lost"):
            await lost.next()
        assert client.status().waiting == 1
        kept.cancel()


async def test_jobs_of_a_deleted_stream_are_answered_with_an_error_soon(url: str, monkeypatch) -> None:
    monkeypatch.setattr(client_module, "LOST_AFTER", 0.3)
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        both, one = ("resolve", "dispatch"), ("dispatch",)
        through, straight = [await client.submit(job_for(client, stages_left=left), b"{}") for left in (both, one)]
        await wait_until(lambda: client._losses._added == dict.fromkeys(both, 1))
        await link.run(("DEL", keyspace.jobs("resolve", "live")))
        with anyio.fail_after(4), pytest.raises(TransportUnavailable, match="lost"):
            await through.next()
        assert client.status().waiting == 1, "whose stages do not include the lost one"
        straight.cancel()


async def test_jobs_admitted_before_redis_was_killed_are_answered_after_its_restart(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        dispatch = ScriptedStage(echo)
        async with connected_client(server.url, QUICK) as client, raw_link(server.url) as link:
            waiters = [await client.submit(job_for(client), b"%d" % n) for n in range(20)]
            await wait_until(lambda: _synced(link))
            server.kill()
            with anyio.fail_after(5), pytest.raises(TransportUnavailable):
                await client.submit(job_for(client), b"{}")
            stages = (spec("resolve", ScriptedStage(forward)), spec("dispatch", dispatch))
            async with running_worker(server.url, QUICK, *stages):
                await anyio.to_thread.run_sync(server.restart)
                with anyio.fail_after(8):
                    assert [(await w.next()).body for w in waiters] == [b"%d" % n for n in range(20)]
                await wait_until(lambda: client.status().connected)
                assert await _ask(client) == b"{}"
    assert len({d.job.id for d in dispatch.seen}) == len(dispatch.seen)


async def _synced(link: Link) -> bool:
    info = dict(line.split(b":", 1) for line in (await link.run(("INFO", "persistence"))).splitlines() if b":" in line)
    if b"aof_pending_bio_fsync" not in info:
        return True
    await link.run(("CONFIG", "SET", "appendfsync", "always"))
    await link.run(("SET", "sync", 1, "PX", 1))
    return info[b"aof_pending_bio_fsync"] == b"0"


async def test_while_redis_is_away_nobody_spins_and_everybody_comes_back(url: str, monkeypatch) -> None:
    monkeypatch.setattr(client_module, "BEAT", 30)  # requests keep coming: the client does not know yet
    async with proxy_to(url) as proxy:
        stages = (spec("resolve", ScriptedStage(forward)), spec("dispatch", ScriptedStage(echo)))
        async with connected_client(proxy.url, QUICK) as client, running_worker(proxy.url, QUICK, *stages):
            assert await _ask(client) == b"{}"
            proxy.refuse = True
            proxy.cut()
            before, start = proxy.connections, anyio.current_time()

            async def insist() -> None:
                while anyio.current_time() < start + 2:
                    try:
                        (await client.submit(job_for(client), b"{}")).cancel()
                    except TransportUnavailable:
                        await anyio.sleep(0.001)

            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(insist)
            assert proxy.connections - before < 2 * 50 * 2  # two processes' worth, for two seconds
            proxy.refuse = False

            async def answered() -> bool:
                try:
                    return await _ask(client) == b"{}"
                except TransportUnavailable:
                    return False

            await wait_until(answered)


async def test_whoever_was_cut_off_claims_nothing_for_a_lease(url: str) -> None:
    async with proxy_to(url) as proxy, raw_link(url) as link, stage_stream(proxy.url, lease=1.0) as stream:
        rival = Rival(link, "dispatch")
        await rival.add(make_job(stages_left=("dispatch",)))
        await rival.age(*await rival.fetch())
        proxy.refuse = True
        assert await stream.fetch(4) == []
        proxy.refuse = False
        back = anyio.current_time()
        claimed = []
        with anyio.fail_after(5):
            while not claimed:
                claimed = await stream.fetch(4)
        assert anyio.current_time() - back > 0.9, "the rival had no time to renew"


async def test_a_black_hole_is_noticed(url: str, monkeypatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT", 0.3)
    async with proxy_to(url) as proxy, connected_client(proxy.url, QUICK) as client:
        proxy.black_hole = True
        with anyio.fail_after(5), pytest.raises(TransportUnavailable) as unknown:
            await client.submit(job_for(client), b"{}")
        assert "may have run" in unknown.value.hint
        await wait_until(lambda: not client.status().connected)
        with pytest.raises(TransportUnavailable) as refused:
            await client.submit(job_for(client), b"{}")
        assert "Nothing ran" in refused.value.hint
        proxy.black_hole = False
        proxy.cut()
        await wait_until(lambda: client.status().connected)


async def test_an_outcome_whose_reply_was_cut_is_written_once(url: str) -> None:
    dispatch = ScriptedStage(echo)
    async with (
        proxy_to(url) as proxy,
        connected_client(url, QUICK) as client,
        running_worker(proxy.url, QUICK, spec("dispatch", dispatch)),
    ):
        assert (await (await client.submit(job_for(client, stages_left=("dispatch",)), b"1")).next()).body == b"1"
        proxy.lose_answer_to = b"the answer"
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"the answer")
        with anyio.fail_after(5):
            assert (await waiter.next()).body == b"the answer"
        await wait_until(lambda: proxy.lost)
    assert len(dispatch.seen) == 2


async def test_a_worker_waits_for_a_redis_that_is_not_there_yet(url: str) -> None:
    async with proxy_to(url) as proxy:
        proxy.refuse = True
        async with running_worker(proxy.url, QUICK, spec("dispatch", ScriptedStage(echo))):
            await wait_until(lambda: proxy.connections >= 2)
            proxy.refuse = False
            async with connected_client(url, QUICK) as client:
                waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"there")
                assert (await waiter.next()).body == b"there"


async def test_a_large_body_is_asked_for_until_redis_answers(url: str) -> None:
    async with (
        proxy_to(url) as proxy,
        connected_client(proxy.url, QUICK) as client,
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(echo))),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"x" * 100_000)
        await wait_until(lambda: waiter._items)
        proxy.lose_answer_to = b"GETEX"
        assert len((await waiter.next()).body) == 100_000
        assert proxy.lost == 1


async def test_one_write_that_fails_spares_the_others_of_its_group(url: str) -> None:
    go = anyio.Event()

    async def wait(delivery):
        await go.wait()
        return Done(delivery.body)

    dispatch = ScriptedStage(wait)
    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, settings(transport=quick(lease=30)), spec("dispatch", dispatch)),
    ):
        await link.run(("SET", keyspace.replies("broken"), "a string", "PX", 60_000))
        waiters = [await client.submit(job_for(client, stages_left=("dispatch",)), b"%d" % n) for n in range(3)]
        broken = await client.submit(job_for(client, stages_left=("dispatch",), reply_to="broken"), b"{}")
        waiters += [await client.submit(job_for(client, stages_left=("dispatch",)), b"%d" % n) for n in range(3)]
        await wait_until(lambda: len(dispatch.seen) == 7)
        go.set()
        with anyio.fail_after(3):
            assert [(await w.next()).body for w in waiters] == [b"0", b"1", b"2"] * 2
        rival = Rival(link, "dispatch")
        assert list(await rival.pending()) == [broken.entry]  # left to its lease
        await link.run(("UNLINK", rival.stream, keyspace.held_bytes("dispatch", "live")))


class RefusingLink:
    """Takes every command and refuses it."""

    def __init__(self) -> None:
        self.calls = 0

    async def call(self, *commands):
        self.calls += 1
        return [ResponseError("NOPERM") for _ in commands]


async def test_a_group_that_is_refused_again_and_again_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(Backoff, "pause", lambda self: anyio.lowlevel.checkpoint())
    link, clock, forgotten = RefusingLink(), ServerClock(), []
    writer = Writer(link, "me", clock)
    writer.written["dispatch"] = forgotten.append
    source = Source("dispatch", "live", "1-1", 2, "")
    job = make_job(stages_left=("dispatch",), reply_to="ingress")
    delivery = HeldDelivery(job, b"{}", 1, source, clock, writer)
    await delivery.send(b"frame")
    writer.settle(delivery, Done(b""))
    writer.finish()
    with anyio.fail_after(2):
        await writer.run()
    assert writer.finished.is_set()
    assert forgotten == [delivery]
    assert link.calls == 8


async def test_a_link_makes_every_foreign_error_one_of_ours(url: str) -> None:
    async with raw_link(url) as link:
        with pytest.raises(TransportUnavailable, match="refused NONSENSE"):
            await link.run(("NONSENSE",))
        await link.run(("REPLICAOF", "127.0.0.1", 1))
        try:
            with pytest.raises(TransportUnavailable, match="cannot serve yet"):
                await link.call(("SET", "a", "b"))
        finally:
            await link.run(("REPLICAOF", "NO", "ONE"))
        await link.run(("CONFIG", "SET", "maxmemory", 1))
        try:
            with pytest.raises(TransportFull):
                await link.run(("SET", "a", "b"))
        finally:
            await link.run(("CONFIG", "SET", "maxmemory", 2**30))
        with anyio.move_on_after(0.05):
            await link.call(("BLPOP", "nothing", 0))
        assert await link.run(("PING",)) == b"PONG"  # not the answer to the cancelled question
    broken = Link("http://not-redis", "test")
    with pytest.raises(ConfigurationError, match="REDIS_URL"):
        await broken.call(("PING",))


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
async def test_an_idle_connection_that_was_reset_is_opened_again(url: str) -> None:
    with Wire(url.removeprefix("unix://")).running() as wire:
        link = Link(f"redis://{wire.address}", "test-idle")
        await link.run(("PING",))
        wire.cut("test")
        assert link._connection is not None
        await wait_until(link._connection._writer.is_closing)
        await link.run(("PING",))
        wire.cut("test")
        await wait_until(link._connection._writer.is_closing)
        wire.edges["test"].refuse = True
        with pytest.raises(TransportUnavailable):
            await link.run(("PING",))
        await link.close()


async def test_a_busy_group_is_no_reason_to_wait(url: str) -> None:
    async with raw_link(url) as link:
        command = ("XGROUP", "CREATE", "pm:{0}:jobs:x:live", "workers", "0", "MKSTREAM")
        await link.call(command)
        (reply,) = await link.call(command)
        assert "BUSYGROUP" in str(reply)


async def test_a_password_that_is_not_accepted_is_told_in_words(url: str) -> None:
    async with raw_link(url) as owner:
        await owner.run(("CONFIG", "SET", "requirepass", "x"))
        link = Link(url, "test-kept-out")
        try:
            with pytest.raises(TransportUnavailable, match="does not accept our password"):
                await link.run(("PING",))
        finally:
            await owner.run(("CONFIG", "SET", "requirepass", ""))
        await link.run(("PING",))
        await link.close()


async def test_where_a_url_points_is_told_without_its_password() -> None:
    assert connection.describe("redis://user:secret@host:1234/0") == "host:1234"
    assert connection.describe("unix:///run/valkey.sock") == "/run/valkey.sock"
    assert connection.describe("redis://") == "localhost:6379"


async def test_a_reply_stream_made_anew_is_read_from_its_beginning(url: str) -> None:
    async with connected_client(url, QUICK) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client), b"{}")
        key = keyspace.replies(client.consumer)
        client._replies._last = "99999999999999-0"
        await link.run(("UNLINK", key))
        await client._replies.listen(client._links["upkeep"])
        await link.run(("XADD", key, "*", "t", encode(Reply(id=waiter.id)), "b", b"read"))
        with anyio.fail_after(3):
            assert (await waiter.next()).body == b"read"
        assert await link.run(LISTEN([key], 1000)) == 0
