"""Admission: exactly once, bounded, honest about what did not run."""

from __future__ import annotations

import anyio
import pytest
from fakes.configs import settings
from fakes.deliveries import make_job
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
from fakes.proxy import proxy_to
from fakes.waiting import wait_until

from pipeline import metrics
from pipeline.errors import BacklogFull, NoWorker, TransportFull, TransportUnavailable
from pipeline.settings import IngressSettings
from pipeline.stage import Done
from pipeline.transport import client as client_module
from pipeline.transport import keyspace, registry
from pipeline.transport.client import open_client
from pipeline.transport.connection import ADMIT

pytestmark = pytest.mark.anyio
QUICK = settings(transport=quick())


async def echo(delivery):
    return Done(delivery.body)


async def test_an_admission_retried_after_a_cut_reply_runs_nothing_twice(url: str) -> None:
    dispatch = ScriptedStage(echo)
    async with proxy_to(url) as proxy, connected_client(proxy.url, QUICK) as client:
        proxy.lose_answer_to = b"stages_left"
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        assert proxy.lost == 1
        async with running_worker(url, QUICK, spec("dispatch", dispatch)):
            with anyio.fail_after(5):
                assert (await waiter.next()).body == b"{}"
            second = await client.submit(job_for(client, stages_left=("dispatch",)), b"second")
            assert (await second.next()).body == b"second"
    assert [d.body for d in dispatch.seen] == [b"{}", b"second"]


async def test_a_batch_number_is_admitted_once(url: str) -> None:
    async with raw_link(url) as link:
        job = make_job(stages_left=("dispatch",))
        stream, counter = keyspace.jobs("dispatch", "live"), keyspace.held_bytes("dispatch", "live")
        command = ADMIT([keyspace.admitted("me"), stream, counter], 7, 60_000, 1, 1, b"header", b"body", "", 4)
        first, again = await link.run(command), await link.run(command)
        assert (first[0], again[0]) == (0, 7)
        assert first[1]
        assert again[1] == b""
        assert await link.run(("XLEN", stream)) == 1
        assert await link.run(("GET", counter)) == b"4"
    assert job.id


@pytest.mark.parametrize(
    ("limits", "setting"),
    [(IngressSettings(max_backlog=3), "max_backlog"), (IngressSettings(max_backlog_bytes=30), "max_backlog_bytes")],
)
async def test_a_full_stage_refuses_and_recovers_by_itself(url: str, limits: IngressSettings, setting: str) -> None:
    config = settings(transport=quick(), ingress=limits)
    async with connected_client(url, config) as client:
        waiters = [await client.submit(job_for(client, stages_left=("dispatch",)), b"0123456789") for _ in range(3)]
        with pytest.raises(BacklogFull) as refused:
            await client.submit(job_for(client, stages_left=("dispatch",)), b"0123456789")
        assert setting in refused.value.hint
        assert 1 <= refused.value.retry_after <= 60
        with pytest.raises(BacklogFull):  # the fullest stage of the way counts, not the first
            client.check(("resolve", "dispatch"), "live", 10)
        client.check(("resolve",), "live", 10)
        client.check(("unknown",), "live", 10)
        async with running_worker(url, config, spec("dispatch", ScriptedStage(echo))):
            for waiter in waiters:
                await waiter.next()

            def taken_again() -> bool:
                try:
                    client.check(("dispatch",), "live", 10)
                except BacklogFull:
                    return False
                return True

            await wait_until(taken_again, timeout=3)


async def test_room_is_noticed_soon_although_nothing_is_sent(url: str, monkeypatch) -> None:
    monkeypatch.setattr(client_module, "BEAT", 60)
    config = settings(transport=quick(), ingress=IngressSettings(max_backlog=2))
    async with connected_client(url, config) as client, raw_link(url) as link:
        for _ in range(2):
            await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        with pytest.raises(BacklogFull):
            client.check(("dispatch",), "live", 0)
        await link.run(("DEL", keyspace.jobs("dispatch", "live")))
        await wait_until(lambda: client.status().backlog["dispatch"] == 0, timeout=2)
        client.check(("dispatch",), "live", 0)


async def test_who_would_wait_beyond_half_of_its_time_is_refused_and_told_when_to_come_back(url: str) -> None:
    async with connected_client(url, QUICK) as client:
        waiters = [await client.submit(job_for(client, stages_left=("dispatch",)), b"{}") for _ in range(30)]
        for _ in range(40):
            client._admission.pace.saw(1, 2.0, 0.25)  # four a second: the last of thirty waits for 7.5 s
        refused = job_for(client, stages_left=("dispatch",), seconds=10)
        with pytest.raises(BacklogFull, match="30 jobs wait before it, and its turn would come too late") as error:
            await client.submit(refused, b"{}")
        assert 7 < error.value.retry_after < 8
        assert error.value.stage == "dispatch"
        assert client.status().backlog["dispatch"] == client.status().waiting == len(waiters), "nothing was written"
        await client.submit(job_for(client, stages_left=("dispatch",), seconds=20), b"{}")
        client.check(("dispatch",), "live", 0)  # its body is not here yet: it may wait for as long as any


async def test_jobs_on_their_way_to_a_server_that_stalls_count(url: str) -> None:
    config = settings(transport=quick(), ingress=IngressSettings(max_backlog=5))
    async with proxy_to(url) as proxy, connected_client(proxy.url, config) as client:
        proxy.black_hole = True
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(client.submit, job_for(client, stages_left=("dispatch",)), b"{}")
            await wait_until(lambda: client.status().waiting == 5)
            with pytest.raises(BacklogFull):
                client.check(("dispatch",), "live", 0)
            tasks.cancel_scope.cancel()


async def test_a_full_server_refuses_new_jobs_while_workers_settle(url: str, monkeypatch) -> None:
    monkeypatch.setattr(registry, "GONE_AFTER", 30)
    go = anyio.Event()

    async def grow(delivery):
        await go.wait()
        return Done(b"y" * 200_000) if delivery.body.startswith(b"large") else Done(b"small")

    dispatch = ScriptedStage(grow)

    config = settings(transport=quick(), ingress=IngressSettings(max_backlog=5))
    async with (
        connected_client(url, config) as client,
        raw_link(url) as link,
        running_worker(url, config, spec("dispatch", dispatch, slots=2)),
    ):
        small = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        leaver = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        large = await client.submit(job_for(client, stages_left=("dispatch",)), b"large" + b"x" * 100_000)
        await wait_until(lambda: len(dispatch.seen) == 2)  # the large one waits for a slot
        await link.run(("CONFIG", "SET", "maxmemory", 1))
        try:
            for size in (10, 100_000, 10):
                with anyio.fail_after(1), pytest.raises(TransportFull):
                    await client.submit(job_for(client, stages_left=("dispatch",)), b"x" * size)
            assert client.status().waiting == 3
            with pytest.raises(TransportFull):  # before a body is read
                client.check(("dispatch",), "live", 0)
            assert await link.run(("XLEN", keyspace.CANCEL)) == 0  # nothing ran, so nothing to cancel
            leaver.cancel()
            await wait_until(lambda: link.run(("XLEN", keyspace.CANCEL)))
            before = await link.run(("ZSCORE", keyspace.CONSUMERS, client.consumer))
            await wait_until(lambda: _later(link, client.consumer, before))
            assert client.status().connected
            go.set()
            with anyio.fail_after(3):
                assert (await small.next()).body == b"small"
                assert len((await large.next()).body) == 200_000
        finally:
            await link.run(("CONFIG", "SET", "maxmemory", 2**30))
        before = anyio.current_time()
        await wait_until(lambda: _takes_jobs(client))  # what was refused does not wait
        assert anyio.current_time() - before < 1
        again = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        assert (await again.next()).body == b"small"


def _takes_jobs(client) -> bool:
    try:
        client.check(("dispatch",), "live", 0)
    except TransportFull:
        return False
    return True


async def _later(link, consumer: str, before: bytes) -> bool:
    return float(await link.run(("ZSCORE", keyspace.CONSUMERS, consumer))) > float(before)


async def test_without_redis_a_job_is_refused_at_once(url: str) -> None:
    async with proxy_to(url) as proxy:
        proxy.refuse = True
        async with open_client(QUICK, proxy.url) as client:
            with pytest.raises(TransportUnavailable):
                await client.submit(job_for(client), b"{}")
            assert client.status().waiting == 0


async def test_a_job_for_a_stage_without_worker_is_refused_and_those_that_wait_there_fail(
    url: str, monkeypatch
) -> None:
    async with (
        connected_client(url, QUICK) as client,
        raw_link(url) as link,
        running_worker(url, settings(transport=quick(grace=0.1)), spec("dispatch", ScriptedStage(echo))),
    ):
        stuck = await client.submit(job_for(client), b"stuck")
        passed = await client.submit(job_for(client), b"passed")
        await link.run(("XDEL", keyspace.jobs("resolve", "live"), passed.entry))  # it has left resolve
        monkeypatch.setattr(client_module, "GONE_AFTER", 0.5)
        with anyio.fail_after(6), pytest.raises(NoWorker, match="no resolve worker"):
            await stuck.next()
        with pytest.raises(NoWorker) as refused:
            await client.submit(job_for(client), b"{}")
        assert "promptmill worker resolve" in refused.value.hint
        assert client.status().waiting == 1
        client.check(("dispatch",), "live", 0)


async def test_a_stage_without_worker_at_the_end_of_the_way_fails_whoever_needs_it(url: str, monkeypatch) -> None:
    async with connected_client(url, QUICK) as client:
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        monkeypatch.setattr(client_module, "GONE_AFTER", 0.5)
        with anyio.fail_after(6), pytest.raises(NoWorker, match="no dispatch worker"):
            await waiter.next()


async def test_at_64_clients_a_job_costs_at_most_four_commands(url: str) -> None:
    jobs = 64 * 12
    async with (
        connected_client(url, QUICK) as client,
        running_worker(url, QUICK, spec("resolve", ScriptedStage(forward), slots=64)),
        running_worker(url, QUICK, spec("dispatch", ScriptedStage(echo), slots=64)),
    ):

        async def ask() -> None:
            for _ in range(jobs // 64):
                waiter = await client.submit(job_for(client), b"{}")
                await waiter.next()

        before = _commands()
        async with anyio.create_task_group() as tasks:
            for _ in range(64):
                tasks.start_soon(ask)
        assert _commands() - before <= 4 * jobs


def _commands() -> float:
    return sum(child._value.get() for child in metrics.REDIS_COMMANDS.values())
