"""Large bodies: beside the entry, fetched one at a time and within a budget, so that a burst cannot fill a process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio

from pipeline.errors import TransportError
from pipeline.transport.connection import Backoff, Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BUDGET: Final = 256 * 2**20


class Bodies:
    """Fetches bodies by reference; `held` bounds the bytes of them that are in use at a time."""

    def __init__(self, link: Link, budget: int = BUDGET) -> None:
        self._link = link
        self._free = budget
        self._budget = budget
        self._freed = anyio.Event()
        self._turn = anyio.Lock(fast_acquire=True)

    @asynccontextmanager
    async def held(self, reference: str, size: int) -> AsyncIterator[bytes | None]:
        """Fetch a body and count it against the budget while it is used; None when it has expired."""
        size = min(size, self._budget)
        async with self._turn:  # in order, so that a large one is not overtaken for ever
            while self._free < size:
                self._freed = anyio.Event()
                await self._freed.wait()
            self._free -= size
        try:
            yield await self._fetch(("GET", reference))
        finally:
            self._free += size
            self._freed.set()

    async def take(self, reference: str) -> bytes | None:
        """Fetch a body and remove it: a reply has one reader. Raises TransportUnavailable."""
        body: bytes | None = await self._link.run(("GETDEL", reference))
        return body

    async def _fetch(self, command: tuple[str, str]) -> bytes | None:
        backoff = Backoff()
        while True:  # bounded by the deadline of the delivery that waits
            try:
                body: bytes | None = await self._link.run(command)
            except TransportError:
                await backoff.pause()
            else:
                return body
