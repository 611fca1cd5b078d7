"""Moderations: what a model finds objectionable in a text."""

from __future__ import annotations

from ingress.exchange import Exchange, route
from ingress.submit import submit


async def moderate(exchange: Exchange) -> None:
    """Answer with what was found."""
    await submit(exchange, "moderations")


routes = [route("/moderations", "moderations", moderate, "POST")]
