"""The cancel stream: every worker of every stage learns which jobs nobody waits for any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from redis.exceptions import ResponseError

from pipeline import logs
from pipeline.errors import TransportError
from pipeline.transport import keyspace
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import CANCEL, Backoff, Command, Link

BLOCK: Final = 0.5
REPLAY: Final = 1000

log = logs.logger("cancels")


def cancellation(jobs: Iterable[tuple[str, int]], oldest: int) -> Command:
    """
    Return the command that cancels jobs, given as (id, deadline in ms).

    Entries older than `oldest` (ms) concern nobody any more and are trimmed; so are the oldest when there are too many.
    """
    pairs = (argument for job in jobs for argument in job)
    return CANCEL([keyspace.CANCEL], max(0, oldest), keyspace.CANCEL_LIMIT, *pairs)


class Cancels:
    """What was cancelled lately, known before the job is fetched or wherever it moves."""

    def __init__(self, link: Link, clock: ServerClock, longest: float) -> None:
        self._link = link
        self._clock = clock
        self._longest_ms = int(longest * 1000)
        self._deadlines: dict[str, int] = {}
        self._last = "0-0"

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._deadlines

    async def replay(self) -> None:
        """Read what was cancelled before this process started. Raises TransportUnavailable."""
        self._last = f"{max(0, self._clock.now() - self._longest_ms)}-0"
        while await self._read(lambda _: None, block=None):
            pass

    async def follow(self, cancel: Callable[[str], object]) -> None:
        """Call `cancel` with the id of every job that is cancelled, for ever."""
        backoff = Backoff()
        while True:
            try:
                await self._read(cancel, block=BLOCK)
                backoff.reset()
            except TransportError:
                await backoff.pause()

    async def _read(self, cancel: Callable[[str], object], block: float | None) -> int:
        waiting: Command = ("BLOCK", int(block * 1000)) if block else ()
        command: Command = ("XREAD", "COUNT", REPLAY, *waiting, "STREAMS", keyspace.CANCEL, self._last)
        (reply,) = await self._link.call(command, wait=block or 0.0)
        if isinstance(reply, ResponseError):
            raise TransportError(f"the cancel stream cannot be read: {reply}")
        entries: list[Any] = reply[0][1] if reply else []
        for entry, fields in entries:
            self._last = entry.decode()
            values = dict(zip(fields[::2], fields[1::2], strict=False))
            try:
                job_id, deadline = values[b"i"].decode(), int(values[b"d"])
            except (KeyError, ValueError):
                log.warning("unreadable cancellation", entry=self._last)
                continue
            self._deadlines[job_id] = deadline
            if len(self._deadlines) > keyspace.CANCEL_LIMIT:
                del self._deadlines[next(iter(self._deadlines))]
            cancel(job_id)
        return len(entries)

    def purge(self) -> None:
        """Forget jobs whose deadline has passed: they would be dropped anyhow."""
        now = self._clock.now()
        self._deadlines = {job_id: deadline for job_id, deadline in self._deadlines.items() if deadline > now}
