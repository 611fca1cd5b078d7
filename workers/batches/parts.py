"""What owners of a batch write about its lines, and which lines are done."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final

from pipeline import logs
from pipeline.stores.batch_records import Part, Usage
from pipeline.stores.blobs import Blob, Blobs, BlobWriter, Growing
from pipeline.stores.lines import LONGEST, PIECE, read_lines
from workers.batches.answers import read_error, read_result
from workers.batches.tally import count

RESULTS: Final = "results"
ERRORS: Final = "errors"

log = logs.logger("feed")


class Done:
    """Which lines have an outcome, as one bit each, and what it came to."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self.completed = 0
        self.failed = 0
        self.failures: Counter[str] = Counter()
        """Lines that failed, by the code of the error."""
        self.usage = Usage()

    @property
    def count(self) -> int:
        """How many lines have one."""
        return self.completed + self.failed

    def __contains__(self, number: int) -> bool:
        at = number >> 3
        return at < len(self._bits) and bool(self._bits[at] & (1 << (number & 7)))

    def add(self, number: int, failure: str | None = None) -> bool:
        """Take note of an outcome, of an error by its code; False if the line had one."""
        if number in self:
            return False
        at = number >> 3
        if at >= len(self._bits):
            self._bits.extend(bytes(at + 1 - len(self._bits) + len(self._bits) // 8))
        self._bits[at] |= 1 << (number & 7)
        if failure is None:
            self.completed += 1
        else:
            self.failed += 1
            count(self.failures, failure)
        return True


class Parts:
    """An owner's own part, open for appending, and those of earlier owners."""

    def __init__(self, blobs: Blobs, batch_id: str, adopted: Sequence[Part], results: Growing, errors: Growing) -> None:
        self._blobs = blobs
        self._batch_id = batch_id
        self._adopted = adopted
        self._results = results
        self._errors = errors

    async def append(self, kind: str, data: bytes) -> None:
        """Return when these lines are durable. Raises StorageFull, and then none of them is there."""
        await self._own(kind).append(data)

    def size(self, kind: str) -> int:
        """Return how many bytes of results, or of errors, all parts have."""
        return self._own(kind).size + sum(_size(part, kind) for part in self._adopted)

    async def copy(self, kind: str, writer: BlobWriter) -> None:
        """Write all results, or errors, one part after another. Raises StorageFull."""
        for part in self._adopted:
            async with self._blobs.grow(_name(self._batch_id, kind, part.owner)) as blob:
                await _copy(blob, _size(part, kind), writer)
        own = self._own(kind)
        await _copy(own, own.size, writer)

    def _own(self, kind: str) -> Growing:
        return self._results if kind == RESULTS else self._errors


@asynccontextmanager
async def open_parts(blobs: Blobs, batch_id: str, owner: int, adopted: Sequence[Part]) -> AsyncIterator[Parts]:
    """Open the part of `owner`, beside those that were adopted. Raises StorageFull."""
    async with (
        blobs.grow(_name(batch_id, RESULTS, owner)) as results,
        blobs.grow(_name(batch_id, ERRORS, owner)) as errors,
    ):
        yield Parts(blobs, batch_id, adopted, results, errors)


async def adopt(blobs: Blobs, batch_id: str, parts: Sequence[Part], last: int, done: Done) -> tuple[Part, ...]:
    """
    Read what earlier owners wrote into `done`; return it, with the whole lines that owner `last` has written so far.

    What `last` may still write counts for nothing, nor what follows a line that a disk has spoilt: it is fed again.
    """
    adopted = [await _read(blobs, batch_id, part.owner, done, part) for part in parts]
    if last:
        adopted.append(await _read(blobs, batch_id, last, done, None))
    return tuple(part for part in adopted if part.results or part.errors)


async def remove_parts(blobs: Blobs, batch_id: str, owners: int) -> None:
    """Remove what all owners wrote: the files of the batch have it."""
    for owner in range(1, owners + 1):
        for kind in (RESULTS, ERRORS):
            await blobs.discard(_name(batch_id, kind, owner))


async def _read(blobs: Blobs, batch_id: str, owner: int, done: Done, part: Part | None) -> Part:
    sizes = []
    for kind in (RESULTS, ERRORS):
        async with blobs.grow(_name(batch_id, kind, owner)) as blob:
            whole = await _whole(blob)
            size = whole if part is None else _size(part, kind)
            sizes.append(found := await _take_in(blob, kind, done, min(size, whole)))
            if found < size:
                log.error("lines unreadable", batch=batch_id, owner=owner, kind=kind, of=size, lost=size - found)
    return Part(owner, *sizes)


async def _take_in(blob: Blob, kind: str, done: Done, size: int) -> int:
    """Read the first `size` bytes of a blob, up to where no outcome can be read; return how many that are."""
    async with aclosing(read_lines(blob, LONGEST)) as source:
        async for lines in source:
            for line in lines:
                if line.end > size:
                    return size
                try:
                    _take(line.data or b"", kind, done)
                except ValueError:  # the power failed, or the disk
                    return line.offset
    return size


def _take(written: bytes, kind: str, done: Done) -> None:
    if kind == ERRORS:
        done.add(*read_error(written))
        return
    number, usage = read_result(written)
    if done.add(number):
        done.usage.add(usage)


async def _whole(blob: Blob) -> int:
    """Return the size of a blob without a last line that was torn."""
    end = blob.size
    while end:
        begin = max(0, end - PIECE)
        newline = (await blob.read(begin, end - begin)).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


async def _copy(blob: Blob, size: int, writer: BlobWriter) -> None:
    for at in range(0, size, PIECE):
        await writer.write(await blob.read(at, min(PIECE, size - at)))


def _size(part: Part, kind: str) -> int:
    return part.results if kind == RESULTS else part.errors


def _name(batch_id: str, kind: str, owner: int) -> str:
    return f"{batch_id}-{kind}-{owner}"
