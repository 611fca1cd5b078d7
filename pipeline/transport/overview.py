"""A look at the whole pipeline from outside: processes, streams, dead letters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from pipeline.job import BATCH, LIVE
from pipeline.transport import keyspace
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import Link, describe
from pipeline.transport.registry import ProcessInfo, read_processes


class StageOverview(msgspec.Struct, frozen=True, kw_only=True):
    """A stage's lane: jobs that wait, jobs in flight, jobs put off; the age of the oldest, and bytes of bodies."""

    stage: str
    lane: str
    backlog: int
    pending: int
    delayed: int
    oldest_seconds: float
    bytes: int


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What `promptmill status` shows."""

    processes: tuple[ProcessInfo, ...]
    stages: tuple[StageOverview, ...]
    dead: int
    server: str


async def read_overview(url: str, stages: Iterable[str]) -> Overview:
    """Read the state of the pipeline. Raises TransportUnavailable."""
    link, clock = Link(url, "promptmill-overview"), ServerClock()
    try:
        await clock.refresh(link)
        names, dead, info = await link.call(
            ("ZRANGEBYSCORE", keyspace.CONSUMERS, clock.now(), "+inf"),
            ("XLEN", keyspace.DEAD),
            ("INFO", "server"),
        )
        processes = await read_processes(link, [name.decode() for name in names])
        lanes = [await _stage(link, clock, stage, lane) for stage in stages for lane in (LIVE, BATCH)]
        return Overview(
            processes=tuple(sorted(processes, key=lambda p: (p.role, p.stages, p.consumer))),
            stages=tuple(lanes),
            dead=int(dead),
            server=_server(info, url),
        )
    finally:
        await link.close()


async def _stage(link: Link, clock: ServerClock, stage: str, lane: str) -> StageOverview:
    stream = keyspace.jobs(stage, lane)
    length, pending, delayed, held, oldest = await link.call(
        ("XLEN", stream),
        ("XPENDING", stream, keyspace.GROUP),
        ("ZCARD", keyspace.delayed(stage, lane)),
        ("GET", keyspace.held_bytes(stage, lane)),
        ("XRANGE", stream, "-", "+", "COUNT", 1),
    )
    in_flight = 0 if isinstance(pending, ResponseError) else int(pending[0])
    since = int(oldest[0][0].partition(b"-")[0]) if oldest else clock.now()
    return StageOverview(
        stage=stage,
        lane=lane,
        backlog=max(0, int(length) - in_flight),
        pending=in_flight,
        delayed=int(delayed),
        oldest_seconds=max(0, clock.now() - since) / 1000,
        bytes=int(held or 0),
    )


def _server(info: Any, url: str) -> str:
    """Return the server's name and version where it says so; managed servers may not."""
    if not isinstance(info, bytes):
        return describe(url)
    lines = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    name = lines.get("server_name", "redis")
    return f"{name} {lines.get('valkey_version') or lines.get('redis_version', '')} at {describe(url)}"
