"""How many calls may begin by what the provider says is left, whatever period that is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from workers.providers._errors import LONGEST_REST
from workers.providers._remaining import Remaining

STALE: Final = 60.0
"""Seconds after which a word counts no longer that does not say for how long it does."""

ENOUGH: Final = 5
"""Calls that have to have been left for a 0 after them to be believed: some count otherwise, and say 0 and serve."""


class Launch(NamedTuple):
    """A call as it is counted here."""

    number: int
    last: float
    """The last call that was allowed as this one began."""


class Allowance:
    """
    The provider's own count of what is left, as a bound on calls that are not answered yet.

    It says nothing of the rate: where tokens come back all the time, few are left and many calls may begin. So by as
    many as came back during a call, twice as many more may begin: the word holds nobody back who is served.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._made = 0
        self._told_by = 0
        """The call whose answer counts: later calls know more."""
        self._last = math.inf
        self._beyond = 0.0
        self._until = math.inf
        self._most = 0
        """Calls that were left at the most since the last 0."""

    def room(self, under_way: int) -> float:
        """Return how many calls may begin beside those under way; without any, one tries."""
        if self._last == math.inf:
            return math.inf
        if self._clock() >= self._until:
            self._last = math.inf
            return math.inf
        room = self._last + self._beyond - self._made
        return room if under_way else max(room, 1.0)

    def begin(self) -> Launch:
        """Count a call; returns what `told` asks for."""
        self._made += 1
        return Launch(self._made, self._last)

    def told(self, launch: Launch, remaining: Remaining) -> float | None:
        """Take note of what an answer said; returns the seconds to rest where it said that nothing is left for them."""
        if launch.number <= self._told_by:
            return None
        self._told_by = launch.number
        before, self._most = self._most, max(self._most, remaining.calls) if remaining.calls else 0
        if not self._most and before < ENOUGH:
            self._last = math.inf
            return None
        seconds = remaining.seconds
        self._last = launch.number + remaining.calls
        self._beyond = max(0.0, 2 * (self._last - launch.last))  # of the first word none: before it `last` is infinite
        self._until = self._clock() + (STALE if seconds is None else min(seconds, LONGEST_REST))
        # A limit of a day is not waited for on a header's word.
        return seconds if seconds and seconds <= LONGEST_REST and not self._most else None

    def forget(self) -> None:
        """Drop what was said before a rest."""
        self._told_by, self._last, self._most = self._made, math.inf, 0
