"""How many calls a deployment may have in flight on the batch lane: halved by overloads, and found again."""

from __future__ import annotations

import math
from typing import Final

TOLERATED: Final = 0.02
"""Share of the calls in flight that may be overloads without a decrease: a provider of any size has some."""

SLOW: Final = 0.1
"""What a call that ran past its timeout counts: a fifth may, for there are long answers. One alone is no overload."""


class Limit:
    """
    Concurrency learned from overloads; none until the first.

    It is halved at most once for the calls that were in flight together. With every round of successes in which it was
    used it is doubled, up to where an overload halved it again after it had grown; on from there it grows by one and by
    one more each time. So 1,000 are found from one within ten rounds, or within 45.
    """

    def __init__(self) -> None:
        self.value = math.inf
        self.in_flight = 0
        self._cohort = 0
        self._known = math.inf
        """What was borne for sure when more was too much."""
        self._grew = False
        """Since it was halved."""
        self._step = 1
        self._successes = 0
        self._overloads = 0.0

    @property
    def room(self) -> float:
        """How many more calls may begin."""
        return max(0.0, self.value - self.in_flight)

    def begin(self) -> int:
        """Count a call; returns what `end` asks for."""
        self.in_flight += 1
        return self._cohort

    def end(self, cohort: int, overload: float = 0.0) -> None:
        """Take note of a call's end: no overload is 0, one that the provider speaks of is 1."""
        together = min(self.in_flight, self.value)
        self.in_flight -= 1
        if not overload:
            self._succeeded(together)
        elif cohort == self._cohort:
            self._overloads += overload
            if self._overloads > max(SLOW, TOLERATED * together):
                self._decrease(together)

    def _succeeded(self, together: float) -> None:
        self._successes += 1
        if self._successes < together:
            return
        if together > self.value / 2:
            self._grow()
        self._successes, self._overloads = 0, 0.0

    def _grow(self) -> None:
        self._grew = True
        if self.value < self._known:
            self.value = min(2 * self.value, self._known)
        else:
            self.value += self._step
            self._step += 1

    def _decrease(self, together: float) -> None:
        self.value = max(1.0, together // 2)
        if self._grew:
            self._known = self.value
        self._grew = False
        self._cohort += 1
        self._step = 1
        self._successes, self._overloads = 0, 0.0
