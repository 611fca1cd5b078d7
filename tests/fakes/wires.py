"""Servers below HTTP: raw bytes on a connection, TLS, and a proxy that says what it was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

AUTHORITY = Path(__file__).parent / "tls" / "authority.pem"
"""Signed the certificate below; nothing else trusts it. Both are valid until 2126."""
CERTIFICATE = Path(__file__).parent / "tls" / "localhost.pem"
"""For the name `localhost` alone, with its key."""

Serve = Callable[["Wire"], Awaitable[None]]


class Wire:
    """One accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[str, dict[str, str], bytes]:
        """Read one request: its first line, its headers in lower case, its body."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        return lines[0], headers, await self.reader.readexactly(int(headers.get("content-length", "0")))

    async def send(self, data: bytes) -> None:
        """Write bytes and wait until the peer's side takes more."""
        try:
            self.writer.write(data)
        except RuntimeError as error:  # uvloop's word for a connection that is gone
            raise ConnectionResetError from error
        await self.writer.drain()


class Wires:
    """What a server has seen."""

    def __init__(self) -> None:
        self.port = 0
        self.accepted = 0
        self.closed = 0
        """Connections whose other side has gone."""


def tls_server() -> ssl.SSLContext:
    """Return a server's context with the test certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@asynccontextmanager
async def listen(serve: Serve, *, host: str = "127.0.0.1", tls: bool = False) -> AsyncIterator[Wires]:
    """Run `serve` on every connection; afterwards wait for the peer to close, and count it."""
    wires = Wires()
    tasks: set[asyncio.Task[None] | None] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wires.accepted += 1
        tasks.add(asyncio.current_task())
        try:
            with contextlib.suppress(OSError, EOFError):
                await serve(Wire(reader, writer))
                while await reader.read(2**16):
                    pass
            wires.closed += 1
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(accept, host, 0, ssl=tls_server() if tls else None)
    wires.port = server.sockets[0].getsockname()[1]
    try:
        yield wires
    finally:
        server.close()
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.sleep(0)


def answering(body: bytes = b"{}", *extra: bytes) -> Serve:
    """Answer every request with a 200 and this body."""

    async def serve(wire: Wire) -> None:
        while True:
            await wire.request()
            await wire.send(b"".join([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body), *extra]))

    return serve


def proxying(asked: list[tuple[str, dict[str, str]]], verdict: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Serve:
    """Be a proxy: note what is asked; open tunnels with `verdict`, answer anything else oneself."""

    async def serve(wire: Wire) -> None:
        first, headers, _ = await wire.request()
        asked.append((first, headers))
        method, target, _ = first.split(" ")
        if method != "CONNECT":
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nproxy")
            return
        await wire.send(verdict)
        if not verdict.startswith(b"HTTP/1.1 200"):
            wire.writer.close()
            return
        host, _, port = target.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(_pass(wire.reader, writer), _pass(reader, wire.writer))
        finally:
            writer.transport.abort()

    return serve


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()
