"""How many batches a key may have open, and how many it may make in an hour."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import anyio

from pipeline.errors import TooManyBatches
from pipeline.settings import BatchSettings
from pipeline.stores.batches import BatchStore

HOUR: Final = 3600.0

LOOK_AGAIN: Final = 60.0
"""Seconds after which a client that has too many batches open may ask again."""

REMEMBERED: Final = 1.0
"""Seconds for which it is refused without another look at its batches."""


class _Refusal(NamedTuple):
    until: float
    message: str
    again: float
    """When the client may come back."""


class BatchQuota:
    """Counts batches in the store: those that other processes made count as well."""

    def __init__(self, store: BatchStore, settings: BatchSettings, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._settings = settings
        self._now = now
        self._lock = anyio.Lock()
        self._refused: dict[str, _Refusal] = {}

    @asynccontextmanager
    async def place(self, owner: str) -> AsyncIterator[None]:
        """Hold the place in which `owner` makes its next batch. Raises TooManyBatches."""
        async with self._lock:  # two at a time would both take the last one
            self._refuse(owner)
            if refusal := await self._full(owner):
                self._refused[owner] = refusal
                self._refuse(owner)
            self._refused.pop(owner, None)
            yield

    def _refuse(self, owner: str) -> None:
        """Refuse at once who was refused just now: a flood costs no look at the files."""
        refusal, now = self._refused.get(owner), self._now()
        if refusal is not None and now < refusal.until:
            raise TooManyBatches(refusal.message, retry_after=max(1.0, refusal.again - now))

    async def _full(self, owner: str) -> _Refusal | None:
        now, most = self._now(), self._settings
        recent = await self._store.made(owner, now - HOUR)
        if len(recent) >= most.max_batches_per_hour:
            again = recent[-most.max_batches_per_hour] + HOUR
            message = f"your key has made {len(recent)} batches within an hour; wait, or put more lines into one"
            return _Refusal(again, message, again)
        if await self._store.has_open(owner, most.max_open_batches):
            there = most.max_open_batches
            message = f"your key has {there} batches that have not ended; wait for some, or put more lines into one"
            return _Refusal(now + REMEMBERED, message, now + LOOK_AGAIN)
        return None
