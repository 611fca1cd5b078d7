"""How much of its clients' answers one ingress process holds, all clients together."""

from __future__ import annotations

import anyio


class Unread:
    """Counts the bytes that clients have not taken yet; `turn` is held by whoever fetches a large answer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0
        self.turn = anyio.Lock(fast_acquire=True)
        self._room: anyio.Event | None = None

    @property
    def full(self) -> bool:
        """Whether more is held than may be."""
        return self.held > self._limit

    def add(self, size: int) -> None:
        """Count bytes that came."""
        self.held += size

    def remove(self, size: int) -> None:
        """Count bytes as taken, or as given up."""
        self.held -= size
        if self._room is not None and self.held <= self._limit // 2:
            self._room.set()

    async def room(self) -> None:
        """Wait, under `turn`, until there is room for a large answer: half is kept for streams, which cannot wait."""
        while self.held > self._limit // 2:
            self._room = anyio.Event()
            await self._room.wait()
