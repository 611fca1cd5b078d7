"""The command `promptmill ingress`: one process of the HTTP edge."""

from __future__ import annotations

import os
import socket

import anyio
import click

from ingress.auth import Keyring
from ingress.server import inherited_socket, serve
from pipeline import logs, options
from pipeline.errors import ConfigurationError
from pipeline.exposure import check_exposure
from pipeline.listener import listen
from pipeline.settings import Settings
from pipeline.startup import Source, redis_url, refuse, spare_collections, yield_often
from pipeline.stores.places import prove
from pipeline.transport.client import open_client

log = logs.logger("ingress")


@click.command("ingress")
@options.config()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=4000, show_default=True, envvar="PORT", show_envvar=True)
@options.data_dir()
@click.option("--debug", "--detailed_debug", is_flag=True, help="Log more; never bodies, prompts or keys.")
def ingress(config: str | None, host: str, port: int, data_dir: str | None, debug: bool) -> None:
    """Take HTTP requests in, and hand their answers out."""
    source = Source(config, data_dir)
    settings = source.load()
    logs.configure(debug=debug)
    try:
        url = redis_url(settings)
        doubt = prove(settings)
        bound = _socket(settings, host, port)
    except ConfigurationError as error:
        refuse(error)
    if doubt:
        log.warning("files may not be stored", reason=doubt)
    spare_collections()
    yield_often()
    anyio.run(_run, settings, url, bound, source, backend_options={"use_uvloop": True})


def _socket(settings: Settings, host: str, port: int) -> socket.socket:
    """Return the socket to serve on, once the keys are fit for it. Raises ConfigurationError."""
    Keyring(settings.keys, os.environ)  # a key that cannot be read ends the start before the port opens
    bound = inherited_socket(os.environ)
    if bound is None:
        check_exposure(settings, host, os.environ)
        return listen(host, port)
    try:
        check_exposure(settings, str(bound.getsockname()[0]), os.environ)
    except ConfigurationError:
        bound.close()
        raise
    return bound


async def _run(settings: Settings, url: str, bound: socket.socket, source: Source) -> None:
    async with open_client(settings, url) as transport:
        await serve(settings, transport, bound, source)
