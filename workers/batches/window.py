"""The lines of a batch that are open at a time, and those among them that wait."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Set
from itertools import chain
from typing import Final

import anyio

from pipeline.errors import UpstreamOverloaded
from pipeline.job import ErrorFields
from pipeline.settings import BatchSettings
from workers.batches.aside import Aside
from workers.batches.lines import OpenLine, line_of
from workers.batches.outages import Outages
from workers.batches.rests import Rests

RESTING: Final = 8
"""How many lines of a batch may rest, times its share of the window: 450 bytes each, and nothing in Redis."""

ANSWER_LATE: Final = 5.0
"""Seconds after a job's deadline by which its answer that it is too late should have come."""

DOUBT_EVERY: Final = 60.0
"""Seconds between two searches for jobs that should have been answered: while no worker runs they all stay."""

LONGEST_REST: Final = 300.0
"""Seconds a line rests at most unless a provider asks for more."""


class Window:
    """
    Lines under way by number, and those that rest. `share` says how many of those of all batches may be under way.

    Times are seconds by the event loop's clock.
    """

    def __init__(self, limits: BatchSettings, share: Callable[[], int]) -> None:
        self.open: dict[int, OpenLine] = {}
        self.rests = Rests()
        self.aside = Aside()
        self.outages = Outages()
        self._limits = limits
        self._share = share
        self._size = 0
        self._next_doubt = 0.0
        self._limited: Counter[str] = Counter()
        """Lines that met a provider's limit and are under way, or rest until they are; by model."""
        self._inherited: set[int] = set()
        """Lines whose job, if there is one, an earlier owner fed."""
        self.doubts = 0
        """Grows with what makes it uncertain whether jobs are there."""
        self.closed = 0
        """Lines that got their outcome."""
        self.changed = anyio.Event()
        """Set when lines were closed or have to be fed again; another one then stands in its place."""

    def tell(self) -> None:
        """Let whoever waits look again."""
        self.changed.set()
        self.changed = anyio.Event()

    # Lines under way

    @property
    def room(self) -> int:
        """How many more lines may be under way. What earlier owners fed is theirs until it is known to be lost."""
        return self._share() - len(self.open) + len(self._inherited)

    @property
    def room_for_new(self) -> int:
        """How many more lines may be under way that were never fed: none while many rest."""
        return min(self.room, RESTING * self._share() - len(self.rests))

    @property
    def room_in_bytes(self) -> int:
        """How many more bytes of lines may be under way."""
        return self._limits.batch_window_bytes * self._share() // self._limits.batch_window - self._size

    def add(self, line: OpenLine) -> None:
        """Have a line under way."""
        self.open[line.number] = line
        self._size += line.size

    def inherit(self, line: OpenLine, now: float) -> None:
        """Have a line under way that an earlier owner may have fed: its answer may be on its way."""
        line.wake = now + self._limits.batch_line_timeout
        self._inherited.add(line.number)
        self.add(line)
        self.doubt()

    def reconcile(self, admitted: Set[str], jobs: Collection[str]) -> None:
        """These `jobs` are under way; other `admitted` ones, and those of earlier owners, are lost: feed them again."""
        found, lost = {line_of(job): job for job in jobs}, admitted - set(jobs)
        for line in list(self.open.values()):
            inherited = line.number in self._inherited
            if inherited and line.number in found:
                line.job = found[line.number]
            elif inherited or line.job in lost:
                self.rest(line, 0.0)
        self.tell()

    def under_way(self, line: OpenLine, job: str, now: float) -> None:
        """A line has this job from now on."""
        self._inherited.discard(line.number)
        line.job, line.fed_at, line.admission = job, now, 0
        line.wake = now + self._limits.batch_line_timeout + ANSWER_LATE

    def doubt(self) -> None:
        """Jobs may not be there any more."""
        self.doubts += 1

    def doubt_late(self, now: float) -> None:
        """Doubt jobs that should have had an answer by now; they may still wait, or their answers to be written."""
        if now >= self._next_doubt and any(line.job and line.wake <= now for line in self.open.values()):
            self._next_doubt = now + DOUBT_EVERY
            self.doubt()

    def get(self, number: int) -> OpenLine | None:
        """Return a line that has no outcome yet."""
        return self.open.get(number) or self.rests.get(number)

    def close(self, number: int) -> None:
        """A line has its outcome."""
        self.closed += 1
        line = self._leave(number) if number in self.open else self.rests.drop(number)
        if line is not None:
            self._mark(line, "", limited=False)

    def set_aside(self, line: OpenLine, error: bytes, code: str) -> None:
        """A line became a dead letter."""
        self.close(line.number)
        self.aside.add(line, error, code)

    def bring_back(self, number: int) -> None:
        """Have a line run again, if it was set aside."""
        if (line := self.aside.take(number)) is not None:
            line.job, line.tries, line.limited = "", 0, False
            self.rests.add(line, 0.0)

    def _leave(self, number: int) -> OpenLine:
        line = self.open.pop(number)
        self._inherited.discard(number)
        self._size -= line.size
        return line

    @property
    def jobs(self) -> list[str]:
        """Ids of the jobs under way."""
        return [line.job for line in self.open.values() if line.job]

    @property
    def admitted(self) -> Set[str]:
        """Ids of the jobs that this owner knows to be in Redis, unless they were lost."""
        return {line.job for line in self.open.values() if line.job and line.admission}

    # Lines that rest

    def rest(self, line: OpenLine, until: float) -> None:
        """Let a line under way rest until then, unless it has its outcome."""
        if line.number in self.open:
            self._leave(line.number)
            line.job = ""
            self.rests.add(line, until)

    def defer(self, line: OpenLine, need: str, error: ErrorFields, now: float) -> bool:
        """
        Let a line rest that was not served for want of `need`: longer each time, and as long as was asked for.

        Return whether this begins a pause, in which the line rests until its end.
        """
        rest = min(LONGEST_REST, 2.0**line.deferrals) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
        line.deferrals += 1
        line.code = error.code
        self.rest(line, now + max(rest, error.retry_after or 0.0))
        limited = error.code == UpstreamOverloaded.code
        self._mark(line, need, limited=limited)
        begins = not limited and self.outages.failed(need, line.number, error, now)
        if begins:
            self.rests.hold_all(need)
        elif self.outages.pausing(need):
            self.rests.hold(line, need)
        return begins

    def _mark(self, line: OpenLine, need: str, *, limited: bool) -> None:
        """A line lacks this; whoever answers that it is at its limit is there, and paces the lines by itself."""
        if line.limited:
            self._limited[line.need] -= 1
            if not self._limited[line.need]:
                del self._limited[line.need]
        line.need, line.limited = need, limited
        if limited:
            self._limited[need] += 1

    def met(self, needs: Collection[str], number: int, now: float) -> list[str]:
        """A line got what it needs; return the pauses this ends."""
        ended = self.outages.met(needs, number)
        for need in ended:
            self.rests.free(need, now)
        return ended

    @property
    def troubled(self) -> bool:
        """Whether some lines may have to wait for others."""
        return bool(self.outages or self._limited)

    def hold_up(self, line: OpenLine, needs: Iterable[str]) -> bool:
        """Let a line under way rest, if there are lines enough that wait for what it needs; return whether it does."""
        lacking = next((need for need in needs if self._is_held_up(need)), None)
        if lacking is not None:
            self._leave(line.number)
            self.rests.hold(line, lacking)
        return lacking is not None

    @property
    def paused(self) -> str | None:
        """Why nothing is fed at present but what tries whether it can be served; a code of an error."""
        if not self.open.keys() <= self.outages.probes:
            return None
        return self.outages.code or self.rests.code

    def _is_held_up(self, need: str) -> bool:
        return self.outages.pausing(need) or self._limited[need] >= self._share()

    def awake(self, now: float, most: int) -> list[OpenLine]:
        """Return lines that rested for long enough, up to `most` as far as there is room, and those that try."""
        lines = []
        for need in self.outages.to_probe(now):
            if (line := self.rests.first(need)) is not None:
                self.outages.probe(need, line.number, now)
                self.add(line)
                lines.append(line)
        rested = chain(self.rests.due(now), self.rests.held(lambda need: not self._is_held_up(need)))
        while len(lines) < most and self.room > 0 and self.room_in_bytes > 0 and (line := next(rested, None)):
            self.add(line)
            lines.append(line)
        return lines

    def lose(self, last: int) -> None:
        """Redis lost the admissions after number `last`, and maybe some of earlier owners."""
        for line in [line for line in self.open.values() if line.admission > last]:
            line.admission = 0
            self.rest(line, 0.0)
        self.doubt()
        self.tell()
