"""What lines need and do not get: for how long nothing is fed for it, and when one line tries it again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pipeline.job import ErrorFields, Job, Reply

LONG_RUN: Final = 32
"""Failures in a row for want of the same thing after which nothing more is fed that needs it."""

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds until the first line tries again, and at most between two, unless a provider asks for more."""

WORKERS: Final = "workers"
PROMPTS: Final = "prompt managers"
"""Beside models by their names: what a line may need."""


class Outage:
    """Failures in a row for want of one thing. `pause` is 0 while lines are fed all the same."""

    __slots__ = ("code", "failures", "pause", "probes", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.code = ""
        self.pause = 0.0
        self.until = 0.0
        self.probes: set[int] = set()
        """Numbers of the lines that were fed to see whether it is over."""


class Outages:
    """What the lines of one batch wait for."""

    def __init__(self) -> None:
        self._known: dict[str, Outage] = {}

    def failed(self, need: str, number: int, error: ErrorFields, now: float) -> bool:
        """A line was not served for want of `need`; return whether this begins a pause."""
        outage = self._known.setdefault(need, Outage())
        outage.failures += 1
        outage.code = error.code
        begins = not outage.pause and outage.failures >= LONG_RUN
        if begins:
            outage.pause = FIRST_PAUSE
        if outage.pause:
            soonest = outage.until if number not in outage.probes and not begins else now + outage.pause
            outage.until = max(soonest, now + (error.retry_after or 0.0))
            outage.probes.discard(number)
        return begins

    def met(self, needs: Iterable[str], number: int) -> list[str]:
        """A line got what it needs; return the pauses this ends: only a line that was fed in one tells that."""
        ended = [need for need, outage in self._known.items() if number in outage.probes]
        for need in [*ended, *needs]:
            if need in ended or not self.pausing(need):
                self._known.pop(need, None)
        return ended

    def pausing(self, need: str) -> bool:
        """Whether nothing is fed that needs this."""
        return need in self._known and bool(self._known[need].pause)

    def to_probe(self, now: float) -> list[str]:
        """Return the needs for which a line should try."""
        return [need for need, outage in self._known.items() if outage.pause and outage.until <= now]

    def probe(self, need: str, number: int, now: float) -> None:
        """This line tries; another one does after a pause, for the answer may take long."""
        outage = self._known[need]
        outage.probes.add(number)
        outage.pause = min(LONGEST_PAUSE, 2 * outage.pause)
        outage.until = now + outage.pause

    def __len__(self) -> int:
        return len(self._known)

    @property
    def probes(self) -> set[int]:
        """Numbers of the lines that try."""
        return set().union(*(outage.probes for outage in self._known.values()))

    @property
    def code(self) -> str | None:
        """The error of the first need that pauses."""
        return next((outage.code for outage in self._known.values() if outage.pause), None)


def needed(job: Job, group: str) -> tuple[str, ...]:
    """Return what a line needs as far as is known before it runs; `group` serves its model."""
    return (WORKERS, group, PROMPTS) if job.prompt is not None else (WORKERS, group)


def missed(reply: Reply) -> str:
    """Return what the line of this error did not get."""
    if reply.error is not None and reply.error.stage == "resolve":
        return PROMPTS
    return reply.facts.model or WORKERS


def served(reply: Reply) -> tuple[str, ...]:
    """Return what the line of this answer got, which may be an error that is about the line itself."""
    if reply.error is not None and reply.error.stage == "resolve":
        return (PROMPTS,)
    needs = (WORKERS, reply.facts.model)
    return (*needs, PROMPTS) if reply.facts.prompt else needs
