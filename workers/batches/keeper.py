"""The batches of one process: found, claimed, and each given its fair share of the window."""

from __future__ import annotations

from collections import Counter
from typing import Final

import anyio

from pipeline import logs
from pipeline.errors import StorageFull, StorageUnavailable, TransportError
from pipeline.stores.batches import Heading
from pipeline.stores.files import SWEEP_EVERY
from workers.batches.ledger import Superseded
from workers.batches.run import BatchRun, Desk, put_away

MOST_OWNED: Final = 64
"""Batches one process has in hand: each has a connection and a few open files."""

LEAST_SHARE: Final = 8
"""Lines a batch may have open, however many others there are."""

RETRY: Final = 10.0
"""Seconds a batch rests in which we failed."""

log = logs.logger("feed")


class Keeper:
    """Looks for batches and runs those it can get."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._owned: dict[str, str] = {}
        """Batches in hand, with the key each belongs to."""
        self._at_work: dict[str, str] = {}
        """Likewise those that any process has begun."""
        self._shares: dict[str, int] = {}
        self._resting: dict[str, float] = {}

    async def run(self) -> None:
        """Take up batches for ever; who cancels this ends their work, which then goes on elsewhere."""
        store = self._desk.store
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._sweep)
            while True:
                try:
                    found = await store.live()
                    self._at_work = {batch.id: batch.owner for batch, begun in found.items() if begun}
                    self._divide()
                    for batch in found:
                        if len(self._owned) < MOST_OWNED and await self._take(batch):
                            tasks.start_soon(self._own, batch)
                except TransportError as error:
                    log.debug("no batch can be claimed", error=str(error))
                except StorageUnavailable as error:
                    log.warning("batches cannot be read", error=error.message)
                except OSError as error:
                    log.error("batches cannot be read", error=type(error).__name__)
                await anyio.sleep(store.blobs.look_every)

    async def _sweep(self) -> None:
        while True:
            try:
                await self._desk.store.sweep(self._desk.settings.batches.batch_retention)
            except (StorageFull, StorageUnavailable, OSError) as error:
                log.warning("batches not swept", error=type(error).__name__)
            await anyio.sleep(SWEEP_EVERY)

    async def _take(self, batch: Heading) -> bool:
        """Take the lease of a batch that nobody has. Raises TransportUnavailable."""
        name = batch.id
        if name in self._owned or self._resting.get(name, 0.0) > anyio.current_time():
            return False
        if not await self._desk.transport.lease(batch.hex):
            return False
        self._owned[name] = batch.owner
        self._divide()
        return True

    async def _own(self, batch: Heading) -> None:
        name = batch.id
        try:
            now = await self._desk.store.reread(name)  # its last owner may have ended it meanwhile
            if now is not None and now.record.terminal:
                await put_away(self._desk, now)
            elif now is not None and (number := await self._desk.store.claim(now)):
                log.info("batch taken", batch=name, owner=number, status=now.record.status)
                await BatchRun(self._desk, now, number).run(lambda: self._shares[name])
        except Superseded:
            log.warning("batch has another owner", batch=name)
        except (StorageFull, StorageUnavailable, TransportError) as error:
            log.warning("batch rests", batch=name, error=error.message)
            self._resting[name] = anyio.current_time() + RETRY
        except Exception as error:  # a bug in one batch must not end the others
            log.error("batch failed", batch=name, error=type(error).__name__, exc_info=error)
            self._resting[name] = anyio.current_time() + RETRY
        finally:
            del self._owned[name]
            self._divide()
            with anyio.move_on_after(2, shield=True):
                await self._desk.transport.release(batch.hex)

    def _divide(self) -> None:
        """Share the window out: in equal parts to keys, and then to their batches, those of other processes too."""
        batches = Counter((self._at_work | self._owned).values())
        window = self._desk.settings.batches.batch_window
        self._shares = {
            name: max(LEAST_SHARE, window // len(batches) // batches[owner]) for name, owner in self._owned.items()
        }
