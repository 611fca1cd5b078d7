"""Stage streams that somebody deleted: nobody will ever read what waited in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.job import LIVE
from pipeline.transport import keyspace
from pipeline.transport.connection import Link


class Losses:
    """
    Remembers how many entries were ever added to each stage's stream: a count that fell is another stream's.

    A stream that outgrows its predecessor before the next look is not noticed; its jobs end with their deadlines.
    """

    def __init__(self, link: Link, stages: Iterable[str]) -> None:
        self._link = link
        self._added = dict.fromkeys(stages, 0)
        self._known = False

    def known(self) -> None:
        """The admission has noticed a loss, and knows better which jobs are gone: the next look finds nothing."""
        self._known = True

    async def look(self) -> list[str]:
        """Return the stages whose stream is not the one of the last look any more. Raises TransportUnavailable."""
        replies = await self._link.call(*(("XINFO", "STREAM", keyspace.jobs(stage, LIVE)) for stage in self._added))
        before, self._added = self._added, dict(zip(self._added, map(_added, replies), strict=True))
        known, self._known = self._known, False
        return [] if known else [stage for stage, count in self._added.items() if count < before[stage]]


def _added(reply: Any) -> int:
    if not isinstance(reply, list):  # there is no such stream
        return 0
    return int(dict(zip(reply[::2], reply[1::2], strict=False)).get(b"entries-added", 0))
