"""Completions of a text, OpenAI's older kind, under the paths that chat completions have."""

from __future__ import annotations

from ingress.exchange import Exchange, route
from ingress.submit import submit


async def complete(exchange: Exchange) -> None:
    """Answer with a completion."""
    await submit(exchange, "completions")


routes = [
    route("/completions", "completions", complete, "POST"),
    route("/openai/deployments/{model:path}/completions", "completions", complete, "POST"),
    route("/engines/{model:path}/completions", "completions", complete, "POST"),
]
