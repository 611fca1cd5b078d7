"""A stage's streams as one consumer reads them: fetch, claim, renew, release."""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import anyio
import msgspec
from redis.exceptions import ResponseError

from pipeline import logs, metrics
from pipeline.errors import TransportError, TransportUnavailable
from pipeline.job import BATCH, LANES, LIVE, Job, decode_job
from pipeline.settings import TransportSettings
from pipeline.transport import keyspace
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import CLAIM, MOVE, PREPARE, RELEASE, RENEW, RETIRE, Backoff, Command, Link
from pipeline.transport.delivery import End, HeldDelivery, Source
from pipeline.transport.room import Room
from pipeline.transport.suspects import suspect_caps
from pipeline.transport.writer import Writer

BLOCK: Final = 0.5
"""Seconds a read waits for entries; short, because a read is never cancelled."""

CLAIM_EVERY: Final = 0.5
RENEW_CHUNK: Final = 128
"""5,000 ids in one script would hold the server for 16 ms."""

CLAIM_MOST: Final = 256
CLAIM_SCANNED: Final = 4096
"""Pending entries one claim looks at, or a little more; the next goes on from there."""

FETCH_MOST: Final = 256
"""Entries of one read: with bodies of up to 64 KB in them, more would stall the server."""

GLANCE: Final = 0.05
"""Seconds a read waits in the batch lane alone, so that a live job does not, and while suspects wait for their turn."""

BATCH_GLANCE: Final = 0.01
"""Seconds a read waits for live jobs alone while batch jobs hold all they may: their slots come free at any moment."""

QUICK_GLANCE: Final = 0.001
"""Half of what the first such read waits; each further one waits twice as long as the one before."""

BESIDE: Final = 16
"""Entries of a lane in one read while both lanes have some: live jobs wait for no more than that many batch jobs."""

LATELY: Final = 2.0
"""Seconds for which a lane that had entries is expected to have more."""

RECENTLY: Final = 10.0
"""Seconds after a live job for which a batch makes room for the next."""

MOVE_MOST: Final = 128
UNREADABLE: Final = Job(id="", operation="", stages_left=(), deadline=0)
"""Stands for the job of an entry that does not decode."""

log = logs.logger("stage_stream")


class StageStream:
    """
    A stage's lanes, or one of them, read as one consumer of their group.

    What it fetched is held, with a lease, until the runner forgets it. Redis trouble never comes out of `fetch`.
    """

    def __init__(
        self, stage: str, max_deliveries: int, slots: int, *, writer: Writer, clock: ServerClock, links: StageLinks
    ) -> None:
        self.stage = stage
        self._caps = suspect_caps(max_deliveries, slots)
        reserve = max(1, math.ceil(slots * links.settings.batch_reserve)) if LIVE in links.lanes else 0
        self._room = Room(max(1, slots - reserve))
        self._writer = writer
        self._writer.written[stage] = self.forget
        self._clock = clock
        self._links = links
        self._lanes = links.lanes
        self._held: dict[tuple[str, str], HeldDelivery] = {}
        self._by_job: dict[str, HeldDelivery] = {}
        self._in_lane = dict.fromkeys(LANES, 0)
        """How many have a slot, by lane."""
        self._renewed = 0.0
        """When the last renewal of all that was held began."""
        self._claim_at = 0.0
        self._crowded: set[int] = set()
        """Delivery numbers of which as many run here as may: the last claim may have left others behind."""
        self._cursors = dict.fromkeys(links.lanes, "0-0")
        self._read_failed = False
        self._live_was_full = False
        self._live_was_empty = False
        self._seen = dict.fromkeys(LANES, -math.inf)
        """When entries of each lane were read the last time."""
        self._glance = QUICK_GLANCE
        self._backoff = Backoff()

    @property
    def held(self) -> Sequence[HeldDelivery]:
        """Deliveries this process holds whose outcome is still open."""
        return tuple(delivery for delivery in self._held.values() if not delivery.settled)

    @property
    def size(self) -> int:
        """Number of deliveries this process holds, those among them whose outcome is not written yet."""
        return len(self._held)

    def count_held(self) -> None:
        """Tell the metrics how many deliveries are held, by lane, and how many of a batch may be."""
        for lane, held in self._in_lane.items():
            metrics.JOBS_IN_FLIGHT[self.stage, lane].set(held)
        metrics.BATCH_ROOM[self.stage,].set(self._room.limit)

    def turned(self, seconds: float) -> None:
        """Take note of the CPU time of a turn of the event loop, in seconds."""
        live = self._seen[LIVE] > anyio.current_time() - RECENTLY
        self._room.turned(seconds, self._in_lane[BATCH], live=live)

    def forget(self, delivery: HeldDelivery) -> None:
        """Let go of a delivery whose outcome was written, or that was released or lost."""
        self._held.pop((delivery.source.lane, delivery.source.entry), None)
        if self._by_job.get(delivery.job.id) is delivery:
            del self._by_job[delivery.job.id]

    def finished(self, delivery: HeldDelivery) -> None:
        """Take note that a delivery has no slot any more; it is held until its outcome is written."""
        self._in_lane[delivery.source.lane] -= 1

    def cancel(self, job_id: str) -> bool:
        """Cancel the work on a job, if it is here."""
        delivery = self._by_job.get(job_id)
        if delivery is not None:
            delivery.stop(End.CANCELLED)
        return delivery is not None

    async def fetch(self, room: int) -> list[HeldDelivery]:
        """Return up to `room` deliveries, within about half a second; none when there are none or Redis is away."""
        began = anyio.current_time()
        try:
            entries = await self._next(room)
        except TransportError as error:
            if not self._read_failed:
                log.warning("fetch failed", stage=self.stage, error=str(error))
            self._read_failed = True  # what the lost reply held is pending, in our name
            await self._backoff.pause()
            # The others may not have reached Redis either: they get the time of a lease to renew theirs.
            self._claim_at = anyio.current_time() + self._links.settings.lease
            return []
        self._backoff.reset()
        deliveries = [self._hold(*entry) for entry in entries]
        if deliveries and anyio.current_time() - began > self._links.settings.lease / 2:
            # The process or its network stood still: others may have them by now, and must not be run twice for it.
            with contextlib.suppress(TransportError):
                await self.renew()
        return deliveries

    async def _next(self, room: int) -> list[tuple[str, str, list[Any], int]]:
        if self._read_failed:
            entries = await self._history(room)
            if entries:
                return entries
            self._read_failed = False
        if anyio.current_time() >= self._claim_at or self._roomier():
            entries = await self._claim(room)
            if entries:
                return entries
        return await self._read(room)

    async def _read(self, room: int) -> list[tuple[str, str, list[Any], int]]:
        lanes, count, block = self._plan(room)
        # No longer than until the next claim: what another worker hands back shall not wait for the end of a read.
        block = min(block, max(GLANCE, self._claim_at - anyio.current_time()))
        streams = [keyspace.jobs(self.stage, lane) for lane in lanes]
        command = ("XREADGROUP", "GROUP", keyspace.GROUP, self._links.consumer, "COUNT", count)
        (reply,) = await self._links.read.call(
            (*command, "BLOCK", int(block * 1000), "STREAMS", *streams, *(">" for _ in lanes)), wait=block
        )
        if isinstance(reply, ResponseError):
            if not str(reply).startswith("NOGROUP"):
                raise TransportUnavailable(f"XREADGROUP was refused: {reply}")
            await self.prepare()
            return []
        found = dict(zip(streams, lanes, strict=True))
        entries = [
            (found[stream.decode()], entry.decode(), fields, 1)
            for stream, batch in reply or ()
            for entry, fields in batch
        ]
        now = anyio.current_time()
        self._seen.update((found[stream.decode()], now) for stream, _ in reply or ())
        live = sum(1 for lane, *_ in entries if lane == LIVE)
        self._live_was_full = live >= count
        self._live_was_empty = LIVE in lanes and not live
        return self._fresh(entries)

    def _plan(self, room: int) -> tuple[tuple[str, ...], int, float]:
        """Return the lanes to read, how many entries of each, and how long to wait. COUNT is per stream."""
        room = min(room, FETCH_MOST)
        block = GLANCE if self._crowded else BLOCK  # a suspect may end at any moment, and others wait for its place
        if len(self._lanes) == 1:
            return self._lanes, room, block
        batch_room = self._room.limit - self._in_lane[BATCH]
        if batch_room < 1:
            self._glance = min(2 * self._glance, BATCH_GLANCE)
            return (LIVE,), room, self._glance
        self._glance = QUICK_GLANCE
        if self._live_was_full:
            return (LIVE,), room, block
        if room > 1:
            beside = min(self._seen.values()) > anyio.current_time() - LATELY
            return LANES, max(1, min(room // 2, batch_room, BESIDE if beside else room)), block
        return ((BATCH if self._live_was_empty else LIVE),), 1, GLANCE

    def _fresh(self, entries: list[tuple[str, str, list[Any], int]]) -> list[tuple[str, str, list[Any], int]]:
        """Leave out what is held: a group that was made again delivers it once more."""
        fresh = []
        for entry in entries:
            held = self._held.get(entry[:2])
            if held is None:
                fresh.append(entry)
            else:
                held.fenced = True
        return fresh

    async def _claim(self, room: int) -> list[tuple[str, str, list[Any], int]]:
        """Take over what dead consumers left; our own leases are renewed in time, so that none of them looks dead."""
        if anyio.current_time() - self._renewed > self._links.settings.lease / 2:
            await self.renew()
        claimed: list[tuple[str, str, list[Any], int]] = []
        lease = int(self._links.settings.lease * 1000)
        numbers = Counter(d.number for d in self.held)
        for lane in self._lanes:
            rooms = (max(0, cap - numbers[number]) for number, cap in self._caps.items())
            stream, cursor = keyspace.jobs(self.stage, lane), self._cursors[lane]
            most = min(room, CLAIM_MOST) - len(claimed)
            if most < 1:
                break
            scans = 1 + CLAIM_SCANNED // (10 * most)
            next_cursor, *entries = await self._links.read.run(
                CLAIM([stream], self._links.consumer, lease, most, cursor, scans, *rooms)
            )
            numbers.update(int(number) for *_, number in entries)
            self._cursors[lane] = next_cursor.decode()
            claimed += [
                (lane, entry.decode(), fields, int(number))
                for entry, fields, number in entries
                if (lane, entry.decode()) not in self._held
            ]
        self._crowded = {number for number, cap in self._caps.items() if numbers[number] >= cap}
        if all(cursor == "0-0" for cursor in self._cursors.values()):
            self._claim_at = anyio.current_time() + CLAIM_EVERY * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
        for lane, entry, _, number in claimed:
            metrics.CLAIMS[self.stage,].inc()
            log.warning("claimed", stage=self.stage, lane=lane, entry=entry, number=number)
        return claimed

    def _roomier(self) -> bool:
        """Whether a suspect ended since there was no room for the next: it need not wait for the next round."""
        if not self._crowded:
            return False
        numbers = Counter(d.number for d in self.held)
        return any(numbers[number] < self._caps[number] for number in self._crowded)

    async def _history(self, room: int) -> list[tuple[str, str, list[Any], int]]:
        """Return what is pending in our name but not held: a reply that was lost on its way here."""
        entries: list[tuple[str, str, list[Any], int]] = []
        room, lease = min(room, FETCH_MOST), int(self._links.settings.lease * 1000)
        for lane in self._lanes:
            stream = keyspace.jobs(self.stage, lane)
            (pending,) = await self._links.read.call(
                ("XPENDING", stream, keyspace.GROUP, "-", "+", room + len(self._held), self._links.consumer)
            )
            if isinstance(pending, ResponseError):  # the group is gone; the read makes it again
                continue
            # What has been idle for a lease is left to the claim, which is careful with suspects.
            missing = [
                (entry, int(number))
                for entry, _, idle, number in pending
                if (lane, entry.decode()) not in self._held and idle < lease
            ][: room - len(entries)]
            if missing:
                found = await self._links.read.call(*(("XRANGE", stream, entry, entry) for entry, _ in missing))
                entries += [
                    (lane, entry.decode(), fields[0][1], number)
                    for (entry, number), fields in zip(missing, found, strict=True)
                    if isinstance(fields, list) and fields
                ]
        return entries

    def _hold(self, lane: str, entry: str, fields: list[Any], number: int) -> HeldDelivery:
        values = dict(zip(fields[::2], fields[1::2], strict=False))
        body = values.get(b"b", b"")
        size = values.get(b"s", b"")
        counted = int(size) if size.isdigit() and len(size) < 16 else len(body)
        try:
            job, reference = decode_job(values[b"h"]), values.get(b"r", b"").decode()
        except (KeyError, ValueError, RecursionError):  # no header, not msgpack, not UTF-8
            job, reference = UNREADABLE, ""
        foreign_body = reference and not reference.startswith(keyspace.BODIES)
        if job.stages_left[:1] != (self.stage,) or job.lane != lane or foreign_body:
            job, reference = UNREADABLE, ""
        source = Source(self.stage, lane, entry, counted, reference)
        delivery = HeldDelivery(job, body, number, source, self._clock, self._writer)
        self._held[lane, entry] = self._by_job[job.id] = delivery
        self._in_lane[lane] += 1
        return delivery

    async def prepare(self) -> None:
        """Make the groups, from the beginning of their streams. Raises TransportUnavailable."""
        made = await self._links.read.run(PREPARE([keyspace.jobs(self.stage, lane) for lane in self._lanes]))
        new = {lane for lane, was_made in zip(self._lanes, made, strict=True) if was_made}
        for delivery in self._held.values():
            if delivery.source.lane in new:
                delivery.fenced = False

    async def renew(self) -> None:
        """Renew the lease of everything held; what is not ours any more is cancelled. Raises TransportUnavailable."""
        began = anyio.current_time()
        by_lane: dict[str, list[HeldDelivery]] = {}
        for delivery in self._held.values():
            if delivery.fenced:
                by_lane.setdefault(delivery.source.lane, []).append(delivery)
        for lane, deliveries in by_lane.items():
            for chunk in _chunks(deliveries, RENEW_CHUNK):
                entries = [d.source.entry for d in chunk if (lane, d.source.entry) in self._held]
                command = RENEW([keyspace.jobs(self.stage, lane)], self._links.consumer, *entries)
                lost = {entry.decode() for entry in await self._links.upkeep.run(command)}
                for delivery in chunk:
                    # Settled in the meantime: the entry is gone because we are done with it.
                    ours_to_lose = delivery.fenced and not (delivery.settled or delivery.ended())
                    if delivery.source.entry in lost and ours_to_lose:
                        log.warning("lease lost", stage=self.stage, job=delivery.job.id)
                        delivery.stop(End.LOST)
        self._renewed = began

    async def release(self, deliveries: Sequence[HeldDelivery]) -> None:
        """Hand deliveries back unrun: another consumer may claim them at once. Raises TransportUnavailable."""
        for delivery in deliveries:  # first: a renewal behind it would make the lease last once more
            self.forget(delivery)
        idle = int(self._links.settings.lease * 1000) * 10
        for lane in self._lanes:
            stream = keyspace.jobs(self.stage, lane)
            for chunk in _chunks([d for d in deliveries if d.source.lane == lane], RENEW_CHUNK):
                pairs = (argument for d in chunk for argument in (d.source.entry, d.number))
                await self._links.upkeep.run(RELEASE([stream], self._links.consumer, idle, *pairs))

    def move_due(self) -> tuple[Command, ...]:
        """Return the commands that put delayed jobs back on their streams."""
        return tuple(
            MOVE(
                [
                    keyspace.delayed(self.stage, lane),
                    keyspace.jobs(self.stage, lane),
                    keyspace.held_bytes(self.stage, lane),
                ],
                MOVE_MOST,
            )
            for lane in self._lanes
        )

    async def retire(self, live: set[str]) -> None:
        """Remove consumers that are neither alive nor hold anything. Raises TransportUnavailable."""
        for lane in self._lanes:
            stream = keyspace.jobs(self.stage, lane)
            (found,) = await self._links.upkeep.call(("XINFO", "CONSUMERS", stream, keyspace.GROUP))
            if isinstance(found, ResponseError):
                continue
            names = [dict(zip(c[::2], c[1::2], strict=True))[b"name"].decode() for c in found]
            if gone := [name for name in names if name not in live and name != self._links.consumer]:
                await self._links.upkeep.run(RETIRE([stream], *gone))

    async def resign(self) -> None:
        """Take this consumer off its groups, unless it still holds something. Raises TransportUnavailable."""
        for lane in self._lanes:
            await self._links.upkeep.run(RETIRE([keyspace.jobs(self.stage, lane)], self._links.consumer))


class StageLinks(msgspec.Struct, frozen=True):
    """What a stage stream talks through."""

    read: Link
    upkeep: Link
    consumer: str
    settings: TransportSettings
    lanes: tuple[str, ...] = LANES
    """Those that are read; other processes read the others."""


def _chunks(items: list[HeldDelivery], size: int) -> Iterable[list[HeldDelivery]]:
    return (items[i : i + size] for i in range(0, len(items), size))
