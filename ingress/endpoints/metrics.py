"""Prometheus metrics of the whole fleet, from whichever ingress process is asked."""

from __future__ import annotations

from collections import Counter

from ingress.exchange import Exchange, route
from pipeline import metrics
from pipeline.errors import MasterKeyNeeded, TransportError
from pipeline.transport.overview import Overview

TEXT = b"text/plain; version=0.0.4; charset=utf-8"


async def scrape(exchange: Exchange) -> None:
    """Answer with every live process's samples. Raises MasterKeyNeeded for other keys."""
    assert exchange.key is not None
    if not exchange.key.master:
        raise MasterKeyNeeded("metrics are for the master key; configure the scraper with it")
    transport = exchange.edge.transport
    try:
        snapshots = dict(await transport.process_metrics())
        snapshots[metrics.FLEET] = metrics.gauge_snapshot(gauges(await transport.overview()))
    except TransportError:  # just when Redis is away this process's own numbers matter
        snapshots = {}
    snapshots[transport.consumer] = metrics.snapshot()
    await exchange.respond(200, metrics.render(snapshots.items()), TEXT)


def gauges(overview: Overview) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the values of `metrics.FLEET_GAUGES`."""
    lanes = {(stage.stage, stage.lane): stage for stage in overview.stages}
    workers = Counter(dict.fromkeys(lanes, 0))
    workers.update(
        (stage, lane) for process in overview.processes for stage in process.stages for lane in process.lanes
    )
    return {
        "workers": {lane: float(count) for lane, count in workers.items()},
        "backlog": {lane: stage.backlog for lane, stage in lanes.items()},
        "backlog_bytes": {lane: stage.bytes for lane, stage in lanes.items()},
        "pending": {lane: stage.pending for lane, stage in lanes.items()},
        "delayed": {lane: stage.delayed for lane, stage in lanes.items()},
        "oldest_seconds": {lane: stage.oldest_seconds for lane, stage in lanes.items()},
        "lag_seconds": {lane: stage.lag_seconds for lane, stage in lanes.items()},
        "dead_letters_kept": {(): overview.dead},
        "redis_memory_bytes": {(): overview.server.memory},
        "redis_memory_limit_bytes": {(): overview.server.memory_limit},
    }


routes = [route("/metrics", "metrics", scrape, "GET")]
