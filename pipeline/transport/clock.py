"""The Redis server's clock, kept as an offset to this process's own, so that skewed hosts agree on every deadline."""

from __future__ import annotations

import time

from pipeline.transport.connection import Link


class ServerClock:
    """Milliseconds on the server's clock, from the last time it was asked."""

    def __init__(self) -> None:
        self._offset = time.time() * 1000 - time.monotonic() * 1000

    def now(self) -> int:
        """Return the server's time in ms."""
        return int(time.monotonic() * 1000 + self._offset)

    async def refresh(self, link: Link) -> None:
        """Ask the server; half of the round trip is taken off. Raises TransportUnavailable."""
        before = time.monotonic() * 1000
        seconds, micros = await link.run(("TIME",))
        after = time.monotonic() * 1000
        self._offset = int(seconds) * 1000 + int(micros) / 1000 - (before + after) / 2
