"""Embeddings of texts, under OpenAI's path and the two older ones that carry the model."""

from __future__ import annotations

from ingress.exchange import Exchange, route
from ingress.submit import submit


async def embed(exchange: Exchange) -> None:
    """Answer with a vector for each text."""
    await submit(exchange, "embeddings")


routes = [
    route("/embeddings", "embeddings", embed, "POST"),
    route("/openai/deployments/{model:path}/embeddings", "embeddings", embed, "POST"),
    route("/engines/{model:path}/embeddings", "embeddings", embed, "POST"),
]
