"""What an owner may still write: how a batch ends is decided once, and by its last owner."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from fakes.batches import CHAT

from pipeline.errors import DeadlineExceeded
from pipeline.stores.batch_records import BatchOrder, BatchState, Record
from pipeline.stores.batches import BatchStore
from pipeline.stores.local import LocalBlobs
from workers.batches import answers
from workers.batches.ledger import Ledger, Outcomes, Superseded
from workers.batches.parts import ERRORS, RESULTS, Done, adopt, open_parts

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    return BatchStore(LocalBlobs(tmp_path))


async def owned(store: BatchStore) -> tuple[BatchState, Ledger]:
    state = await store.create(BatchOrder("", CHAT, "file-1"))
    return state, Ledger(store, state.request, Record(owner=await store.claim(state)), Done())


async def test_a_batch_that_was_cancelled_first_ends_so_however_far_it_came(store: BatchStore) -> None:
    state, ledger = await owned(store)
    await store.cancel(state)
    assert await ledger.unless_cancelled("completed") == "cancelled"


async def test_a_batch_that_ended_first_is_cancelled_by_nobody(store: BatchStore) -> None:
    state, ledger = await owned(store)
    assert await ledger.unless_cancelled("completed") == "completed"
    await store.cancel(state)
    assert await ledger.unless_cancelled("completed") == "completed"


async def test_an_owner_that_was_succeeded_decides_nothing(store: BatchStore) -> None:
    state, ledger = await owned(store)
    await store.claim(await store.get(state.request.id, None))
    with pytest.raises(Superseded):
        await ledger.unless_cancelled("completed")
    with pytest.raises(Superseded):  # or the answers it got would be dropped, which said no outcome
        await ledger.write(Outcomes(RESULTS), Outcomes(ERRORS))
    assert await store.close(state.request.id)


async def test_outcomes_of_the_feeder_and_of_the_collector_do_not_overwrite_each_other(store: BatchStore) -> None:
    state, ledger = await owned(store)
    batch, error = state.request, DeadlineExceeded("too late").fields("feed")

    async def write_some(numbers: range) -> None:
        for number in numbers:
            outcomes = Outcomes(ERRORS)
            outcomes.add(number, answers.refused(batch.hex, number, f"r{number}", error), error.code)
            await ledger.write(outcomes)

    async with open_parts(store.blobs, batch.id, 1, ()) as parts:
        ledger.open(parts)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write_some, range(1, 11))
            tasks.start_soon(write_some, range(11, 21))
    found = Done()
    await adopt(store.blobs, batch.id, (), 1, found)
    assert found.failed == ledger.done.failed == 20
