"""One ingress process: its socket, uvicorn, and how it stops."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Final

import anyio
import uvicorn
from starlette.applications import Starlette

from ingress.app import build_app
from ingress.edge import Edge
from ingress.protocol import BoundedProtocol
from pipeline import logs
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.transport.client import TransportClient

SOCKET_VARIABLE: Final = "PROMPTMILL_SOCKET_FD"
"""Number of an open, bound socket: `up` binds the port once, for all its ingress processes."""

FIRST_CONTACT: Final = 2.0
"""Seconds a starting process waits for Redis before it takes requests, which it would refuse until then."""

log = logs.logger("ingress")


def inherited_socket(environment: Mapping[str, str]) -> socket.socket | None:
    """Return the socket a parent process handed down, if it did. Raises ConfigurationError when it is none."""
    number = environment.get(SOCKET_VARIABLE)
    if not number:
        return None
    try:
        return socket.socket(fileno=int(number))
    except (ValueError, OSError) as error:
        raise ConfigurationError(
            f"{SOCKET_VARIABLE}={number} is not an open socket ({error}); unset it, it is for `promptmill up` alone"
        ) from None


class Server(uvicorn.Server):
    """uvicorn's server, which after a signal drains and returns: the transport must still be closed after it."""

    def __init__(self, config: uvicorn.Config, edge: Edge) -> None:
        super().__init__(config)
        self._edge = edge

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        log.info("ingress listens", addresses=[str(s.getsockname()) for s in sockets or ()])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends that. uvicorn's own would raise the signal again at the end."""
        self._edge.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True


async def serve(settings: Settings, transport: TransportClient, bound: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is held, for up to `settings.ingress.drain` seconds."""
    app = build_app(settings, transport)
    with anyio.move_on_after(FIRST_CONTACT):
        await transport.met()
    await Server(server_config(app, settings.ingress.drain), app.state.edge).serve(sockets=[bound])
    log.info("ingress drained")


def server_config(app: Starlette, drain: float) -> uvicorn.Config:
    """Return how uvicorn is run: nothing logged per request, nothing believed that a proxy may have written."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=math.ceil(drain),
    )
