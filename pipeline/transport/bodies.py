"""Large bodies: beside the entry, fetched one at a time and within a budget, so that a burst cannot fill a process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio

from pipeline.errors import TransportError
from pipeline.transport.connection import Backoff, Command, Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TAKEN_TTL_MS: Final = 10_000
BUDGET: Final = 256 * 2**20

PIECE: Final = 4 * 2**20
LEAST_PIECE: Final = 64 * 2**10
"""Bytes of a body fetched at a time: fewer after each time that they did not come within Redis' time for an answer."""


class Bodies:
    """Fetches bodies by reference; `held` bounds the bytes of them that are in use at a time."""

    def __init__(self, link: Link, budget: int = BUDGET) -> None:
        self._link = link
        self._free = budget
        self._budget = budget
        self._freed = anyio.Event()
        self._turn = anyio.Lock(fast_acquire=True)
        self._asking = anyio.Lock(fast_acquire=True)
        self._backoff = Backoff()
        self._taken: list[str] = []

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
            yield await self.fetch(reference)
        finally:
            self._free += size
            self._freed.set()

    async def fetch(self, reference: str) -> bytes | None:
        """Return a body however slow the way to Redis is; None when it has expired. Asks until Redis answers."""
        pieces, come, piece = list[bytes](), 0, PIECE
        while True:
            part: Command = ("GETRANGE", reference, come, come + piece - 1)
            async with self._asking:  # for a piece alone: others do not wait for all of a large one
                try:
                    size, data = await self._link.call(("STRLEN", reference), part)
                except TransportError:
                    piece = max(LEAST_PIECE, piece // 2)
                    await self._backoff.pause()  # all of them: hundreds that wait must not each try to connect
                    continue
            self._backoff.reset()
            if not data or isinstance(data, Exception):
                return None
            pieces.append(data)
            come += len(data)
            if come == size:
                return b"".join(pieces)

    async def take(self, reference: str) -> bytes | None:
        """Fetch a body that has one reader; it goes with the next one, or soon. Asks until Redis answers."""
        gone, self._taken = [other for other in self._taken if other != reference], [reference]
        unlink: tuple[Command, ...] = (("UNLINK", *gone),) if gone else ()
        # Not GETDEL: when its answer is lost on the way, the body is lost with it.
        return await self.ask(*unlink, ("GETEX", reference, "PX", TAKEN_TTL_MS))

    async def ask(self, *commands: Command) -> bytes | None:
        """Return the last command's answer; tries until Redis gives it, so call it under a time limit."""
        backoff = Backoff()
        async with self._asking:  # one asks for all: hundreds that wait must not each try to connect
            while True:
                try:
                    replies = await self._link.call(*commands)
                except TransportError:
                    await backoff.pause()
                    continue
                answer: bytes | None = None if isinstance(replies[-1], Exception) else replies[-1]
                return answer
