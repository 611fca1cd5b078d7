"""Contents that are not what was stored are noticed by who reads them all."""

from __future__ import annotations

import hashlib

import pytest
from fakes.blob_cases import store
from obstore.store import MemoryStore

from pipeline.errors import FileDamaged
from pipeline.stores.blobs import Blob
from pipeline.stores.objects import ObjectBlobs
from pipeline.stores.verified import Verified

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 40


async def read_all(blob: Blob, piece: int) -> bytes:
    found = b""
    while data := await blob.read(len(found), piece):
        found += data
    return found


@pytest.mark.parametrize("piece", [1, 100, 256, 10_000, 20_000])
async def test_what_was_stored_is_read_however_it_is_cut(piece: int) -> None:
    blobs = ObjectBlobs(MemoryStore(), "blobs")
    await store(blobs, "some", DATA)
    async with blobs.open("some") as blob:
        verified = Verified(blob, hashlib.sha256(DATA).hexdigest())
        assert verified.size == len(DATA)
        assert await verified.read(300, 5) == DATA[300:305]
        assert await read_all(verified, piece) == DATA
        assert await read_all(verified, piece) == DATA


async def test_the_end_of_anything_else_is_withheld() -> None:
    blobs = ObjectBlobs(MemoryStore(), "blobs")
    for damaged in (b"x" + DATA[1:], DATA[:-1], DATA + b"x"):
        await store(blobs, "some", damaged)
        async with blobs.open("some") as blob:
            verified = Verified(blob, hashlib.sha256(DATA).hexdigest())
            assert await verified.read(0, 1000) == damaged[:1000]
            assert await verified.read(1000, 500) == damaged[1000:1500]
            assert await verified.read(7, 9) == damaged[7:16]
            with pytest.raises(FileDamaged):
                await verified.read(1500, 20_000)
