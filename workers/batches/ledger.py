"""What an owner writes down about its batch; nothing any more once somebody else owns it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import anyio
import msgspec

from pipeline import failpoints, logs, metrics
from pipeline.errors import StorageFull
from pipeline.stores.batch_progress import Progress
from pipeline.stores.batch_records import BatchRequest, Record, Usage
from pipeline.stores.batches import BatchStore
from workers.batches.parts import ERRORS, Done, Parts
from workers.batches.tally import Tally

FULL_PAUSE: Final = 1.0
"""Seconds between two attempts to write to a full disk: the batch rests meanwhile, nothing of it is lost."""

log = logs.logger("feed")

T = TypeVar("T")


class Superseded(Exception):
    """The batch has a later owner."""


class Outcomes:
    """Outcomes of lines that are to be written: results, or errors."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.data = bytearray()
        self.usage = Usage()
        self._lines: list[tuple[int, str | None]] = []

    def add(self, number: int, text: bytes, failure: str | None = None) -> None:
        """Add what is to be written about a line; `failure` is the code of its error."""
        self.data += text
        self._lines.append((number, failure))

    def mark(self, done: Done) -> None:
        """They are written, and others may follow."""
        for number, failure in self._lines:
            done.add(number, failure)
        metrics.BATCH_LINES["failed" if self.kind == ERRORS else "answered",].inc(len(self._lines))
        done.usage.add(self.usage)
        self.data.clear()
        self._lines.clear()
        self.usage = Usage()


class Ledger:
    """The outcomes of a batch's lines, and its record."""

    def __init__(self, store: BatchStore, request: BatchRequest, record: Record, done: Done) -> None:
        self._store = store
        self._request = request
        self._parts: Parts | None = None
        self._saving = anyio.Lock()
        self._writing = anyio.Lock()
        self.record = record
        self.done = done
        self.tally = Tally(record.progress)

    def open(self, parts: Parts) -> None:
        """Take the parts that outcomes go to: they are there once those of earlier owners were read."""
        self._parts = parts

    async def save(self, **changes: Any) -> None:
        """Write the record with `changes`, and the counts as they are. Raises Superseded."""
        done = self.done
        async with self._saving:  # or an earlier record might overtake a later one
            self.record = msgspec.structs.replace(
                self.record, completed=done.completed, failed=done.failed, usage=done.usage, **changes
            )
            await self.check()
            await self.patiently(lambda: self._store.save(self._request.id, self.record))

    def progress(self, **now: Any) -> Progress:
        """Return how the batch comes along, with what is so only `now`."""
        return self.tally.progress(self.done.failures, **now)

    def tells(self, progress: Progress) -> bool:
        """
        Whether the record says so, and counts all that is written.

        An outcome counts once it is durable: by then what is open may be in the record already.
        """
        counts = (self.record.completed, self.record.failed)
        return progress == self.record.progress and counts == (self.done.completed, self.done.failed)

    async def reach(self, status: str, now: float, **changes: Any) -> None:
        """Write that the batch has a new status since `now`, in seconds since 1970. Raises Superseded."""
        times = {**self.record.times, f"{status}_at": int(now)}
        await self.save(status=status, times=times, **changes)

    async def unless_cancelled(self, status: str) -> str:
        """Return how the batch ends: so, or cancelled if that came first; later it cannot be. Raises Superseded."""
        await self.check()
        first = await self.patiently(lambda: self._store.close(self._request.id))
        return status if first else "cancelled"

    async def write(self, *several: Outcomes) -> None:
        """Return when these outcomes are durable; only then their lines are done. Raises Superseded."""
        async with self._writing:  # a part has one writer: of two at a time one would overwrite the other's lines
            await self.check()
            for outcomes in several:
                if outcomes.data:
                    await self._append(outcomes)

    async def _append(self, outcomes: Outcomes) -> None:
        parts, data = self._parts, bytes(outcomes.data)
        assert parts is not None
        await self.patiently(lambda: parts.append(outcomes.kind, data))
        outcomes.mark(self.done)  # without a pause: who is cancelled meanwhile must not leave half of it
        if failpoints.ARMED:
            await failpoints.reach("feed.after_append")

    async def check(self) -> None:
        """Raise Superseded if somebody else owns the batch, or it is over."""
        if await self._store.superseded(self._request.id, self.record.owner):
            raise Superseded

    async def patiently(self, write: Callable[[], Awaitable[T]]) -> T:
        """Do this as soon as the disk has room for it. Raises Superseded if somebody else owns the batch by then."""
        told = False
        while True:
            try:
                return await write()
            except StorageFull as error:
                if not told:
                    log.error("batch waits for the disk", batch=self._request.id, error=error.message)
                told = True
                await anyio.sleep(FULL_PAUSE)
            await self.check()
