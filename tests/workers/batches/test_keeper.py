"""Which batches a process has in hand: no key keeps another's out, and what only has to end waits for no place."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from fakes.batches import CHAT, lines
from fakes.desks import answer, create, ended, keeping, make_desk, working
from fakes.pipelines import ScriptedStage
from fakes.servers import Server
from fakes.waiting import wait_until

from pipeline import metrics
from pipeline.errors import InvalidRequest, StorageFull, StorageUnavailable
from pipeline.settings import BatchSettings, Settings
from pipeline.stage import Delivery, Fail, Outcome
from pipeline.stores.batch_records import BatchOrder
from pipeline.stores.batches import WINDOW, BatchStore, Stand
from pipeline.stores.headings import Heading
from workers.batches import keeper
from workers.batches.keeper import Keeper, Place

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def serve_all_but_a(delivery: Delivery) -> Outcome:
    if delivery.job.tenant == "a":
        await anyio.sleep_forever()
    return await answer(delivery)


async def test_what_is_over_waits_for_no_place_and_another_key_gets_one(
    server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "PLACES", 2)
    settings = msgspec.structs.replace(settings, batches=BatchSettings(batch_window=20, batch_line_timeout=600))
    desk = make_desk(server, settings)

    async def owners(*batches: str) -> list[int]:
        return [state.claims for state in await desk.store.states(batches)]

    async with working(server, settings, ScriptedStage(serve_all_but_a)), keeping(desk):
        first, second, third = [await create(desk, lines(1), "a") for _ in range(3)]

        async def both_are_taken() -> bool:
            return await owners(first, second) == [1, 1]

        await wait_until(both_are_taken)
        assert await owners(third) == [0]

        state = await desk.store.cancel(await desk.store.get(third, None))
        late = await desk.store.create(BatchOrder("a", CHAT, state.request.input_file_id), window=0)
        assert (await ended(desk, third)).record.status == "cancelled"
        assert (await ended(desk, late.request.id)).record.status == "expired"
        assert (await ended(desk, await create(desk, lines(3), "b"))).record.completed == 3
        assert [s.record.status for s in await desk.store.states([first, second])] == ["in_progress"] * 2
        assert await owners(first, second) == [1, 1]


@pytest.mark.parametrize("refusal", [StorageFull("over its quota"), StorageUnavailable("away"), OSError(5, "no")])
async def test_a_look_that_fails_is_followed_by_others(server: Server, settings: Settings, refusal: Exception) -> None:
    class Refusing(BatchStore):
        looks = 0

        async def live(self) -> dict[Heading, Stand]:
            self.looks += 1
            if self.looks == 1:
                raise refusal
            return await super().live()

    desk = make_desk(server, settings)
    store = Refusing(desk.store.blobs)
    async with keeping(msgspec.structs.replace(desk, store=store)):
        await wait_until(lambda: store.looks > 1)


async def test_metrics_tell_how_far_batches_are(server: Server, settings: Settings) -> None:
    gate, before = anyio.Event(), counted()

    async def refuse_the_first(delivery: Delivery) -> Outcome:
        await gate.wait()
        return Fail(InvalidRequest("no")) if delivery.job.id.endswith("-1-1.1") else await answer(delivery)

    desk = make_desk(server, settings)
    async with working(server, settings, ScriptedStage(refuse_the_first)), keeping(desk):
        batch = await create(desk, lines(3))
        await wait_until(lambda: metrics.BATCHES_IN_HAND["in_progress",]._value.get() == 1)
        assert metrics.BATCHES_UNFINISHED._value.get() == 1
        gate.set()
        await ended(desk, batch)
        await wait_until(lambda: metrics.BATCHES_UNFINISHED._value.get() == 0)
        assert [metrics.BATCHES_IN_HAND[status,]._value.get() for status in keeper.IN_HAND] == [0, 0, 0, 0]
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 2, 1]


def counted() -> list[float]:
    """Return how many batches were completed, and how many lines answered, and failed."""
    children = metrics.BATCHES["completed",], metrics.BATCH_LINES["answered",], metrics.BATCH_LINES["failed",]
    return [child._value.get() for child in children]


async def test_the_window_is_shared_by_keys_and_then_by_batches(server: Server, settings: Settings) -> None:
    wide = msgspec.structs.replace(settings, batches=BatchSettings(batch_window=120))
    keeping = Keeper(make_desk(server, wide))
    keeping._places = {name: Place(heading(name), anyio.CancelScope()) for name in ("a1", "a2", "b1")}
    keeping._at_work = {"a1": "a", "a3": "a"}
    keeping._divide()
    assert keeping._shares == {"a1": 20, "a2": 20, "b1": 60}


async def test_a_batch_that_nobody_can_read_rests(server: Server, settings: Settings) -> None:
    desk = make_desk(server, settings)
    state = await desk.store.create(BatchOrder("", CHAT, "file-x"))
    await desk.store.claim(state)
    await desk.store.blobs.create(f"{state.request.id}-record-1", b"\0")
    keeping = Keeper(desk)
    await keeping._process(state.request.id)
    assert [*keeping._resting] == [state.request.id]


def heading(name: str) -> Heading:
    return Heading(created=0.0, id=name, owner=name[0], input="", expires=WINDOW)
