"""One ingress process: its socket, uvicorn, and how it stops."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
from collections.abc import Mapping
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Final

import anyio
import msgspec
import uvicorn
from starlette.applications import Starlette

from ingress.app import build_app
from ingress.auth import Keyring
from ingress.edge import Edge
from ingress.protocol import BoundedProtocol
from pipeline import logs
from pipeline.errors import ConfigurationError
from pipeline.exposure import check_exposure
from pipeline.hangup import KeyReloader
from pipeline.listener import SOCKET_VARIABLE
from pipeline.open_files import connections_left
from pipeline.settings import IngressSettings, Settings
from pipeline.startup import Source

if TYPE_CHECKING:
    from pipeline.transport.client import TransportClient

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
        """
        Begin to drain; Ctrl-C ends a drain. uvicorn's own would raise the signal again at the end.

        A second SIGTERM does not: who restarts one process and then stops the gateway sends two.
        """
        self._edge.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def stop(self) -> None:
        """Begin to drain."""
        self.handle_exit(signal.SIGTERM, None)


async def serve(settings: Settings, transport: TransportClient, bound: socket.socket, source: Source) -> None:
    """
    Serve until SIGTERM or SIGINT, then finish what is held, for up to `settings.ingress.drain` seconds.

    On SIGHUP the keys that `source` has then are taken over.
    """
    app = build_app(settings, transport)
    edge: Edge = app.state.edge
    server = Server(server_config(app, settings.ingress), edge)
    keys = KeyReloader(source, settings, partial(take_over, edge, str(bound.getsockname()[0])))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keys.run, server.stop)
        with anyio.move_on_after(FIRST_CONTACT):
            await transport.met()
        await server.serve(sockets=[bound])
        tasks.cancel_scope.cancel()
    log.info("ingress drained")


def take_over(edge: Edge, host: str, settings: Settings) -> None:
    """Let requests in by the keys of `settings` from now on. Raises ConfigurationError if they are unfit for `host`."""
    check_exposure(settings, host, os.environ)
    edge.keyring = Keyring(settings.keys, os.environ)


def server_config(app: Starlette, limits: IngressSettings) -> uvicorn.Config:
    """Return how uvicorn is run: nothing logged per request, nothing believed that a proxy may have written."""
    limits = msgspec.structs.replace(limits, max_connections=min(limits.max_connections, connections_left()))
    return uvicorn.Config(
        app,
        http=partial(BoundedProtocol, limits=limits),  # type: ignore[arg-type]  # it is only called
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.ERROR,  # its warnings are one a line for whoever sends rubbish; those are counted
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=math.ceil(limits.keep_alive),
        timeout_graceful_shutdown=math.ceil(limits.drain),
    )
