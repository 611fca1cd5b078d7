"""The batches of one process: found, claimed, and each given its fair share of the window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

import anyio
from anyio.abc import TaskGroup

from pipeline import logs, metrics
from pipeline.errors import ConfigMismatch, StorageFull, StorageUnavailable, TransportError
from pipeline.stores.batch_records import hex_of
from pipeline.stores.files import SWEEP_EVERY
from pipeline.stores.headings import Heading
from workers.batches.ledger import Superseded
from workers.batches.parts import remove_parts
from workers.batches.run import BatchRun, Desk, put_away

PLACES: Final = 64
"""Batches one process has in hand: each has a connection and a few open files."""

EXTRA_PLACES: Final = 16
"""Places beyond them, for batches that only have to end."""

LEAST_SHARE: Final = 8
"""Lines a batch may have open, however many others there are."""

IN_HAND: Final = ("validating", "in_progress", "paused", "finalizing")
"""How far a batch in hand may be, as metrics tell it."""

REST: Final = 10.0
"""Seconds a batch rests that we failed with, or that made place for another."""

log = logs.logger("feed")


class Place(NamedTuple):
    """What a batch in hand has."""

    batch: Heading
    work: anyio.CancelScope


class Keeper:
    """Looks for batches and runs those it can get."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._places: dict[str, Place] = {}
        self._runs: dict[str, BatchRun] = {}
        self._at_work: dict[str, str] = {}
        """Batches that any process has begun, with the key each belongs to."""
        self._shares: dict[str, int] = {}
        self._resting: dict[str, float] = {}

    async def run(self) -> None:
        """Take up batches for ever; who cancels this ends their work, which then goes on elsewhere."""
        await self._desk.transport.met()  # until then the server's clock is not known, and a batch may seem over
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._sweep)
            while True:
                try:
                    await self._look(tasks)
                except TransportError as error:
                    log.debug("no batch can be claimed", error=str(error))
                except (StorageFull, StorageUnavailable) as error:
                    log.warning("batches cannot be read", error=error.message)
                except OSError as error:
                    log.error("batches cannot be read", error=type(error).__name__)
                await anyio.sleep(self._desk.store.blobs.look_every)

    async def _sweep(self) -> None:
        while True:
            try:
                await self._desk.store.sweep(self._desk.settings.batches.batch_retention)
            except (StorageFull, StorageUnavailable, OSError) as error:
                log.warning("batches not swept", error=type(error).__name__)
            await anyio.sleep(SWEEP_EVERY)

    async def _look(self, tasks: TaskGroup) -> None:
        """Take up what there is a place for. Raises TransportUnavailable, StorageFull and StorageUnavailable."""
        found, now = await self._desk.store.live(), self._desk.transport.time()
        self._at_work = {batch.id: batch.owner for batch, stand in found.items() if stand.begun}
        self._resting = {name: end for name, end in self._resting.items() if end > anyio.current_time()}
        self._divide()
        self._tell(len(found))
        ending = {batch.id for batch, stand in found.items() if stand.ending or now >= batch.expires}
        for batch in found:
            if batch.id in ending and len(self._places) < PLACES + EXTRA_PLACES:
                await self._take(batch, tasks)
        for rank, batch in self._in_turn(found):
            if len(self._staying) < PLACES:
                await self._take(batch, tasks)
            elif (other := self._crowding(rank, ending)) is None:
                break
            elif await self._take(batch, tasks):
                self._rest(other.batch.id)
                other.work.cancel()

    def _in_turn(self, found: Iterable[Heading]) -> Iterable[tuple[int, Heading]]:
        """Return batches that have no place, each with how many of its key go before it: fewest first, then oldest."""
        before = Counter(place.batch.owner for place in self._staying)
        ranked = []
        for batch in found:
            if batch.id not in self._places:
                ranked.append((before[batch.owner], batch))
                before[batch.owner] += 1
        return sorted(ranked)

    def _crowding(self, rank: int, ending: Collection[str]) -> Place | None:
        """Return who makes place for a batch of this rank, if that is fair: the youngest of the key that has most."""
        places = [place for place in self._staying if place.batch.id not in ending]
        (owner, most), *_ = Counter(place.batch.owner for place in places).most_common(1) or [("", 0)]
        if most <= rank + 1:
            return None
        return max((place for place in places if place.batch.owner == owner), key=lambda place: place.batch)

    @property
    def _staying(self) -> list[Place]:
        return [place for place in self._places.values() if not place.work.cancel_called]

    async def _take(self, batch: Heading, tasks: TaskGroup) -> bool:
        """Take up a batch that nobody has. Raises TransportUnavailable."""
        name = batch.id
        if name in self._places or name in self._resting:
            return False
        if not await self._desk.transport.lease(hex_of(name)):
            return False
        self._places[name] = place = Place(batch, anyio.CancelScope())
        self._divide()
        tasks.start_soon(self._own, place)
        return True

    async def _own(self, place: Place) -> None:
        name = place.batch.id
        try:
            with place.work:
                await self._process(name)
        except Superseded:
            log.warning("batch has another owner", batch=name)
        except (StorageFull, StorageUnavailable, TransportError, ConfigMismatch) as error:
            log.warning("batch rests", batch=name, error=error.message)
            self._rest(name)
        except Exception as error:  # a bug in one batch must not end the others
            log.error("batch failed", batch=name, error=type(error).__name__, exc_info=error)
            self._rest(name)
        finally:
            del self._places[name]
            self._runs.pop(name, None)
            self._divide()
            with anyio.move_on_after(2, shield=True):
                await self._desk.transport.release(hex_of(name))

    async def _process(self, name: str) -> None:
        """Bring a batch to its end. Raises Superseded, TransportError and what `BatchRun.run` does."""
        desk = self._desk
        now = await desk.store.reread(name)  # its last owner may have ended it meanwhile
        if now is None:  # or nobody can read it
            self._rest(name)
        elif now.record.terminal:
            await put_away(desk, now)
        elif number := await desk.store.claim(now):
            log.info("batch taken", batch=name, owner=number, status=now.record.status)
            self._runs[name] = run = BatchRun(desk, now, number)
            try:
                await run.run(lambda: self._shares[name])
            except Superseded:
                if await desk.store.is_away(name):  # maybe before we began parts, or had the answers kept for longer
                    await desk.transport.drop_answers(hex_of(name))
                    await remove_parts(desk.store.blobs, name, number)
                raise

    def _rest(self, name: str) -> None:
        """Leave a batch to other processes for a while."""
        self._resting[name] = anyio.current_time() + REST

    def _tell(self, unfinished: int) -> None:
        """Tell the metrics how many batches there are, and how far those in hand."""
        metrics.BATCHES_UNFINISHED.set(unfinished)
        counts = Counter(run.status for run in self._runs.values())
        for status in IN_HAND:
            metrics.BATCHES_IN_HAND[status,].set(counts[status])

    def _divide(self) -> None:
        """Share the window out: in equal parts to keys, and then to their batches, those of other processes too."""
        ours = {name: place.batch.owner for name, place in self._places.items()}
        batches = Counter((self._at_work | ours).values())
        window = self._desk.settings.batches.batch_window
        self._shares = {
            name: max(LEAST_SHARE, window // len(batches) // batches[owner]) for name, owner in ours.items()
        }
