"""What clients leave unread: bounded for each, and for all of an ingress process together."""

from __future__ import annotations

import anyio
import pytest
from fakes.configs import settings
from fakes.pipelines import ScriptedStage, connected_client, job_for, quick, raw_link, running_worker, spec
from fakes.waiting import wait_until

from pipeline.errors import Cancelled
from pipeline.job import Frame, Reply, encode
from pipeline.settings import IngressSettings
from pipeline.stage import Done
from pipeline.transport import keyspace, replies
from pipeline.transport.unread import Unread

pytestmark = pytest.mark.anyio
LIMITED = settings(transport=quick(), ingress=IngressSettings(max_unread_bytes=200_000))


async def test_over_the_limit_of_all_the_slowest_stream_is_cut_at_once_and_nobody_else(url: str) -> None:
    async with connected_client(url, LIMITED) as client, raw_link(url) as link:
        waiters = [await client.submit(job_for(client, stream=True), b"{}") for _ in range(4)]
        cut = []
        for waiter in waiters:
            waiter.cut = lambda waiter=waiter: cut.append(waiter)
        for waiter, size in zip(waiters, (30_000, 90_000, 50_000, 40_000), strict=True):
            frame = Frame(waiter.id, "a", 0, b"x" * size)
            await link.run(("XADD", keyspace.replies(client.consumer), "*", "f", encode([frame])))
        await wait_until(lambda: cut)
        assert cut == [waiters[1]]
        assert client._unread.held == 120_000, "what it left unread is not kept for it"
        with pytest.raises(Cancelled, match="too slowly"):
            await waiters[1].next()
        await wait_until(lambda: link.run(("XLEN", keyspace.CANCEL)))
        for waiter in (waiters[0], waiters[2], waiters[3]):
            await waiter.next()
        assert client._unread.held == 0


async def test_what_a_client_did_not_take_is_let_go_with_its_response(url: str) -> None:
    async with connected_client(url, LIMITED) as client:
        waiter = await client.submit(job_for(client, stream=True), b"{}")
        waiter.take_frame(Frame(waiter.id, "a", 0, b"x" * 1000))
        assert client._unread.held == waiter.unread == 1000
        waiter.close()
        waiter.close()
        assert client._unread.held == waiter.unread == 0


async def test_a_large_answer_is_fetched_once_others_are_taken(url: str) -> None:
    async def large(_):
        return Done(b"y" * 150_000)

    async with (
        connected_client(url, LIMITED) as client,
        running_worker(url, LIMITED, spec("dispatch", ScriptedStage(large))),
    ):
        first, second = [await client.submit(job_for(client, stages_left=("dispatch",)), b"{}") for _ in range(2)]
        assert len((await first.next()).body) == 150_000
        with anyio.move_on_after(0.2) as waited:
            await second.next()
        assert waited.cancelled_caught
        first.close()
        with anyio.fail_after(5):
            assert len((await second.next()).body) == 150_000
        second.close()
        assert client._unread.held == 0


async def test_half_of_the_room_is_kept_for_streams() -> None:
    unread = Unread(1000)
    unread.add(600)
    assert not unread.full
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(unread.room)
        await wait_until(lambda: unread._room)
        unread.remove(100)
        unread.add(501)
        assert unread.full
        unread.remove(600)


async def test_the_limit_of_one_client_holds_below_that_of_all(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "WAITER_BYTES", 10_000)
    async with connected_client(url, LIMITED) as client, raw_link(url) as link:
        waiter = await client.submit(job_for(client, stream=True), b"{}")
        frames = [Frame(waiter.id, "a", n, b"x" * 1000) for n in range(20)]
        await link.run(("XADD", keyspace.replies(client.consumer), "*", "f", encode(frames)))
        await wait_until(lambda: waiter.failed)
        assert 10_000 < client._unread.held < 12_000
        await link.run(("XADD", keyspace.replies(client.consumer), "*", "t", encode(Reply(id=waiter.id, run="a"))))
        waiter.close()
