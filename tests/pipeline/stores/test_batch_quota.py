"""How many batches a key may have, counted by a clock that the test moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import TooManyBatches
from pipeline.settings import BatchSettings
from pipeline.stores.batch_quota import BatchQuota
from pipeline.stores.batch_records import BatchOrder, BatchState, Record
from pipeline.stores.batches import BatchStore
from pipeline.stores.local import LocalBlobs

pytestmark = pytest.mark.anyio


class Desk:
    """A quota, and the batches that are made within it."""

    def __init__(self, directory: Path, **limits: int) -> None:
        self.now = 1_700_000_000.0
        self.blobs = LocalBlobs(directory)
        self.store = BatchStore(self.blobs, lambda: self.now)
        self.quota = BatchQuota(self.store, BatchSettings(**limits), lambda: self.now)

    async def make(self, owner: str = "team") -> BatchState:
        async with self.quota.place(owner):
            return await self.store.create(BatchOrder(owner, "/v1/chat/completions", "file-x"))

    async def refused(self, owner: str = "team") -> float:
        with pytest.raises(TooManyBatches) as raised:
            await self.make(owner)
        assert raised.value.retry_after is not None
        return raised.value.retry_after

    async def end(self, state: BatchState) -> None:
        await self.store.save(state.request.id, Record(owner=await self.store.claim(state), status="completed"))


async def test_s34_a_key_makes_so_many_batches_an_hour_and_is_told_when_it_may_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_batches_per_hour=3)
    for _ in range(3):
        await desk.make()
        desk.now += 600
    assert await desk.refused() == 1800
    await desk.make("other")
    desk.now += 1799
    assert await desk.refused() == 1
    desk.now += 1
    await desk.make()
    assert await desk.refused() == 600


async def test_s34_a_key_has_so_many_batches_open_until_one_of_them_ends(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_open_batches=2)
    first, _ = await desk.make(), await desk.make()
    assert await desk.refused() == 60
    await desk.make("other")
    await desk.end(first)
    desk.now += 1
    await desk.make()
    await desk.refused()


async def test_s34_the_2001st_batch_of_an_hour_is_refused_as_at_openai(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path)
    made: list[float] = []

    async def known(owner: str, since: float) -> list[float]:
        return made

    monkeypatch.setattr(desk.store, "made", known)
    made.extend([desk.now - 10] * 1999)
    await desk.make()
    made.append(desk.now)
    assert await desk.refused() == 3590


async def test_s34_a_flood_of_refusals_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path, max_open_batches=1, max_batches_per_hour=1)
    await desk.make()
    await desk.refused()
    monkeypatch.setattr(LocalBlobs, "names", None)
    for _ in range(100):
        await desk.refused()


async def test_batches_of_other_processes_count_as_well(tmp_path: Path) -> None:
    one, two = Desk(tmp_path, max_batches_per_hour=2), Desk(tmp_path, max_batches_per_hour=2)
    await one.make()
    await two.make()
    await one.refused()


async def test_with_more_than_there_may_be_a_key_waits_until_there_is_a_place(tmp_path: Path) -> None:
    generous, desk = Desk(tmp_path, max_batches_per_hour=9), Desk(tmp_path, max_batches_per_hour=2)
    for _ in range(4):
        await generous.make()
        generous.now += 100
    desk.now = generous.now
    assert await desk.refused() == 3600 - 200


async def test_who_could_make_none_holds_no_place(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_open_batches=1)
    with pytest.raises(ZeroDivisionError):
        async with desk.quota.place("team"):
            raise ZeroDivisionError
    await desk.make()
