"""Stage streams that somebody deleted: nobody will ever read what waited in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from pipeline.job import LIVE
from pipeline.transport import keyspace
from pipeline.transport.connection import Link

_RUN: Final = re.compile(rb"^run_id:(\w+)", re.MULTILINE)


class Losses:
    """
    Remembers how many entries were ever added to each stage's stream: a count that fell is another stream's.

    Or, on a server that started or was promoted since, the same stream's without its end: the admission knows who was
    in that. A stream that outgrows its predecessor before the next look is not noticed; its jobs end with their
    deadlines.
    """

    def __init__(self, link: Link, stages: Iterable[str]) -> None:
        self._link = link
        self._added = dict.fromkeys(stages, 0)
        self._server: bytes | None = None
        self._noticed = False

    def noticed(self) -> None:
        """The admission has noticed a loss, and knows better which jobs are gone: the next look finds nothing."""
        self._noticed = True

    async def look(self) -> list[str]:
        """Return the stages whose stream is not the one of the last look any more. Raises TransportUnavailable."""
        server, *streams = await self._link.call(
            ("INFO", "server"), *(("XINFO", "STREAM", keyspace.jobs(stage, LIVE)) for stage in self._added)
        )
        before, self._added = self._added, dict(zip(self._added, map(_added, streams), strict=True))
        last, self._server = self._server, _run(server)
        noticed, self._noticed = self._noticed, False
        if noticed or self._server != last:
            return []
        return [stage for stage, count in self._added.items() if count < before[stage]]


def _added(reply: Any) -> int:
    if not isinstance(reply, list):  # there is no such stream
        return 0
    return int(dict(zip(reply[::2], reply[1::2], strict=False)).get(b"entries-added", 0))


def _run(reply: Any) -> bytes:
    """Return what each start of a server has its own of; empty where we may not ask."""
    found = _RUN.search(reply) if isinstance(reply, bytes) else None
    return found[1] if found else b""
