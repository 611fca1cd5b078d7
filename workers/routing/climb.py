"""How a learned rate rises until the limit is met again; pure."""

from __future__ import annotations

import math
from typing import Final

AGAIN: Final = 60.0
"""Seconds for which a rate is kept that was higher before, and in which it is doubled then, up to what it was."""

DOUBLINGS: Final = 30
"""More than any rate needs, and no more than a number can hold."""

FADE: Final = 3600.0
"""Seconds after which what was proven counts half beside what is accepted."""

PROOF: Final = 30.0
"""Seconds after which what was accepted is proven; of a shorter time a bucket may have given what it had kept."""


class Climb:
    """A rate that goes from its base to a goal within seconds of calls, and slowly on from there."""

    def __init__(self) -> None:
        self.base = 0.0
        """Calls a second to begin with; 0 while nothing is learned."""
        self.proven = 0.0
        """Calls a second that were accepted once; fades while fewer are. 0 until then."""
        self._goal = self._seconds = self._grown = 0.0

    @property
    def rate(self) -> float:
        """Calls a second; there is a base."""
        if self._grown < self._seconds:
            return self.base * math.pow(self._goal / self.base, self._grown / self._seconds)
        beyond = self._grown - self._seconds
        # A percent in half a minute; faster and faster, for limits may be raised.
        slowly = 1 + beyond / 3000 + 0.05 * (beyond / 120) ** 3
        # Others may have had their part for a time only.
        again = min(self.proven / self._goal, math.pow(2, min(beyond / AGAIN - 1, DOUBLINGS)))
        return self._goal * max(slowly, again)

    def learn(self, base: float, goal: float, seconds: float) -> None:
        """Go from `base` to `goal` within so many seconds."""
        self.base, self._goal, self._seconds, self._grown = base, goal, seconds, 0.0

    def grow(self, seconds: float) -> None:
        """Take note of so many seconds of calls."""
        self._grown += seconds

    def prove(self, rate: float, seconds: float) -> None:
        """Take note of how many calls a second were accepted for so long."""
        if seconds >= PROOF:
            weight = 0.5 ** (seconds / FADE)
            self.proven = max(rate, self.proven**weight * rate ** (1 - weight))
