"""A look at the whole pipeline from outside: processes, streams, dead letters, and the server they live in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from redis.exceptions import ResponseError

from pipeline import metrics
from pipeline.job import LANES
from pipeline.transport import keyspace
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import Link, describe
from pipeline.transport.registry import ProcessInfo, read_metrics, read_processes

COUNTED: Final = {
    "redeliveries": "stage",
    "claims": "stage",
    "stale_settles": "stage",
    "deadline_drops": "stage",
    "dead_letters": "reason",
    "refusals": "code",
    "slow_clients": "cause",
}
"""The counters an overview sums up, and by which label."""

NO_LOG: Final = "no append-only file"
_INFO: Final = tuple(("INFO", section) for section in ("server", "memory", "persistence"))


class StageOverview(msgspec.Struct, frozen=True, kw_only=True):
    """A stage's lane: jobs that wait, are in flight, are put off; seconds the oldest is there, or unfetched; bytes."""

    stage: str
    lane: str
    backlog: int
    pending: int
    delayed: int
    oldest_seconds: float
    lag_seconds: float
    bytes: int


class ServerOverview(msgspec.Struct, frozen=True, kw_only=True):
    """The server: bytes it uses and may use (0: no limit), what it does when full, and how it persists."""

    name: str
    memory: int = 0
    memory_limit: int = 0
    eviction: str = ""
    persistence: str = ""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What `promptmill status` shows. `counts` are those of `COUNTED`, since each live process started."""

    processes: tuple[ProcessInfo, ...]
    stages: tuple[StageOverview, ...]
    dead: int
    server: ServerOverview
    counts: dict[str, dict[str, float]] = {}


async def read_overview(url: str, stages: Iterable[str]) -> Overview:
    """Read the state of the pipeline, over a connection of its own. Raises TransportUnavailable."""
    link, clock = Link(url, "promptmill-overview"), ServerClock()
    try:
        await clock.refresh(link)
        found = await look(link, clock, stages, describe(url))
        snapshots = [samples for _, samples in await read_metrics(link)]
        return msgspec.structs.replace(found, counts=metrics.totals(snapshots, COUNTED))
    finally:
        await link.close()


async def look(link: Link, clock: ServerClock, stages: Iterable[str], where: str) -> Overview:
    """Read the state of the pipeline, without counts. Raises TransportUnavailable."""
    names, dead, *said = await link.call(
        ("ZRANGEBYSCORE", keyspace.CONSUMERS, clock.now(), "+inf"),
        ("XLEN", keyspace.DEAD),
        *_INFO,
    )
    processes = await read_processes(link, [name.decode(errors="replace") for name in names])
    return Overview(
        processes=tuple(sorted(processes, key=lambda p: (p.role, p.stages, p.consumer))),
        stages=tuple([await _stage(link, clock, stage, lane) for stage in stages for lane in LANES]),
        dead=_count(dead),
        server=_server(said, where),
    )


async def read_server(link: Link, where: str) -> ServerOverview:
    """Read what the server says of itself. Raises TransportUnavailable."""
    return _server(await link.call(*_INFO), where)


async def _stage(link: Link, clock: ServerClock, stage: str, lane: str) -> StageOverview:
    stream = keyspace.jobs(stage, lane)
    length, pending, delayed, held, oldest, groups = await link.call(
        ("XLEN", stream),
        ("XPENDING", stream, keyspace.GROUP),
        ("ZCARD", keyspace.delayed(stage, lane)),
        ("GET", keyspace.held_bytes(stage, lane)),
        ("XRANGE", stream, "-", "+", "COUNT", 1),
        ("XINFO", "GROUPS", stream),
    )
    (unfetched,) = await link.call(("XRANGE", stream, f"({_last_fetched(groups)}", "+", "COUNT", 1))
    in_flight = 0 if isinstance(pending, ResponseError) else int(pending[0])
    return StageOverview(
        stage=stage,
        lane=lane,
        backlog=max(0, _count(length) - in_flight),
        pending=in_flight,
        delayed=_count(delayed),
        oldest_seconds=_age(oldest, clock),
        lag_seconds=_age(unfetched, clock),
        bytes=_count(held),
    )


def _count(reply: Any) -> int:
    """Return a number the server gave; 0 for a key that is not there, or that somebody else wrote."""
    try:
        return int(reply or 0)
    except (TypeError, ValueError):
        return 0


def _last_fetched(groups: Any) -> str:
    if isinstance(groups, ResponseError):  # there is no stream yet
        return "0-0"
    found = (dict(zip(group[::2], group[1::2], strict=True)) for group in groups)
    return next((g[b"last-delivered-id"].decode() for g in found if g[b"name"] == keyspace.GROUP.encode()), "0-0")


def _age(entries: Any, clock: ServerClock) -> float:
    """Return how many seconds ago the first of `entries` was written."""
    if not entries or isinstance(entries, ResponseError):
        return 0.0
    return max(0, clock.now() - int(entries[0][0].partition(b"-")[0])) / 1000


def _server(sections: list[Any], where: str) -> ServerOverview:
    """Return what the server says of itself; managed ones may say nothing."""
    said = [section.decode() for section in sections if isinstance(section, bytes)]
    facts = dict(line.split(":", 1) for text in said for line in text.splitlines() if ":" in line)
    version = facts.get("valkey_version") or facts.get("redis_version", "")
    return ServerOverview(
        name=f"{facts.get('server_name', 'redis')} {version} at {where}" if version else where,
        memory=int(facts.get("used_memory", 0)),
        memory_limit=int(facts.get("maxmemory", 0)),
        eviction=facts.get("maxmemory_policy", ""),
        persistence={"1": "append-only file", "0": NO_LOG}.get(facts.get("aof_enabled", ""), ""),
    )
