"""What lines need and do not get: for how long nothing is fed for it, and when one line tries it again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from pipeline.errors import (
    ConfigMismatch,
    ModelDisabled,
    PromptManagerError,
    UpstreamAuthFailed,
    UpstreamForbidden,
    UpstreamNotApi,
)
from pipeline.job import ErrorFields, Job, Reply

LONG_RUN: Final = 32
"""Failures in a row for want of the same thing after which nothing more is fed that needs it."""

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds until the first line tries again, and at most between two, unless a provider asks for more."""

WORKERS: Final = "workers"
PROMPTS: Final = "prompt managers"
"""Beside models by their names: what a line may need."""

REMEDIES: Final = {
    UpstreamAuthFailed.code: "mend the deployment's key, or pay its account; the lines are tried again by themselves",
    UpstreamForbidden.code: "look what the deployment's key may do; the lines are tried again by themselves",
    UpstreamNotApi.code: "unless the provider is maintained, mend `api_base`; the lines are tried again by themselves",
    ModelDisabled.code: "set the variable of the deployment's key and reload; the lines are tried again by themselves",
    PromptManagerError.code: "mend the prompt manager; the lines are tried again by themselves",
}
"""What the operator can do about an outage that does not end by itself."""


class Outage:
    """Failures in a row for want of one thing. `pause` is 0 while lines are fed all the same."""

    __slots__ = ("code", "failures", "pause", "probes", "tries", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.code = ""
        self.pause = 0.0
        self.until = 0.0
        self.probes: set[int] = set()
        """Numbers of the lines that were fed to see whether it is over."""
        self.tries = 1
        """How many lines try at a time."""


class Outages:
    """What the lines of one batch wait for. Times are the event loop's, in seconds."""

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
            if number in outage.probes:
                outage.probes.discard(number)
                outage.tries = 1
        return begins

    def met(self, needs: Collection[str], number: int) -> list[str]:
        """A line got these needs; return the pauses this ends: only a line that was fed in one tells that."""
        ended = []
        for need, outage in list(self._known.items()):
            tried = number in outage.probes
            outage.probes.discard(number)
            if need in needs and (tried or not outage.pause):
                del self._known[need]
                if tried:
                    ended.append(need)
            elif tried:  # a manager chose something else for it, as it may for ever more lines
                outage.until, outage.tries = 0.0, min(LONG_RUN, 2 * outage.tries)
        return ended

    def pausing(self, need: str) -> bool:
        """Whether nothing is fed that needs this."""
        return need in self._known and bool(self._known[need].pause)

    def to_probe(self, now: float) -> list[str]:
        """Return the needs for which a line should try, each once for each line."""
        due = [(need, outage) for need, outage in self._known.items() if outage.pause and outage.until <= now]
        return [need for need, outage in due for _ in range(outage.tries)]

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
    """Return what a line needs as far as is known before it runs; `group` serves the model it names."""
    needs = (WORKERS, _configured(group), group)
    return (*needs, PROMPTS) if job.prompt is not None else needs


def missed(reply: Reply, group: str) -> str:
    """Return what the line of this error, which names a model of `group`, did not get."""
    if reply.error is not None and reply.error.code == ConfigMismatch.code:
        return _configured(group)
    if reply.error is not None and reply.error.stage == "resolve":
        return PROMPTS
    return reply.facts.model or WORKERS


def served(reply: Reply, group: str) -> tuple[str, ...]:
    """Return what the line of this answer got, which may be an error that is about the line itself."""
    if reply.error is not None and reply.error.stage == "resolve":
        return (PROMPTS,)
    needs = (WORKERS, _configured(group), reply.facts.model)
    return (*needs, PROMPTS) if reply.facts.prompt else needs


def _configured(group: str) -> str:
    """Return the need for a worker that knows this group; all groups, where a line's is not known yet."""
    return f"workers that know {group}" if group else WORKERS
