"""How many calls a deployment may have in flight on the batch lane: additive increase, multiplicative decrease."""

from __future__ import annotations

import math
from typing import Final

TOLERATED: Final = 0.02
"""Share of the calls in flight that may be overloads without a decrease: a provider of any size has some."""


class Limit:
    """
    Concurrency learned from overloads; none until the first.

    It is halved at most once for the calls that were in flight together. Then it grows with every round of successes
    in which it was used, by one and by one more each time: what was lost is found again in few rounds.
    """

    def __init__(self) -> None:
        self.value = math.inf
        self.in_flight = 0
        self._cohort = 0
        self._step = 1
        self._successes = 0
        self._overloads = 0

    @property
    def room(self) -> float:
        """How many more calls may begin."""
        return max(0.0, self.value - self.in_flight)

    def begin(self) -> int:
        """Count a call; returns what `end` asks for."""
        self.in_flight += 1
        return self._cohort

    def end(self, cohort: int, *, overloaded: bool) -> None:
        """Take note of a call's end."""
        together = min(self.in_flight, self.value)
        self.in_flight -= 1
        if not overloaded:
            self._succeeded(together)
        elif cohort == self._cohort:
            self._overloads += 1
            if self._overloads > TOLERATED * together:
                self._decrease(together)

    def _succeeded(self, together: float) -> None:
        self._successes += 1
        if self._successes < together:
            return
        if together > self.value / 2:
            self.value += self._step
            self._step += 1
        self._successes = self._overloads = 0

    def _decrease(self, together: float) -> None:
        self.value = max(1.0, together // 2)
        self._cohort += 1
        self._step = 1
        self._successes = self._overloads = 0
