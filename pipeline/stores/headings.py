"""What of many batches does not change, for those who look through all of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from pipeline.stores.batch_records import BatchRequest, readable
from pipeline.stores.blobs import Blobs

READ_AT_ONCE: Final = 256
"""Blobs between two pauses: to decode so many takes about a millisecond."""


class Heading(NamedTuple):
    """A batch, as far as it is listed, counted and found. They come in the order they were made in."""

    created: float
    id: str
    owner: str
    input: str
    expires: float


class Headings:
    """Headings of the batches whose blobs are known by their names: each blob is read once."""

    def __init__(self, blobs: Blobs, decode: Callable[[bytes], BatchRequest]) -> None:
        self._blobs = blobs
        self._decode = decode
        self._known: dict[str, Heading | None] = {}
        """By the name of the blob; None for one that is unreadable."""
        self._sorted: dict[str | None, list[Heading]] = {}
        """By owner, and under None those of all, oldest first; empty when something changed."""

    async def look(self, names: Iterable[str]) -> None:
        """Know those of the blobs of these `names`, and of no others."""
        there = set(names)
        if there == self._known.keys():
            return
        new = iter(there - self._known.keys())
        for name in self._known.keys() - there:
            del self._known[name]
            self._sorted = {}
        while some := list(islice(new, READ_AT_ONCE)):
            found = await self._blobs.fetch(some)
            read = readable(self._decode, found)
            self._known |= dict.fromkeys(found) | {name: _heading(request) for name, request in read.items()}
            self._sorted = {}

    def get(self, name: str) -> Heading | None:
        """Return that of one blob."""
        return self._known.get(name)

    def since(self, owner: str | None, begin: float) -> Sequence[Heading]:
        """Return those of a key, or with None of all, made after `begin`, in seconds since 1970, oldest first."""
        found = self._of(owner)
        return found[bisect_right(found, begin, key=_created) :]

    def before(self, owner: str | None, end: Heading | None, most: int) -> Sequence[Heading]:
        """Return the newest of a key, or with None of all, that were made before `end`, oldest first."""
        found = self._of(owner)
        behind = len(found) if end is None else bisect_left(found, end)
        return found[max(0, behind - most) : behind]

    def _of(self, owner: str | None) -> list[Heading]:
        if not self._sorted:
            self._sorted = _by_owner(filter(None, self._known.values()))
        return self._sorted.get(owner, [])


def _heading(request: BatchRequest) -> Heading:
    return Heading(request.created, request.id, request.owner, request.input_file_id, request.expires)


def _by_owner(headings: Iterable[Heading]) -> dict[str | None, list[Heading]]:
    found: dict[str | None, list[Heading]] = {None: sorted(headings)}
    for heading in found[None]:
        found.setdefault(heading.owner, []).append(heading)
    return found


def _created(heading: Heading) -> float:
    return heading.created
