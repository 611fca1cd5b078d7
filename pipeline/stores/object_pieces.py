"""A growing blob as a run of objects: one for each append, numbered, and read as if they were one."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
import obstore

from pipeline.errors import StorageUnavailable
from pipeline.stores.object_calls import asking, finding
from pipeline.stores.together import together

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PAUSE: Final = 0.2
"""Seconds from one small append to the next, so that a batch of slow lines makes few objects."""

SMALL: Final = 256 * 1024


class Piece(NamedTuple):
    """An object of a run. Once it is there it does not change."""

    key: str
    size: int


class ObjectPieces:
    """
    An open run. Only one process appends to it, and it never goes on after a call of which it does not know the end.

    So an object that arrives late, after somebody else has read the run, is the last one, and follows what was read.
    """

    def __init__(self, store: ObjectStore, run: str, pieces: list[Piece]) -> None:
        self._store = store
        self._run = run
        self._pieces = pieces
        self._ends = list(accumulate(piece.size for piece in pieces))
        self._doubtful: bytes | None = None
        self._next = 0.0

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return self._ends[-1] if self._ends else 0

    async def append(self, data: bytes) -> None:
        """Put one more object; `Growing.append` says the rest. Raises StorageFull and StorageUnavailable."""
        if self._doubtful not in (None, data):
            raise StorageUnavailable("an earlier append has an unknown end; the blob is to be opened anew")
        if len(data) < SMALL:
            await anyio.sleep_until(self._next)
        piece = Piece(_key(self._run, len(self._pieces)), len(data))
        self._doubtful = data
        with anyio.CancelScope(shield=True), asking():
            await obstore.put_async(self._store, piece.key, data, use_multipart=False)
        self._doubtful = None
        self._next = anyio.current_time() + PAUSE
        self._pieces.append(piece)
        self._ends.append(self.size + piece.size)

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes, from as many objects as they are in."""
        end = min(offset + length, self.size)
        ranges, at = [], bisect_right(self._ends, offset)
        while offset < end:
            piece, begin = self._pieces[at], self._ends[at] - self._pieces[at].size
            stop = min(end, self._ends[at])
            ranges.append((piece.key, offset - begin, stop - begin))
            offset, at = stop, at + 1
        return b"".join(await together(self._fetch, ranges))

    async def _fetch(self, place: tuple[str, int, int]) -> bytes:
        key, begin, end = place
        with finding():
            return bytes(await obstore.get_range_async(self._store, key, start=begin, end=end))


async def open_pieces(store: ObjectStore, run: str) -> ObjectPieces:
    """Return a run as it is now, up to the first object that is missing. Raises StorageUnavailable."""
    found = await pieces_of(store, run)
    whole = takewhile(lambda numbered: numbered[1].key == _key(run, numbered[0]), enumerate(found))
    return ObjectPieces(store, run, [piece for _, piece in whole])


async def pieces_of(store: ObjectStore, run: str) -> list[Piece]:
    """Return the objects of a run in order. Raises StorageUnavailable."""
    with asking():
        listed = await obstore.list(store, run).collect_async()
    return sorted(Piece(found["path"], found["size"]) for found in listed)


def _key(run: str, number: int) -> str:
    return f"{run}/{number:08}"
