"""How a batch comes along, in words and numbers for people; pure functions of what it says of itself."""

from __future__ import annotations

from collections import deque
from typing import Final

from pipeline.errors import UpstreamOverloaded
from pipeline.stores.batch_progress import Progress
from workers.batch_command.gateway import Batch
from workers.batches.outages import REMEDIES

RECENT: Final = 10.0
"""Seconds over which the pace is reckoned."""

UNCLAIMED: Final = 10.0
"""Seconds after which a batch that nobody looks at is wondered about."""

STANDSTILL: Final = 10.0
"""Seconds without an outcome after which lines that no worker takes are wondered about."""

_BY_ITSELF: Final = "it goes on by itself once a line gets through, or ends with `promptmill batch cancel`"

_STAGES: Final = ("resolve", "dispatch")


class Pace:
    """How fast lines are done, of late."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, now: float, batch: Batch) -> float:
        """Take note of how many lines are done, and return lines per second, beginning with the first."""
        if not batch.done:
            self._seen.clear()
        self._seen.append((now, batch.done))
        while len(self._seen) > 2 and now - self._seen[0][0] > RECENT:
            self._seen.popleft()
        since, before = self._seen[0]
        return (batch.done - before) / (now - since) if now > since else 0.0


def headline(batch: Batch, pace: float | None) -> list[str]:
    """Return the figures beside the bar. `pace` is lines a second; None: it is not known."""
    counts = batch.counts
    if not counts.total:
        return [stand(batch)]
    words = [f"{batch.done:,}/{counts.total:,}"]
    if batch.status == "in_progress" and pace is not None:
        words.append(f"{pace:,.0f}/s" if pace >= 10 or not pace else f"{pace:.1f}/s")
    words.append(f"ok {counts.completed:,}")
    if batch.promptmill and batch.promptmill.retries:
        words.append(f"retry {batch.promptmill.retries:,}")
    words.append(f"failed {counts.failed:,}")
    if batch.status != "in_progress":
        return [*words, stand(batch)]
    left = counts.total - batch.done
    return [*words, f"eta {clock(left / pace)}"] if pace and left else words


def details(batch: Batch) -> str:
    """Return the line below the bar: where the lines are, how the provider does, what it took."""
    said = batch.promptmill or Progress()
    waiting = ", ".join(f"{said.waiting[stage]:,} {stage}" for stage in _STAGES if stage in said.waiting)
    parts = [*([f"backlog {waiting}"] if waiting else []), f"in flight {_in_flight(said):,}"]
    if said.resting:
        parts.append(f"resting {said.resting:,}")
    if said.dead:
        parts.append(f"dead {said.dead:,} (promptmill dead list)")
    if said.latency_ms:
        parts.append(f"p50 {seconds(said.latency_ms.p50)} p99 {seconds(said.latency_ms.p99)}")
    if refused := limits(batch):
        parts.append(refused)
    if batch.usage and batch.usage.total_tokens:
        parts.append(f"{short(batch.usage.total_tokens)} tokens")
    return " · ".join(parts)


def concern(batch: Batch, waited: float, pace: float | None = None) -> str:
    """Return why lines wait, as far as a batch says that was watched so long, in seconds; `pace`: lines per second."""
    said = batch.promptmill or Progress()
    if said.paused:
        return f"paused: {said.paused}; {REMEDIES.get(said.paused, _BY_ITSELF)}"
    if batch.status == "validating" and waited > UNCLAIMED:
        return "still validating: is a `promptmill feed` running? (promptmill status)"
    untaken = next((stage for stage in reversed(_STAGES) if said.waiting.get(stage)), "")
    if untaken and pace == 0 and waited > STANDSTILL and not _in_flight(said):
        return f"no line is taken: is a `promptmill worker --lane batch {untaken}` running? (promptmill status)"
    if said.resting and (codes := [code for code in said.causes if code != UpstreamOverloaded.code]):
        return f"{counted(said.resting, 'line waits', 'lines wait')} for a later try: {', '.join(codes)}"
    return ""


def limits(batch: Batch) -> str:
    """Return how often lines had to wait for a provider's limit, and which models rest."""
    said = batch.promptmill or Progress()
    refused = said.causes.get(UpstreamOverloaded.code, 0)
    resting = ", ".join(f"{name} {max(1.0, wait):.0f}s" for name, wait in said.backing_off.items())
    if refused:
        return f"put off by limits {refused:,}" + (f" (backing off {resting})" if resting else "")
    return f"backing off {resting}" if resting else ""


def stand(batch: Batch) -> str:
    """Return a batch's status in words."""
    words = {"validating": "checking its lines", "finalizing": "writing its results", "cancelling": "being cancelled"}
    return words.get(batch.status, batch.status.replace("_", " "))


def counted(count: int, one: str, more: str) -> str:
    """Return a number with what it counts."""
    return f"{count:,} {one if count == 1 else more}"


def clock(duration: float) -> str:
    """Return seconds as `0:06`, `12:30` or `3:04:00`."""
    minutes, rest = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def seconds(ms: float) -> str:
    """Return milliseconds as seconds with two digits that count."""
    return f"{ms / 1000:.3f}s" if ms < 100 else f"{ms / 1000:.2f}s" if ms < 1000 else f"{ms / 1000:.1f}s"


def short(count: int) -> str:
    """Return a large number in three or four characters, with its unit."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 100 * size else f"{count / size:.0f}{unit}"
    return str(count)


def size(count: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _in_flight(said: Progress) -> int:
    return max(0, said.open - said.resting - sum(said.waiting.values()))
