"""The ingress with a fake transport: called in-process, or served by uvicorn on a loopback socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import msgspec
from fakes.configs import settings as make_settings
from fakes.transport import FakeTransport
from fakes.waiting import wait_until

from ingress.app import build_app
from ingress.edge import Edge
from ingress.server import Server, server_config
from pipeline.listener import listen
from pipeline.settings import Key, Secret, Settings

MASTER = "sk-master-of-the-tests"
TEAM = "sk-team-of-the-tests"
KEYS = (
    Key(name="master", values=(Secret(MASTER),), master=True),
    Key(name="team", values=(Secret(TEAM),), models=("gpt-4", "cheap-*")),
)
CHAT = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def calling(
    transport: FakeTransport, settings: Settings | None = None, key: str = "", **environment: str
) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client of the application, without a socket; `key` goes along as a Bearer key."""
    app: Any = build_app(settings or make_settings(), transport, environment)  # type: ignore[arg-type]
    headers = {"authorization": f"Bearer {key}"} if key else {}
    asgi = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=asgi, base_url="http://gateway", headers=headers) as client,
    ):
        client.edge = app.state.edge  # type: ignore[attr-defined]
        yield client


class Served:
    """A running server: where it listens, and its parts."""

    def __init__(self, server: Server, edge: Edge, port: int) -> None:
        self.server = server
        self.edge = edge
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    async def connect(self) -> anyio.abc.SocketStream:
        return await anyio.connect_tcp("127.0.0.1", self.port)


@asynccontextmanager
async def serving(
    transport: FakeTransport, settings: Settings | None = None, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Served]:
    """Serve the application with uvicorn on a port of its own."""
    settings = settings or make_settings()
    app: Any = build_app(settings, transport, environment or {})  # type: ignore[arg-type]
    server = Server(server_config(app, msgspec.structs.replace(settings.ingress, drain=1)), app.state.edge)
    bound = listen("127.0.0.1", 0)
    port = bound.getsockname()[1]

    async def serve() -> None:
        with anyio.CancelScope(shield=True):  # a failed test closes its sockets as well
            await server._serve([bound])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await wait_until(lambda: server.started)
        try:
            yield Served(server, app.state.edge, port)
        finally:
            server.should_exit = True


async def read_all(stream: anyio.abc.SocketStream) -> bytes:
    """Return everything until the other side closes."""
    data = b""
    try:
        while True:
            data += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return data


def request_bytes(body: bytes, path: str = "/v1/chat/completions", *headers: str) -> bytes:
    """Return a POST as it goes over the wire."""
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body
