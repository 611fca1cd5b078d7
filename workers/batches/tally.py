"""What happened to a batch's lines so far, counted for those who watch it."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

from pipeline.stores.batch_progress import Latency, Progress

RECENT: Final = 512
"""Answers whose provider times are looked at."""

MOST_CODES: Final = 32
"""Codes that are told apart: providers make up codes of their own."""

OTHER: Final = "other"


class Tally:
    """Counts for one owner, who goes on where the one `before` was."""

    def __init__(self, before: Progress) -> None:
        self.retries = before.retries
        self._causes = Counter(before.causes)
        self._times: deque[float] = deque(maxlen=RECENT)

    def answered(self, provider_ms: float) -> None:
        """A line was answered."""
        self._times.append(provider_ms)

    def put_off(self, code: str) -> None:
        """A line has to be fed again because of this error."""
        count(self._causes, code)

    def progress(self, failures: Counter[str], **now: Any) -> Progress:
        """Return what to write down, with what is so only `now`."""
        return Progress(
            retries=self.retries,
            latency_ms=self._latency(),
            causes=dict(self._causes),
            failures=dict(failures),
            **now,
        )

    def _latency(self) -> Latency | None:
        times = sorted(self._times)
        if not times:
            return None
        return Latency(round(times[len(times) // 2], 1), round(times[len(times) * 99 // 100], 1))


def count(counts: Counter[str], code: str) -> None:
    """Count one more of `code`, or of others once there are many."""
    counts[code if code in counts or len(counts) < MOST_CODES else OTHER] += 1
