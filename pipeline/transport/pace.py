"""How fast the pipeline gets jobs done while others wait, and so how long one more would wait."""

from __future__ import annotations

import math
from typing import Final

MEMORY: Final = 30.0
"""Seconds after which what was seen counts for a third."""

WAITED: Final = 0.1
"""Seconds a job has waited for its stage that tell of a backlog; where a slot is free it waits a few milliseconds."""

ENOUGH_SECONDS: Final = 2.0
ENOUGH_JOBS: Final = 20
BELIEVED: Final = 10
"""A reckoned wait is believed once jobs have really waited a tenth of the limit: a burst proves nothing yet."""


class Pace:
    """Answers per second during a backlog, as one ingress process sees them. Unknown until enough was seen."""

    def __init__(self) -> None:
        self._jobs = 0.0
        self._seconds = 0.0
        self.waited = 0.0
        """Seconds the slowest of the jobs answered last had waited for its stages."""

    def saw(self, answered: int, waited: float, seconds: float) -> None:
        """Take in what was answered during the last `seconds`; `waited` is the longest wait among them, in seconds."""
        if answered:
            self.waited = waited
        fade = math.exp(-seconds / MEMORY)
        self._jobs *= fade
        self._seconds *= fade
        if self.waited >= WAITED:  # otherwise it would be the pace of the clients, not that of the workers
            self._jobs += answered
            self._seconds += seconds

    def wait(self, backlog: int, processes: int) -> float | None:
        """Return for how many seconds a job behind `backlog` others would wait; None when that is not known."""
        if self._seconds < ENOUGH_SECONDS or self._jobs < ENOUGH_JOBS:
            return None
        return backlog * self._seconds / (self._jobs * max(1, processes))

    def beyond(self, limit: float, backlog: int, processes: int) -> float:
        """Return the wait in seconds if it is longer than `limit`; 0 when it is not, or nobody can tell."""
        wait = self.wait(backlog, processes) or 0.0
        return wait if wait > limit and self.waited >= limit / BELIEVED else 0.0
