"""The registry of live processes: who is up, what they serve, and since when somebody is missing."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import socket
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import anyio
import msgspec

from pipeline import metrics
from pipeline.job import LANES, LIVE
from pipeline.resting import Resting
from pipeline.transport import keyspace
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import REGISTER, Command, Link

GONE_AFTER: Final = 10.0
"""Seconds a process or a stage must be missing before anybody acts on it."""

BEAT: Final = 2.0


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A live process as it registered itself; `started` is ms on the server's clock."""

    consumer: str
    role: str
    stages: tuple[str, ...] = ()
    lanes: tuple[str, ...] = LANES
    pid: int = 0
    host: str = ""
    started: int = 0
    config: str = ""
    resting: dict[str, float] = {}
    """Models whose provider is at its limit, as this process knows it, and for how many seconds."""
    deployments: dict[str, float] = {}
    """Deployments at their limit, by id, and for how many seconds."""


def backing_off(processes: Iterable[ProcessInfo]) -> dict[str, float]:
    """Return the models that rest, and for how many seconds at most."""
    found: dict[str, float] = {}
    for process in processes:
        for model, seconds in process.resting.items():
            found[model] = max(seconds, found.get(model, 0.0))
    return found


def consumer_name(role: str) -> str:
    """Return a name no other process has, readable in `XINFO` and in logs."""
    return f"{role}-{socket.gethostname()[:24]}-{os.getpid()}-{secrets.token_hex(3)}"


def this_process(
    consumer: str, role: str, stages: tuple[str, ...], config: str, lanes: tuple[str, ...] = LANES
) -> ProcessInfo:
    """Return the registration of this process."""
    return ProcessInfo(
        consumer=consumer,
        role=role,
        stages=stages,
        lanes=lanes,
        pid=os.getpid(),
        host=socket.gethostname(),
        config=config,
    )


class Registry:
    """This process's registration, and its view of the others."""

    def __init__(self, link: Link, clock: ServerClock, process: ProcessInfo) -> None:
        self._link = link
        self._clock = clock
        self._process = process
        self._looked = self._watching = anyio.current_time()
        """When the others were last looked at, and since when without a gap: silence is counted only from then."""
        self._seen: dict[str, float] = {}
        self._stage_seen: dict[str, float] = {}
        self.live: set[str] = set()
        self.workers: Counter[str] = Counter()
        """How many processes serve live jobs, by stage."""
        self.ingresses = 0
        self.configs: set[str] = set()
        """Digests of the configurations that live processes have: more than one during a rollout."""
        self.resting = Resting()
        """Says who rests, and how long: part of this process's registration."""
        self.backing_off: dict[str, float] = {}
        """What all live processes say of that."""

    async def beat(self) -> None:
        """Renew the registration and look who else is there. Raises TransportUnavailable."""
        metrics.TASKS.set(len(asyncio.all_tasks()))
        samples = await metrics.snapshot_in_turns()
        now, me = self._clock.now(), self._process.consumer
        registered = msgspec.structs.replace(
            self._process,
            started=self._process.started or now,
            resting=self.resting.models(),
            deployments=self.resting.deployments(),
        )
        self._process = registered
        words = (msgspec.msgpack.encode(registered), samples)
        names = await self._link.run(
            REGISTER([keyspace.up(me), keyspace.CONSUMERS], me, now, keyspace.UP_TTL_MS, *words)
        )
        pairs = ((_text(name), float(end)) for name, end in zip(*[iter(names)] * 2, strict=True))
        # No process of ours registers for ever; what does must not end the others.
        await self._look({name: int(end) - keyspace.UP_TTL_MS for name, end in pairs if math.isfinite(end)})

    async def _look(self, beats: dict[str, int]) -> None:
        """Read who is there; `beats` holds when each process last renewed its registration."""
        at, now = anyio.current_time(), self._clock.now()
        processes = await read_processes(self._link, list(beats))
        if at - self._looked > 3 * BEAT:  # Redis was away: the others could not renew either
            self._watching = at
        self._looked = at
        last = {p.consumer: at - (now - beats[p.consumer]) / 1000 for p in processes}
        alive = [p for p in processes if at - last[p.consumer] < GONE_AFTER]
        self.live = {p.consumer for p in alive}
        serving = [p for p in alive if LIVE in p.lanes]
        self.workers = Counter(stage for p in serving for stage in p.stages)
        self.backing_off = backing_off(alive)
        self.resting.heed(self._met_by_live(alive, beats))
        self.configs = {p.config for p in alive}
        self.ingresses = sum(p.role == "ingress" for p in alive)
        self._seen = {name: seen for name, seen in self._seen.items() if at - seen < 60} | last
        for process in serving:
            for stage in process.stages:
                self._stage_seen[stage] = max(self._stage_seen.get(stage, 0.0), last[process.consumer])

    def _met_by_live(self, alive: Iterable[ProcessInfo], beats: dict[str, int]) -> dict[str, float]:
        """Return what rests now because of live calls: in other processes, for this one has seen its own."""
        now, found = self._clock.now(), dict[str, float]()
        for process in alive:
            if process.lanes == (LIVE,) and process.consumer != self._process.consumer:
                age = (now - beats[process.consumer]) / 1000
                for deployment, seconds in process.deployments.items():
                    found[deployment] = max(seconds - age, found.get(deployment, 0.0))
        return found

    def gone(self, consumer: str, since_ms: int) -> bool:
        """Whether `consumer`, which was there at `since_ms` on the server's clock, has been missing for a while."""
        if consumer in self.live:
            return False
        silent = self._looked - max(self._seen.get(consumer, 0.0), self._watching)
        return min(silent, (self._clock.now() - since_ms) / 1000) > GONE_AFTER

    def without_worker(self, stage: str) -> float:
        """Return for how many seconds no process of `stage` for live jobs has been seen; 0 when there is one."""
        if self.workers[stage]:
            return 0.0
        return max(0.0, self._looked - max(self._stage_seen.get(stage, 0.0), self._watching))

    async def leave(self) -> None:
        """Take this process off the registry. Raises TransportUnavailable."""
        me = self._process.consumer
        await self._link.call(("UNLINK", keyspace.up(me)), ("ZREM", keyspace.CONSUMERS, me))


async def read_processes(link: Link, names: list[str]) -> list[ProcessInfo]:
    """Return the registrations of `names` that are still there. Raises TransportUnavailable."""
    if not names:
        return []
    replies: list[Any] = await link.call(*(_field(name, "p") for name in names))
    decode = msgspec.msgpack.Decoder(ProcessInfo).decode
    processes = []
    for reply in replies:
        try:
            processes.append(decode(reply))
        except (TypeError, ValueError):  # expired, or not written by us
            continue
    return processes


async def read_metrics(link: Link) -> list[tuple[str, bytes]]:
    """Return the last metrics snapshot of every live process. Raises TransportUnavailable."""
    (names,) = await link.call(("ZRANGE", keyspace.CONSUMERS, 0, -1))
    if not names:
        return []
    replies = await link.call(*(_field(_text(name), "m") for name in names))
    return [(_text(name), reply) for name, reply in zip(names, replies, strict=True) if isinstance(reply, bytes)]


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _field(consumer: str, field: str) -> Command:
    return ("HGET", keyspace.up(consumer), field)
