"""That a line's time passes is to its account only if it ran, and it is not fed again while its job may be there."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from fakes.batches import lines
from fakes.desks import answer, create, ended, keeping, make_desk, working
from fakes.pipelines import ScriptedStage
from fakes.servers import Server
from fakes.waiting import wait_until

from pipeline.settings import BatchSettings, Settings
from pipeline.stage import Delivery, Outcome
from pipeline.stores.local import LocalBlobs
from workers.batches import feeder, window
from workers.batches.lines import line_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

TIMEOUT = 0.6


@pytest.fixture
def short(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Let a line have one try, and be late soon."""
    monkeypatch.setattr(feeder, "TRIES", 1)
    monkeypatch.setattr(window, "ANSWER_LATE", 0.0)
    monkeypatch.setattr(window, "DOUBT_EVERY", 0.1)
    return msgspec.structs.replace(settings, batches=BatchSettings(batch_line_timeout=TIMEOUT))


async def passes(seconds: float) -> None:
    since = anyio.current_time()
    await wait_until(lambda: anyio.current_time() > since + seconds, timeout=10)


async def test_lines_wait_for_a_worker_as_long_as_it_takes(server: Server, short: Settings) -> None:
    stage, desk = ScriptedStage(answer), make_desk(server, short)
    async with keeping(desk):
        batch_id = await create(desk, lines(3))

        def are_fed() -> bool:
            return desk.transport.waiting["dispatch"] == 3

        await wait_until(are_fed, timeout=10)
        await passes(3 * TIMEOUT)
        assert are_fed()
        async with working(server, short, stage):
            record = (await ended(desk, batch_id)).record
    assert (record.completed, record.failed, record.progress.retries) == (3, 0, 3)
    assert record.progress.causes == {"no_worker": 3}


async def test_lines_whose_answers_wait_for_the_disk_do_not_run_again(
    server: Server, short: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, full, stands = make_desk(server, short), anyio.Event(), anyio.Event()
    blobs = desk.store.blobs
    assert isinstance(blobs, LocalBlobs)

    def refuse(_: int) -> None:
        stands.set()
        raise OSError(28, "No space left on device")

    async def one_then_the_others(delivery: Delivery) -> Outcome:
        await (full if line_of(delivery.job.id) == 1 else stands).wait()
        return await answer(delivery)

    stage = ScriptedStage(one_then_the_others)
    async with working(server, short, stage), keeping(desk):
        batch_id = await create(desk, lines(3))
        await wait_until(lambda: len(stage.seen) == 3, timeout=10)
        with monkeypatch.context() as disk:
            disk.setattr(blobs, "check_room", refuse)
            full.set()
            await passes(3 * TIMEOUT)
        record = (await ended(desk, batch_id)).record
    assert (record.completed, record.failed, len(stage.seen)) == (3, 0, 3)
