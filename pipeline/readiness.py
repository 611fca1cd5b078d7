"""Is the gateway up: has every process registered itself, and does the ingress answer."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import anyio

from pipeline.errors import TransportError
from pipeline.transport import fitness
from pipeline.transport.overview import read_overview

_REQUEST = b"GET /health/liveness HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def missing(processes: Mapping[str, int | None], address: tuple[str, int] | None, redis_url: str) -> list[str]:
    """
    Return what is not up yet, in words; nothing when all is.

    `processes` are names and process ids; `address` is where the ingress listens, None when there is none.
    """
    try:
        overview = await read_overview(redis_url, ())
    except TransportError as error:
        return [f"Redis: {error.message}"]
    here = socket.gethostname()
    registered = {process.pid for process in overview.processes if process.host == here}
    absent = [name for name, pid in processes.items() if pid not in registered]
    if absent:
        return [f"no sign of {name} yet" for name in absent]
    if address is not None and not await _answers(address):
        return ["the ingress does not answer yet"]
    return []


async def concerns(redis_url: str) -> tuple[str, ...]:
    """Return what the owner of the server should know; nothing while it cannot be asked."""
    try:
        return tuple(fitness.concerns((await read_overview(redis_url, ())).server))
    except TransportError:
        return ()


async def _answers(address: tuple[str, int]) -> bool:
    with anyio.move_on_after(1.0):
        try:
            async with await anyio.connect_tcp(*address) as stream:
                await stream.send(_REQUEST)
                return (await stream.receive(64)).startswith(b"HTTP/1.1 200")
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            return False
    return False
