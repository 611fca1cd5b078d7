"""A way to a server that can be cut: TCP on a loopback port in front of a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """Passes bytes on; counts connections, and loses answers or refuses when told to."""

    def __init__(self, url: str) -> None:
        self.move_to(url)
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.connections = 0
        self.refuse = False
        self.black_hole = False
        """Take requests and pass nothing on."""
        self.rate = 0
        """Bytes of answers passed on in a second; 0: as fast as they come."""
        self.lose_answer_to = b""
        """The next request that contains these bytes is delivered, and its connection cut before the answer."""
        self.lost = 0
        self.silent_from = b""
        """The connection of the next request that contains these bytes passes nothing on any more, and stays open."""
        self.silenced = 0

    def move_to(self, url: str) -> None:
        """Lead new connections to another server; the others stay where they are."""
        self._path = url.removeprefix("unix://")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        self._writers.add(writer)
        up_writer: asyncio.StreamWriter | None = None
        try:
            if self.refuse:
                return
            up_reader, up_writer = await asyncio.open_unix_connection(self._path)
            self._writers.add(up_writer)
            async with asyncio.TaskGroup() as tasks:
                back = tasks.create_task(self._back(up_reader, writer))
                await self._forth(reader, up_writer, back)
                back.cancel()
        except* OSError:
            pass  # either side left: that is what this is for
        finally:
            for end in (writer, up_writer):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _forth(
        self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter, back: asyncio.Task[None]
    ) -> None:
        silent = False
        while data := await reader.read(2**20):
            if self.silent_from and self.silent_from in data:
                self.silent_from = b""
                self.silenced += 1
                silent = True
            if self.black_hole or silent:
                continue
            if self.lose_answer_to and self.lose_answer_to in data:
                self.lose_answer_to = b""
                self.lost += 1
                back.cancel()
                up_writer.write(data)
                await up_writer.drain()
                await asyncio.sleep(0.05)  # the server takes what has arrived before it sees the connection close
                return
            up_writer.write(data)
            await up_writer.drain()

    async def _back(self, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await up_reader.read(2**14 if self.rate else 2**20):
            if self.rate:
                await asyncio.sleep(len(data) / self.rate)
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()


@asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[Proxy]:
    """Run a proxy in front of a server's `unix://` URL."""
    proxy = Proxy(url)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    proxy.url = f"redis://{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), 2)
