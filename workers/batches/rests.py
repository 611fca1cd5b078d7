"""Lines of a batch that wait for a later try: until a time, or until what they need is there again."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Final

from workers.batches.lines import OpenLine

SPREAD: Final = 1.0
"""Seconds over which lines come again that waited for the same thing."""


class Rests:
    """Resting lines by number: none has a job, nor anything in Redis. Times are the event loop's, in seconds."""

    def __init__(self) -> None:
        self._lines: dict[int, OpenLine] = {}
        self._timed: list[tuple[float, int]] = []
        """A heap of times and numbers; it may have some of lines that do not rest any more."""
        self._held: dict[str, deque[OpenLine]] = {}

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def code(self) -> str | None:
        """The error for which one of them rests, but for a limit: who has one is there, and says for how long."""
        return next((line.code for line in self._lines.values() if line.code and not line.limited), None)

    def get(self, number: int) -> OpenLine | None:
        """Return a line if it rests."""
        return self._lines.get(number)

    def add(self, line: OpenLine, until: float) -> None:
        """Let a line rest until then."""
        line.wake = until
        self._lines[line.number] = line
        heappush(self._timed, (until, line.number))

    def hold(self, line: OpenLine, need: str) -> None:
        """Let a line rest until what it needs is there."""
        line.wake = float("inf")
        self._lines[line.number] = line
        self._held.setdefault(need, deque()).append(line)

    def hold_all(self, need: str) -> None:
        """Let all lines that lacked this rest until it is there."""
        for line in self._lines.values():
            if line.need == need:
                self.hold(line, need)

    def drop(self, number: int) -> OpenLine | None:
        """A line does not rest any more."""
        return self._lines.pop(number, None)

    def due(self, now: float) -> Iterator[OpenLine]:
        """Yield the lines whose time has come; they do not rest any more."""
        while self._timed and self._timed[0][0] <= now:
            wake, number = heappop(self._timed)
            line = self._lines.get(number)
            if line is not None and line.wake == wake:
                del self._lines[number]
                yield line

    def held(self, wanted: Callable[[str], bool]) -> Iterator[OpenLine]:
        """Yield lines that wait for what is `wanted`, as long as it is; they do not rest any more."""
        for need in list(self._held):
            while wanted(need) and (line := self.first(need)) is not None:
                yield line

    def first(self, need: str) -> OpenLine | None:
        """Return the line that has waited longest for this, which does not rest any more."""
        waiting = self._held.get(need, ())
        while waiting:
            line = waiting.popleft()
            if self._lines.get(line.number) is line and line.wake == float("inf"):
                return self._lines.pop(line.number)
        self._held.pop(need, None)
        return None

    def free(self, need: str, now: float) -> None:
        """What lines waited for is there: they come again, spread a little."""
        while (line := self.first(need)) is not None:
            self.add(line, now + random.uniform(0.0, SPREAD))  # noqa: S311 - spreads load
