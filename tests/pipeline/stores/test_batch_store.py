"""Batches as files: what is found of them while they run, once they ended, and between the two."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.errors import NotFound
from pipeline.stores.batch_records import BatchOrder, BatchState, Record
from pipeline.stores.batches import BatchStore, Stand
from pipeline.stores.local import LocalBlobs

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
ORDER = BatchOrder("a", CHAT, "file-1")


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    return BatchStore(LocalBlobs(tmp_path))


def files(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_file()]


async def end(store: BatchStore, state: BatchState, status: str = "completed") -> BatchState:
    await store.save(state.request.id, Record(owner=await store.claim(state), status=status, total=3))
    return await store.get(state.request.id, None)


async def test_the_record_of_the_last_owner_that_wrote_one_counts(store: BatchStore) -> None:
    state = await store.create(ORDER)
    for number in range(1, 4):
        state = await store.get(state.request.id, None)
        assert await store.claim(state) == number
        if number != 3:
            await store.save(state.request.id, Record(owner=number, fed=number))
    for other in (store, BatchStore(store.blobs)):
        found = await other.get(state.request.id, None)
        assert (found.claims, found.record.owner, found.record.fed) == (3, 2, 2)


async def test_a_batch_is_cancelled_or_it_ends_whichever_comes_first(store: BatchStore) -> None:
    one, other = [await store.create(ORDER) for _ in range(2)]
    assert (await store.cancel(one)).cancelled is not None
    assert not await store.close(one.request.id)
    assert await store.close(other.request.id)
    assert await store.close(other.request.id)  # by its next owner
    assert (await store.cancel(other)).cancelled is None
    assert await store.cancelled(other.request.id) is None


async def test_of_an_ended_batch_one_file_stays_which_says_all_that_was_known(
    store: BatchStore, tmp_path: Path
) -> None:
    running, state = await store.create(ORDER), await store.create(BatchOrder("b", CHAT, "file-2"))
    state = await end(store, await store.cancel(state), "cancelled")
    await store.put_away(state)
    await store.put_away(state)
    assert [path.name for path in files(tmp_path)] == [f"{running.request.id}-request"]
    for other in (store, BatchStore(store.blobs)):
        assert await other.get(state.request.id, "b") == state
        assert [(heading.id, stand) for heading, stand in (await other.live()).items()] == [
            (running.request.id, Stand(begun=False, ending=False))
        ]
        assert await other.page(None, None, 10) == ([state, running], False)
        assert await other.page("a", None, 10) == ([running], False)
        assert await other.in_use(["file-1", "file-2"]) == {"file-1"}
    assert await store.cancel(state) == state


async def test_a_batch_that_is_being_put_away_is_always_there(store: BatchStore, tmp_path: Path) -> None:
    state = await end(store, await store.create(ORDER))
    before = {path: path.read_bytes() for path in files(tmp_path)}
    await store.put_away(state)
    for path in sorted(before, key=lambda path: "-request" in path.name):  # as if it had been stopped after each step
        path.write_bytes(before[path])
        assert await BatchStore(store.blobs).get(state.request.id, None) == state


async def test_an_owner_that_wakes_up_after_its_batch_was_put_away_is_none_any_more(store: BatchStore) -> None:
    state = await end(store, await store.create(ORDER))
    assert not await store.superseded(state.request.id, 1)
    await store.put_away(state)
    assert await store.superseded(state.request.id, 1)
    assert await store.reread(state.request.id) is None


async def test_ended_batches_are_forgotten_in_time_and_rests_of_any_at_once(store: BatchStore, tmp_path: Path) -> None:
    old, new = [await end(store, await store.create(ORDER)) for _ in range(2)]
    await store.put_away(old)
    await store.put_away(new)
    (rest := tmp_path / f"{old.request.id}-record-7").write_bytes(b"")
    for path in (tmp_path / "ended" / old.request.id, rest):
        os.utime(path, (0, 0))
    await store.sweep(86_400)
    assert not rest.exists()
    assert await store.page(None, None, 10) == ([new], False)
    with pytest.raises(NotFound):
        await store.get(old.request.id, None)


async def test_a_batch_whose_files_are_damaged_leaves_the_others_alone(store: BatchStore, tmp_path: Path) -> None:
    damaged, other = [await store.create(ORDER) for _ in range(2)]
    (tmp_path / f"{damaged.request.id}-request").write_bytes(b"\x00")
    assert [heading.id for heading in await store.live()] == [other.request.id]
    assert await store.states([damaged.request.id]) == []


async def test_a_batch_that_ends_while_batches_are_listed_is_listed_and_counted(
    store: BatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [await end(store, await store.create(ORDER)) for _ in range(2)]
    list_names, ending = LocalBlobs.names, list(states)

    async def names(blobs: LocalBlobs, prefix: str = "", *, idle: float = 0) -> list[str]:
        found = await list_names(blobs, prefix, idle=idle)
        if ending:
            await store.put_away(ending.pop())
        return found

    monkeypatch.setattr(LocalBlobs, "names", names)
    other = BatchStore(store.blobs)
    assert await other.page("a", None, 10) == (states[::-1], False)
    ending = []
    assert await other.page("a", states[1].request.id, 10) == (states[:1], False)
    ending = states[:1]
    assert len(await BatchStore(store.blobs).made("a", 0)) == 2


async def test_what_is_damaged_or_no_batch_among_the_ended_ones_leaves_the_others_alone(
    store: BatchStore, tmp_path: Path
) -> None:
    damaged, other = [await end(store, await store.create(ORDER)) for _ in range(2)]
    for state in (damaged, other):
        await store.put_away(state)
    (tmp_path / "ended" / damaged.request.id).write_bytes(b"{")
    for stray in (tmp_path / "ended" / ".DS_Store", tmp_path / "ended" / "notes", tmp_path / "A copy-request"):
        stray.write_bytes(b"?")
        os.utime(stray, (0, 0))
    assert await store.page(None, None, 10) == ([other], False)
    assert len(await store.made("a", 0)) == 1
    with pytest.raises(NotFound):
        await store.get(damaged.request.id, None)
    await store.sweep(86_400)
    assert await store.get(other.request.id, None) == other


async def test_pages_follow_one_another_through_running_and_ended_batches(store: BatchStore) -> None:
    states = [await store.create(BatchOrder(owner, CHAT, "file-1")) for owner in "abaabba"]
    for number in (0, 3, 4):
        states[number] = await end(store, states[number])
        await store.put_away(states[number])
    for viewer in (None, "a", "b"):
        wanted = [state for state in reversed(states) if viewer in (None, state.request.owner)]
        found: list[BatchState] = []
        more = True
        while more:
            page, more = await store.page(viewer, found[-1].request.id if found else None, 2)
            found += page
        assert found == wanted
    with pytest.raises(NotFound):
        await store.page("b", states[0].request.id, 2)


class Counted(LocalBlobs):
    """Blobs that count how many of them are read."""

    total = 0
    """Of all directories."""

    def below(self, name: str) -> Counted:
        return Counted(self._path(name))

    async def fetch(self, names: Iterable[str]) -> dict[str, bytes]:
        wanted = list(names)
        Counted.total += len(wanted)
        return await super().fetch(wanted)


async def test_what_does_not_change_of_ended_batches_is_read_once(store: BatchStore, tmp_path: Path) -> None:
    for _ in range(12):
        await store.put_away(await end(store, await store.create(ORDER)))
    other = BatchStore(Counted(tmp_path))
    assert len(await other.made("a", 0)) == 12
    before = Counted.total
    assert len(await other.made("a", 0)) == 12
    assert Counted.total == before
    assert len((await other.page("a", None, 2))[0]) == 2
    assert Counted.total - before < 12


async def test_a_batch_with_many_owners_costs_a_few_reads_for_each(store: BatchStore, tmp_path: Path) -> None:
    state = await store.create(ORDER)
    for number in range(40):
        state = await store.get(state.request.id, None)
        assert await store.claim(state) == number + 1
        if number % 10 == 5:
            await store.save(state.request.id, Record(owner=number + 1, fed=number))
    before = Counted.total
    found = await BatchStore(Counted(tmp_path)).states([state.request.id])
    assert [(state.claims, state.record.fed) for state in found] == [(40, 35)]
    assert Counted.total - before < 4 * 40
