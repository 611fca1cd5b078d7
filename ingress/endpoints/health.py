"""Is the process alive, can it serve, and how is the fleet."""

from __future__ import annotations

from ingress.exchange import Exchange, route


async def liveness(exchange: Exchange) -> None:
    """Answer as LiteLLM does: the process runs, whatever else does not."""
    await exchange.respond_json("I'm alive!")


async def readiness(exchange: Exchange) -> None:
    """Answer 200 when requests can be served, else 503: Redis is away, a stage has no worker, or we are stopping."""
    edge = exchange.edge
    status = edge.transport.status()
    missing = [stage for stage in needed_stages(exchange) if not status.workers.get(stage)]
    state = "healthy"
    if edge.draining:
        state = "shutting_down"
    elif not status.connected or missing:
        state = "unhealthy"
    answer = {"status": state, "redis": "connected" if status.connected else "not connected", "workers": status.workers}
    await exchange.respond_json(answer, 200 if state == "healthy" else 503)


async def health(exchange: Exchange) -> None:
    """Answer with what this process knows of the fleet."""
    edge = exchange.edge
    status = edge.transport.status()
    await exchange.respond_json(
        {
            "status": "shutting_down" if edge.draining else "healthy" if status.connected else "unhealthy",
            "redis": "connected" if status.connected else "not connected",
            "workers": status.workers,
            "backlog": status.backlog,
            "backlog_bytes": status.backlog_bytes,
            "waiting": status.waiting,
            "requests": edge.permits.requests,
            "buffered_bytes": edge.permits.held,
        }
    )


def needed_stages(exchange: Exchange) -> tuple[str, ...]:
    """Return the stages without which requests fail: nobody needs prompts resolved where no prompt manager is."""
    return ("resolve", "dispatch") if exchange.edge.settings.callbacks else ("dispatch",)


routes = [
    route("/health/liveliness", "health", liveness, "GET"),
    route("/health/liveness", "health", liveness, "GET"),
    route("/health/readiness", "health", readiness, "GET"),
    route("/health", "health", health, "GET"),
]
