"""S36, S38: nothing tells a key what others have, not even the work it takes to refuse; ids are drawn by chance."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.errors import NotFound
from pipeline.settings import FileSettings
from pipeline.stores.batch_records import BatchOrder
from pipeline.stores.batches import BatchStore
from pipeline.stores.files import FileStore, Wanted, new_file_id
from pipeline.stores.local import LocalBlobs

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


class Watched(LocalBlobs):
    """Takes note of every look at the disk."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.looks: list[tuple[str, int]] = []

    async def fetch(self, names: Iterable[str]) -> dict[str, bytes]:
        wanted = list(names)
        self.looks.append(("fetch", len(wanted)))
        return await super().fetch(wanted)

    async def names(self, prefix: str = "", *, idle: float = 0) -> list[str]:
        self.looks.append(("names", len(prefix)))
        return await super().names(prefix, idle=idle)


async def test_s36_another_keys_batch_is_refused_with_the_work_of_one_that_does_not_exist(tmp_path: Path) -> None:
    blobs = Watched(tmp_path)
    store = BatchStore(blobs)
    theirs = (await store.create(BatchOrder("team", CHAT, new_file_id()))).request.id
    await store.get(theirs, "team")  # whatever a process remembers of a batch, it knows now
    looks = []
    for batch_id in (theirs, theirs, "batch_" + "0" * 32):
        blobs.looks = []
        with pytest.raises(NotFound):
            await store.get(batch_id, "other")
        looks.append(blobs.looks)
    assert looks[0] == looks[1] == looks[2] != []


async def test_s36_another_keys_file_is_refused_with_the_work_of_one_that_does_not_exist(tmp_path: Path) -> None:
    blobs = Watched(tmp_path)
    store = FileStore(blobs, FileSettings(min_free_bytes=0))
    async with store.receive("team") as upload:
        await upload.write(b"x")
        theirs = (await upload.keep(Wanted("x", "batch"))).file.id
    await store.get(theirs, "team")
    looks = []
    for file_id in (theirs, theirs, new_file_id()):
        blobs.looks = []
        with pytest.raises(NotFound):
            await store.get(file_id, "other")
        looks.append(blobs.looks)
    assert looks[0] == looks[1] == looks[2] != []


async def test_s38_ids_of_batches_and_of_what_they_bring_are_of_128_bits_each(tmp_path: Path) -> None:
    store = BatchStore(LocalBlobs(tmp_path))
    requests = [(await store.create(BatchOrder("team", CHAT, new_file_id()))).request for _ in range(8)]
    ids = [found for r in requests for found in (r.id, r.output_file_id, r.error_file_id)]
    assert all(re.fullmatch(r"(batch_|file-)[0-9a-f]{32}", found) for found in ids)
    for place in range(0, 32, 8):
        parts = {found[-32:][place : place + 8] for found in ids}
        assert len(parts) == len(ids), "a part that is the same in all may be a time, or another id"
