"""Running stages: slots, restarts, and a stop that finds Redis gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from fakes.configs import settings
from fakes.pipelines import ScriptedStage, connected_client, job_for, quick, running_worker, spec
from fakes.proxy import proxy_to
from fakes.servers import Server, start_server
from fakes.waiting import wait_until

from pipeline import runner
from pipeline.runner import Slots, Stop, run_stages
from pipeline.stage import Done
from pipeline.transport import stage_stream

pytestmark = pytest.mark.anyio
QUICK = settings(transport=quick(grace=0.2))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(tmp_path_factory.mktemp("runner")) as server:
        yield server


@pytest.fixture(autouse=True)
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_stream, "BLOCK", 0.05)


async def sleeper(delivery):
    await anyio.sleep_forever()


async def test_a_stage_is_never_given_more_than_its_slots(server: Server) -> None:
    running, most = 0, 0

    async def count(delivery):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.005)
        running -= 1
        return Done()

    async with (
        connected_client(server.url, QUICK) as client,
        running_worker(server.url, QUICK, spec("dispatch", ScriptedStage(count), slots=3)),
    ):
        waiters = [await client.submit(job_for(client, stages_left=("dispatch",)), b"{}") for _ in range(30)]
        for waiter in waiters:
            await waiter.next()
    assert most == 3


async def test_a_stage_may_ask_for_a_restart(server: Server) -> None:
    definition = spec("resolve", ScriptedStage(sleeper))

    @asynccontextmanager
    async def opened(context):
        context.restart("the configuration changed")
        yield ScriptedStage(sleeper)

    restarting = msgspec.structs.replace(definition, open=opened)
    with anyio.fail_after(5):
        assert await run_stages([restarting], QUICK, server.url, Stop()) == "the configuration changed"


async def test_a_stop_that_finds_redis_gone_ends_all_the_same(server: Server, monkeypatch) -> None:
    monkeypatch.setattr(runner, "FLUSH_LIMIT", 0.2)
    monkeypatch.setattr(runner, "HAND_BACK_LIMIT", 0.5)
    dispatch = ScriptedStage(sleeper)
    async with proxy_to(server.url) as proxy, connected_client(server.url, QUICK) as client:
        with anyio.fail_after(5):
            async with running_worker(proxy.url, QUICK, spec("dispatch", dispatch)):
                waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
                await wait_until(lambda: dispatch.seen)
                proxy.refuse = True
                proxy.cut()
        waiter.cancel()


async def test_a_stop_before_redis_was_ever_there_ends(tmp_path: Path) -> None:
    stop = Stop()
    stop()
    with anyio.fail_after(5):
        assert await run_stages([spec("x", ScriptedStage(sleeper))], QUICK, f"unix://{tmp_path}/none", stop) == ""


async def test_a_change_between_look_and_wait_is_not_lost() -> None:
    slots = Slots(1)
    slots.take()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slots.wait)
        await anyio.lowlevel.checkpoint()
        slots.give()
    assert slots.free == 1
