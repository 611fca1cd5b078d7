"""The lines of a JSONL file: cut out of its bytes in bounded memory, with their numbers and places."""

from __future__ import annotations

import codecs
from array import array
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Final, NamedTuple

from anyio import to_thread

from pipeline.stores.blobs import Blob

PIECE: Final = 2**20
"""Bytes read at a time."""

LONGEST: Final = 2**31
"""Bytes of a line that we wrote, or that was within its limit when its batch was validated: there is none now."""

SLOT: Final = 16
"""Bytes a remembered `custom_id` takes: its hash and its line's place, 8 bytes each."""


class Line(NamedTuple):
    """A line that is not blank. `number` counts from 1, blank lines too; `end` is where the next one begins."""

    number: int
    offset: int
    end: int
    data: bytes | None
    """Without line feed and byte order mark; None for a line that is too long to be looked at."""


class Splitter:
    """Cuts bytes into lines as they come. Start it at a line's `end` and the number after it to go on there."""

    def __init__(self, max_bytes: int, offset: int = 0, number: int = 1) -> None:
        self._max_bytes = max_bytes
        self._offset = offset
        self._number = number
        self._rest = b""
        self._dropped = 0
        """Bytes thrown away of a line that is too long."""

    @property
    def count(self) -> int:
        """How many lines are complete, blank ones too, and those before the one it was started at."""
        return self._number - 1

    def feed(self, data: bytes) -> list[Line]:
        """Return the lines that are complete with `data`. A MiB of blank lines takes 0.2 s: call it on a thread."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = list(self._lines(whole, ending=1))
        if len(self._rest) > self._max_bytes:
            self._dropped += len(self._rest)
            self._rest = b""
        return lines

    def end(self) -> list[Line]:
        """Return the last line, if it has no line feed."""
        return list(self._lines([self._rest] if self._rest or self._dropped else [], ending=0))

    def _lines(self, texts: list[bytes], *, ending: int) -> Iterator[Line]:
        for text in texts:
            offset, number = self._offset, self._number
            self._offset = end = offset + self._dropped + len(text) + ending
            self._number += 1
            if self._dropped or len(text) > self._max_bytes:
                self._dropped = 0
                yield Line(number, offset, end, None)
                continue
            if not offset:
                text = text.removeprefix(codecs.BOM_UTF8)
            if text and not text.isspace():
                yield Line(number, offset, end, text)


async def read_lines(blob: Blob, max_bytes: int, offset: int = 0, number: int = 1) -> AsyncGenerator[list[Line], None]:
    """Yield the lines of `blob` from a line's `offset` on, as many at a time as a piece of it holds, or none."""
    splitter = Splitter(max_bytes, offset, number)
    async for data in read_pieces(blob, offset):
        yield await to_thread.run_sync(splitter.feed, data)
    yield splitter.end()


async def read_pieces(blob: Blob, offset: int = 0) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of `blob` from `offset` on."""
    while data := await blob.read(offset, PIECE):
        yield data
        offset += len(data)


class CustomIds:
    """
    Every `custom_id` of a file, to find those that come twice, in 32 to 64 bytes each.

    Kept are 64 bits of hash and where the line is. Where two hashes are equal, `at` returns the `custom_id` of the
    line at an offset, to be compared.
    """

    def __init__(self, at: Callable[[int], str]) -> None:
        self._at = at
        self._count = 0
        self._slots = _empty(1024)

    def add(self, custom_id: str, offset: int) -> bool:
        """Remember the `custom_id` of the line at `offset`; return False if an earlier line has it."""
        if self._count * 2 * SLOT > len(self._slots) * 8:  # half full: a search ends after one or two places
            self._grow()
        slots = self._slots
        # Python's own hash has a secret key in each process: nobody can choose names that collide.
        digest = hash(custom_id) & 0xFFFF_FFFF_FFFF_FFFF or 1
        place = _place(digest, slots)
        while found := slots[place]:
            if found == digest and self._at(slots[place + 1]) == custom_id:
                return False
            place = (place + 2) % len(slots)
        slots[place], slots[place + 1] = digest, offset
        self._count += 1
        return True

    def _grow(self) -> None:
        old = self._slots
        self._slots = slots = _empty(len(old))  # two numbers a slot: twice as many slots
        for at in range(0, len(old), 2):
            if digest := old[at]:
                place = _place(digest, slots)
                while slots[place]:
                    place = (place + 2) % len(slots)
                slots[place], slots[place + 1] = digest, old[at + 1]


def _empty(count: int) -> array[int]:
    return array("Q", [0]) * (count * SLOT // 8)


def _place(digest: int, slots: array[int]) -> int:
    return 2 * (digest % (len(slots) // 2))
