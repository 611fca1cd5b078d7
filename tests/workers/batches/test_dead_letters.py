"""Lines of a batch that became dead letters: run again while their batch runs, and failed in its end."""

from __future__ import annotations

import anyio
import pytest
from fakes.batches import lines
from fakes.desks import answer, create, ended, keeping, make_desk, working, written
from fakes.pipelines import ScriptedStage
from fakes.servers import Server
from fakes.waiting import wait_until

from pipeline.settings import Settings
from pipeline.stage import Delivery, Outcome
from pipeline.transport.deadletters import Replay, drop_dead, list_dead, replay_dead
from workers.batches.lines import line_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def test_a_dead_letter_is_replayed_while_its_batch_runs(server: Server, settings: Settings) -> None:
    mended, others = anyio.Event(), anyio.Event()

    async def broken(delivery: Delivery) -> Outcome:
        if line_of(delivery.job.id) == 2 and not mended.is_set():
            raise KeyError("a bug")
        if line_of(delivery.job.id) == 3:
            await others.wait()
        return await answer(delivery)

    stage, desk = ScriptedStage(broken), make_desk(server, settings)

    async def dead() -> int:
        return (await desk.store.get(batch, None)).record.progress.dead

    async with working(server, settings, stage), keeping(desk):
        batch = await create(desk, lines(3))
        await wait_until(dead)
        (letter,) = await list_dead(server.url)
        assert (letter.batch, letter.reason) == (batch, "bug: KeyError")
        mended.set()
        assert await replay_dead(server.url, [letter.id]) == Replay(replayed=1)
        assert await list_dead(server.url) == ()
        await wait_until(lambda: [line_of(delivery.job.id) for delivery in stage.seen].count(2) == 2)
        others.set()
        record = (await ended(desk, batch)).record
    assert (record.status, record.completed, record.failed) == ("completed", 3, 0)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_dead_letter_that_nobody_replays_is_a_failed_line(
    server: Server, settings: Settings, cancelled: bool
) -> None:
    async def broken(delivery: Delivery) -> Outcome:
        if line_of(delivery.job.id) == 2:
            raise KeyError("a bug")
        if cancelled:
            await anyio.sleep_forever()
        return await answer(delivery)

    stage, desk = ScriptedStage(broken), make_desk(server, settings)

    async def dead() -> int:
        return (await desk.store.get(batch, None)).record.progress.dead

    async with working(server, settings, stage), keeping(desk):
        batch = await create(desk, lines(3))
        if cancelled:
            await wait_until(dead)
            await desk.store.cancel(await desk.store.get(batch, None))
        record = (await ended(desk, batch)).record
    errors = await written(desk, record.error_file_id)
    (error,) = [error for error in errors if error["custom_id"] == "r1"]
    assert error["response"]["body"]["error"]["code"] == "internal_error"  # type: ignore[index]
    assert len(errors) == (3 if cancelled else 1)
    assert await replay_dead(server.url, None) == Replay(ended=1, batches=(batch,))
    assert await drop_dead(server.url, None) == 1
