"""Prometheus metrics of the whole fleet, from whichever ingress process is asked."""

from __future__ import annotations

from ingress.exchange import Exchange, route
from pipeline import metrics
from pipeline.errors import MasterKeyNeeded, TransportError

TEXT = b"text/plain; version=0.0.4; charset=utf-8"


async def scrape(exchange: Exchange) -> None:
    """Answer with every live process's samples. Raises MasterKeyNeeded for other keys."""
    assert exchange.key is not None
    if not exchange.key.master:
        raise MasterKeyNeeded("metrics are for the master key; configure the scraper with it")
    transport = exchange.edge.transport
    try:
        snapshots = dict(await transport.process_metrics())
    except TransportError:  # just when Redis is away this process's own numbers matter
        snapshots = {}
    snapshots[transport.consumer] = metrics.snapshot()
    status = transport.status()
    fleet = {"workers": status.workers, "backlog": status.backlog, "backlog_bytes": status.backlog_bytes}
    snapshots[metrics.FLEET] = metrics.gauge_snapshot(fleet)
    await exchange.respond(200, metrics.render(snapshots.items()), TEXT)


routes = [route("/metrics", "metrics", scrape, "GET")]
