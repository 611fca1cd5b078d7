"""How many batch jobs a stage holds beside live ones: as many as keep its process busy, and few more."""

from __future__ import annotations

from typing import Final

LONG: Final = 0.004
"""Seconds of CPU from which on a turn of the event loop is too long: a live job needs several of them in each stage."""

LEAST: Final = 32
"""Two reads beside live jobs: one that is worked on, and one that comes."""

SHRINK: Final = 0.8
GROW: Final = 1.05


class Room:
    """
    A limit that falls while turns of the event loop are long, and grows while they are not.

    Jobs held beyond those that keep the process busy add nothing to its rate: they make its turns longer, for all.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = most

    def turned(self, seconds: float, held: int, *, live: bool) -> None:
        """Take note of the CPU time of one turn, of how many batch jobs are held, and whether live jobs come."""
        if not live:
            self.limit = self._most
        elif seconds > LONG:
            self.limit = min(self.limit, max(LEAST, int(SHRINK * min(self.limit, held))))
        elif held > self.limit / 2:  # what is not used need not grow, and would not hold back the next burst
            self.limit = min(self._most, int(GROW * self.limit) + 1)
