"""Responses: creating one. None is stored, so there is nothing to find under an id."""

from __future__ import annotations

from ingress.exchange import Exchange, route
from ingress.submit import submit
from pipeline.errors import NotFound


async def create(exchange: Exchange) -> None:
    """Answer with a response object."""
    await submit(exchange, "responses")


async def nothing(_: Exchange) -> None:
    """Say that responses are not kept. Raises NotFound, always."""
    raise NotFound("responses are not stored here; send the conversation along with `POST /v1/responses`")


routes = [
    route("/responses", "responses", create, "POST"),
    route("/responses", "responses", nothing),
    route("/responses/{rest:path}", "responses", nothing),
]
