"""How a deployment is called while nothing is known of its limit: slowly at first, and faster with each call."""

from __future__ import annotations

import math
from typing import Final

FIRST: Final = 25.0
"""Calls a second to begin with."""

WASTED: Final = 0.008
"""Share of the calls before the first refusal that may be under way as it is heard of, where calls are quick."""

SPARE: Final = 0.015
"""Share of the calls so far that may always be under way."""

SLOWEST: Final = 0.5
"""Growth a second at least: from 25 to 3,000 calls a second within ten seconds."""

FASTEST: Final = 3.0

LIKELY: Final = 8000
"""Calls without a refusal after which a limit is less and less likely to be met soon."""

UNUSED: Final = 0.1
"""Seconds after which a process that begins no call is not busy with those under way."""

RISE: Final = 0.1
FALL: Final = 0.3
"""Weights of a call's seconds in their average, where they are more than it and where less."""


class Ramp:
    """
    A rate that grows with each call, the more the sooner calls are answered.

    That makes it exponential in time, and what is under way when a limit is met the same share of what was accepted,
    however high the limit: growth times the seconds until a refusal is heard of.
    """

    def __init__(self) -> None:
        self.rate = FIRST
        self._made = 0
        self._seconds = self._own = math.inf
        """Of calls lately, and of those that waited for nothing but the provider."""

    @property
    def few(self) -> float:
        """How many calls under way are so few that another may begin whatever the rate."""
        return SPARE * self._made * (1 + self._made / LIKELY)

    @property
    def most(self) -> float:
        """
        How many calls may be under way.

        More than the provider's own seconds account for only wait for this process; four times as many leaves room for
        providers that take longer for one call than for another.
        """
        return 2 + self.few + 4 * self.rate * self._own

    def grow(self, seconds: float, idle: float) -> None:
        """
        Take note of a call that might have begun so many seconds before.

        The last one that was answered took `seconds`; 0 when none was.
        """
        self._made += 1
        if not seconds:
            return
        # The first one opens a connection, and waits for much that the others do not.
        weight = RISE if seconds > self._seconds else FALL
        self._seconds = seconds if self._seconds == math.inf else self._seconds + weight * (seconds - self._seconds)
        self._own = min(self._own, self._seconds)
        if idle > UNUSED:  # what took longer did not wait for this process: the quick ones were answered from a cache
            self._own = max(self._own, min(self._seconds, seconds - idle))
        # Who answers slowly needs many calls under way, and mostly does not refuse slowly as well.
        self.rate += min(FASTEST, max(WASTED / self._seconds, SLOWEST * max(1.0, self._seconds)))
