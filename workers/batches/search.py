"""What became of lines that were fed, by this owner of a batch or an earlier one, if Redis may have lost them."""

from __future__ import annotations

from collections.abc import Set
from typing import Final

import anyio

from pipeline.transport.feeding import FeedTransport, LineStream, UnderWay
from workers.batches.window import Window

PATIENCE: Final = 3.0
"""Seconds without any outcome after which jobs are looked for; twice as long before each further look."""

SHARE: Final = 0.2
"""Most of the time that such looks may take: one at a window of large lines is work for Redis, too."""

LONGEST: Final = 20.0
"""Seconds of that patience at most: on a busy machine a look takes long although it is little work."""


class Search:
    """Finds out which jobs are in Redis: of the others the answer is there, or they are lost."""

    def __init__(self, batch: str, window: Window, stream: LineStream, transport: FeedTransport) -> None:
        self._batch = batch
        self._window = window
        self._stream = stream
        self._transport = transport
        self._doubts = 0
        self._admitted: Set[str] = frozenset()
        self._found: UnderWay | None = None
        self._closed = 0
        self._least = PATIENCE
        self._since, self._patience = anyio.current_time(), PATIENCE

    async def look(self) -> None:
        """Look at each doubt, and act once all answers up to that moment are written. Raises TransportUnavailable."""
        if await self._stream.listen() or self._stands_still():
            self._window.doubt()
        self._window.doubt_late(anyio.current_time())
        doubts = self._window.doubts
        if doubts != self._doubts:
            self._admitted, began = self._window.admitted, anyio.current_time()
            self._found = await self._transport.under_way(self._batch)
            self._least = min(LONGEST, max(PATIENCE, (anyio.current_time() - began) / SHARE))
            self._doubts = doubts
        if self._found is not None and self._stream.has_concluded(self._found.last_answer):
            self._window.reconcile(self._admitted, self._found.jobs)
            self._found = None

    def _stands_still(self) -> bool:
        """Whether no line has had an outcome for long: what somebody deleted leaves no other trace."""
        now = anyio.current_time()
        if self._closed != self._window.closed:
            self._closed, self._since, self._patience = self._window.closed, now, self._least
        if now - self._since < self._patience:
            return False
        self._patience *= 2
        return True
