"""What an owner may still write: how a batch ends is decided once, and by its last owner."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.batches import CHAT

from pipeline.stores.batch_records import BatchState, Record
from pipeline.stores.batches import BatchStore
from pipeline.stores.local import LocalBlobs
from workers.batches.ledger import Ledger, Outcomes, Superseded
from workers.batches.parts import ERRORS, RESULTS, Done

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    return BatchStore(LocalBlobs(tmp_path))


async def owned(store: BatchStore) -> tuple[BatchState, Ledger]:
    state = await store.create("", CHAT, "file-1")
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
