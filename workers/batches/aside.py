"""Lines of a batch that became dead letters: they may run again as long as other lines have no outcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from workers.batches.lines import OpenLine


class Failure(NamedTuple):
    """What is written about a line that does not run again."""

    number: int
    error: bytes
    code: str


class Aside:
    """Dead letters, oldest first."""

    def __init__(self) -> None:
        self._lines: dict[int, tuple[OpenLine, Failure]] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: OpenLine, error: bytes, code: str) -> None:
        """A line became a dead letter."""
        self._lines[line.number] = line, Failure(line.number, error, code)

    def take(self, number: int) -> OpenLine | None:
        """Return a line that is to run again, if it became a dead letter."""
        line, _ = self._lines.pop(number, (None, None))
        return line

    def fail(self, most: int) -> Iterator[Failure]:
        """Yield what becomes of the oldest, until `most` are left."""
        while len(self._lines) > most:
            _, failure = self._lines.pop(next(iter(self._lines)))
            yield failure
