"""A way to a server that can be disturbed, for each kind of process at its other end: TCP, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET

from anyio.from_thread import start_blocking_portal

_ROLE = re.compile(rb"SETNAME\r\n\$\d+\r\n([a-z]+)")
_NOW = struct.pack("ii", 1, 0)
_CHUNK = 2**16


@dataclass
class Edge:
    """What happens to the bytes of one kind of process, from now on."""

    refuse: bool = False
    """Connections are reset as soon as they are made."""
    black_hole: bool = False
    """Nothing passes any more, in either direction, and nobody is told."""
    half_open: bool = False
    """When the server closes, the process is not told."""
    latency: float = 0.0
    """Seconds each piece is late, in each direction."""
    rate: float = 0.0
    """Bytes a second, in each direction; 0: as fast as it goes."""
    lose_answer_to: bytes = b""
    """The next request with these bytes is delivered, and its connection cut before the answer."""
    lost: int = 0
    """How often that happened."""
    connections: set[asyncio.StreamWriter] = field(default_factory=set)


class Wire:
    """`wire.edges["dispatch"].black_hole = True`: the edge of all connections whose Redis name begins with dispatch."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.address = ""
        self.edges: defaultdict[str, Edge] = defaultdict(Edge)
        self._loop: asyncio.AbstractEventLoop | None = None

    def heal(self) -> None:
        """Let everything pass again; what stands in a black hole is cut, or it would stay there."""
        for edge in self.edges.values():
            stuck = edge.black_hole or edge.half_open
            edge.refuse = edge.black_hole = edge.half_open = False
            edge.latency = edge.rate = 0.0
            edge.lose_answer_to = b""
            if stuck:
                self._cut(edge)

    def cut(self, role: str) -> None:
        """Reset every connection of a kind of process."""
        self._cut(self.edges[role])

    def _cut(self, edge: Edge) -> None:
        assert self._loop is not None
        for writer in list(edge.connections):
            self._loop.call_soon_threadsafe(_reset, writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, until it ends in whatever way."""
        first = b""
        with contextlib.suppress(OSError):
            first = await reader.read(_CHUNK)
        found = _ROLE.search(first)
        edge = self.edges[found[1].decode() if found else ""]
        edge.connections.add(writer)
        back_writer: asyncio.StreamWriter | None = None
        try:
            if edge.refuse or not first:
                return
            back_reader, back_writer = await self._connect()
            async with asyncio.TaskGroup() as tasks:
                back = tasks.create_task(_pass(edge, back_reader, writer))
                await self._forth(edge, first, reader, back_writer, back)
                back.cancel()
        except* OSError:
            pass  # either side left: that is what this is for
        finally:
            edge.connections.discard(writer)
            for end in (writer, back_writer):
                if end is not None:
                    _reset(end)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.startswith("/"):
            return await asyncio.open_unix_connection(self._target)
        host, _, port = self._target.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _forth(
        self,
        edge: Edge,
        data: bytes,
        reader: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        back: asyncio.Task[None],
    ) -> None:
        while data:
            if edge.lose_answer_to and edge.lose_answer_to in data:
                edge.lose_answer_to = b""
                edge.lost += 1
                back.cancel()
                to.write(data)
                await to.drain()
                await asyncio.sleep(0.05)  # the server takes what has arrived before it sees the connection close
                return
            await _deliver(edge, data, to)
            data = await reader.read(_CHUNK)

    @contextlib.contextmanager
    def running(self) -> Iterator[Wire]:
        """Serve in a thread of its own: a busy test must not look like a slow network."""
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self._serving()):
            yield self

    @contextlib.asynccontextmanager
    async def _serving(self):  # type: ignore[no-untyped-def]
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        try:
            yield
        finally:
            server.close()
            for edge in self.edges.values():
                for writer in list(edge.connections):
                    _reset(writer)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 2)


async def _pass(edge: Edge, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        await _deliver(edge, data, to)
    if edge.half_open:
        await asyncio.get_running_loop().create_future()
    _reset(to)


async def _deliver(edge: Edge, data: bytes, to: asyncio.StreamWriter) -> None:
    if edge.black_hole:
        return
    if pause := edge.latency + (len(data) / edge.rate if edge.rate else 0):
        await asyncio.sleep(pause)
    to.write(data)
    await to.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            sock.setsockopt(SOL_SOCKET, SO_LINGER, _NOW)
    writer.transport.abort()
