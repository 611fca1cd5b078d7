"""The lines of a batch that are open at a time: fed from the input in order, and again where it is needed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Final

import anyio

from pipeline.stores.blobs import Blob
from pipeline.stores.lines import Line, read_lines
from workers.batches.lines import OpenLine, line_of

OPEN_BYTES: Final = 64 * 2**20
"""Bytes of open lines of one batch: its bodies are in Redis meanwhile."""

TRIES: Final = 3
"""Jobs of a line that may end with their deadline before the line ends in an error."""

ANSWER_LATE: Final = 5.0
"""Seconds after a job's deadline by which its answer that it is too late should have come."""

LONGEST_REST: Final = 300.0
"""Seconds a line rests at most unless a provider asks for more."""


class Window:
    """Open lines by number, and the input they come from."""

    def __init__(self, blob: Blob, longest: int, line_timeout: float) -> None:
        self.open: dict[int, OpenLine] = {}
        self._blob = blob
        self._longest = longest
        self._timeout = line_timeout
        self._size = 0
        self._offset, self._number = 0, 1
        self._source: AsyncIterator[list[Line]] | None = None
        self._read: deque[Line] = deque()
        self._inherited: set[int] = set()
        """Lines whose job, if there is one, an earlier owner fed."""
        self.losses = 0
        """Grows with what makes it uncertain whether those jobs are there."""
        self.changed = anyio.Event()
        """Set when lines were closed or have to be fed again; another one then stands in its place."""

    def tell(self) -> None:
        """Let whoever waits look again."""
        self.changed.set()
        self.changed = anyio.Event()

    def add(self, line: OpenLine) -> None:
        """Have a line open."""
        self.open[line.number] = line
        self._size += line.size

    def inherit(self, line: OpenLine, now: float) -> None:
        """Have a line open that an earlier owner may have fed: its answer may be on its way."""
        line.wake = now + self._timeout
        self._inherited.add(line.number)
        self.add(line)
        self.losses += 1

    def settle_inherited(self, jobs: Iterable[str]) -> None:
        """These jobs of the batch are under way; lines of earlier owners that have none of them are fed again."""
        self._inherited &= self.open.keys()
        found = {line_of(job): job for job in jobs}
        for number in self._inherited:
            line = self.open[number]
            if number in found:
                line.job = found[number]
            else:
                line.rest(0.0)
        self._inherited &= found.keys()
        self.tell()

    def close(self, number: int) -> None:
        """A line has its outcome."""
        self._size -= self.open.pop(number).size

    def under_way(self, line: OpenLine, job: str, now: float) -> None:
        """A line has this job from now on."""
        self._inherited.discard(line.number)
        line.job, line.wake = job, now + self._timeout + ANSWER_LATE

    def begin_at(self, offset: int, number: int) -> None:
        """Feed from the line at `offset` on, which has this number."""
        self._offset, self._number = offset, number

    async def fresh(self, room: int) -> list[Line]:
        """Return up to `room` lines that were not fed yet, none when there are none; they are not open yet."""
        lines: list[Line] = []
        size = self._size
        if self._source is None:
            self._source = read_lines(self._blob, self._longest, self._offset, self._number)
        while len(lines) < room and size < OPEN_BYTES:
            if not self._read:
                self._read.extend(await anext(self._source, []))
                if not self._read:
                    break
            line = self._read.popleft()
            lines.append(line)
            size += line.end - line.offset
        return lines

    def due(self, now: float) -> list[OpenLine]:
        """Return the open lines that are to be looked at again."""
        return [line for line in self.open.values() if line.wake <= now]

    async def text(self, line: OpenLine) -> Line:
        """Return an open line as it stands in the input."""
        data = (await self._blob.read(line.offset, line.size)).removesuffix(b"\n")
        return Line(line.number, line.offset, line.end, data.removeprefix(b"\xef\xbb\xbf") if not line.offset else data)

    def defer(self, line: OpenLine, now: float, retry_after: float | None) -> None:
        """Let a line rest because nobody could serve it: longer each time, and as long as was asked for."""
        self._inherited.discard(line.number)
        rest = min(LONGEST_REST, 2.0**line.deferrals) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
        line.deferrals += 1
        line.rest(now + max(rest, retry_after or 0.0))

    def lose(self, last: int) -> None:
        """Redis lost the admissions after number `last`, and maybe some of earlier owners."""
        for line in self.open.values():
            if line.admission > last:
                line.admission = 0
                line.rest(0.0)
        self.losses += 1
        self.tell()

    @property
    def resting(self) -> int:
        """How many lines wait for a later try."""
        return sum(not line.job and line.number not in self._inherited for line in self.open.values())

    @property
    def jobs(self) -> list[str]:
        """Ids of the jobs under way."""
        return [line.job for line in self.open.values() if line.job]
