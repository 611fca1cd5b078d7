"""What became of the lines that earlier owners of a batch fed."""

from __future__ import annotations

from pipeline.transport.feeding import FeedTransport, LineStream, UnderWay
from workers.batches.window import Window


class Inheritance:
    """Finds out which of their jobs are in Redis: of the others the answer is there, or they are lost."""

    def __init__(self, batch: str, window: Window, stream: LineStream, transport: FeedTransport) -> None:
        self._batch = batch
        self._window = window
        self._stream = stream
        self._transport = transport
        self._losses = 0
        self._found: UnderWay | None = None

    async def look(self) -> None:
        """Look after each loss, and act once all answers up to that moment are written. Raises TransportUnavailable."""
        if await self._stream.listen():
            self._window.losses += 1
        losses = self._window.losses
        if losses != self._losses:
            self._found = await self._transport.under_way(self._batch)
            self._losses = losses
        if self._found is not None and self._stream.has_concluded(self._found.last_answer):
            self._window.settle_inherited(self._found.jobs)
            self._found = None
