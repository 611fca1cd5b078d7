"""Calls through a sender to a server of `fakes.wires`."""

from __future__ import annotations

import asyncio

from fakes.wires import Serve, Wire

from workers.providers._dialect import UpstreamRequest
from workers.providers._http import Sender

LIMIT = 2**20
"""The `max_response_bytes` of the `sender` fixture."""
OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"content-length: 2\r\n\r\n{}"
BEGUN = OK + b"transfer-encoding: chunked\r\n\r\n"


def to(port: int, body: bytes = b"{}", host: str = "127.0.0.1", scheme: str = "http") -> UpstreamRequest:
    """Return a request to that port."""
    return UpstreamRequest("POST", f"{scheme}://{host}:{port}/v1/x?a=b", {"Authorization": "Bearer sk"}, body)


def saying(*parts: bytes, close: bool = False) -> Serve:
    """Answer each request of a connection with these bytes, written one after the other."""

    async def serve(wire: Wire) -> None:
        while True:
            await wire.request()
            for part in parts:
                await wire.send(part)
                await asyncio.sleep(0)
            if close:
                wire.writer.close()
                return

    return serve


async def follow(sender: Sender, request: UpstreamRequest, total: float = 30) -> None:
    """Read a stream to its end."""
    async with sender.stream(request, between=30, total=total) as stream:
        while await stream.receive() is not None:
            pass


async def one_call(sender: Sender, request: UpstreamRequest) -> None:
    """Make a call that is not streamed."""
    await sender.call(request, 30)
