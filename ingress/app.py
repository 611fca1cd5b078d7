"""The edge as one ASGI application: its routes, the layer around them, and what lives as long as it does."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from starlette.applications import Starlette
from starlette.routing import Route

from ingress import endpoints
from ingress.edge import Edge
from ingress.guard import Guard
from pipeline import plugins
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.transport.client import TransportClient


def build_app(settings: Settings, transport: TransportClient, environment: Mapping[str, str] = os.environ) -> Starlette:
    """Return the application; its `state.edge` is what the endpoints share. Raises ConfigurationError."""
    edge = Edge(settings, transport, environment)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as watchers:
            edge.watchers = watchers
            watchers.start_soon(edge.files.maintain, edge.batches.in_use)
            yield
            watchers.cancel_scope.cancel()

    found = plugins.load_all(endpoints, "routes")
    app = Starlette(routes=list(both_forms(route for routes in found.values() for route in routes)), lifespan=lifespan)
    app.state.edge = edge
    app.router.redirect_slashes = False  # a redirect is built from the Host header, and would skip authentication
    # Instead of Starlette's own two layers: the guard answers every error, in OpenAI's shape.
    app.middleware_stack = Guard(app.router, edge)
    return app


def both_forms(routes: Iterable[Route]) -> Iterator[Route]:
    """Yield every route with `/v1` before its path and without; clients disagree about what a base URL is."""
    for route in routes:
        for path in (f"/v1{route.path}", route.path):
            yield Route(path, route.endpoint, methods=route.methods, name=route.name)
