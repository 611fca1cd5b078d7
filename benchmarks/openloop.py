"""Clients that ask at a given rate whether or not they are answered, over as many connections as that takes."""

from __future__ import annotations

import asyncio
import re
from typing import Final

import msgspec

_LENGTH: Final = re.compile(rb"(?i)content-length: *(\d+)")
_RETRY: Final = re.compile(rb"(?i)retry-after: *(\d+)")


class Result(msgspec.Struct, frozen=True):
    """One request: when it was sent (the loop's time), seconds until its answer, status (0: none), `Retry-After`."""

    at: float
    seconds: float
    status: int
    retry_after: int


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time on it."""

    def __init__(self) -> None:
        self._received = b""
        self._answered: asyncio.Future[tuple[int, int]] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Tell status and `Retry-After` once the answer is complete."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if found and length is not None and len(body) >= int(length[1]):
            self._received = b""
            retry = _RETRY.search(head)
            if self._answered is not None and not self._answered.done():
                self._answered.set_result((int(head.split(b" ", 2)[1]), int(retry[1]) if retry else 0))

    def connection_lost(self, error: Exception | None) -> None:
        """No answer comes any more."""
        self.closed = True
        if self._answered is not None and not self._answered.done():
            self._answered.set_result((0, 0))

    async def ask(self, request: bytes) -> Result:
        """Send a request and return what came of it."""
        loop = asyncio.get_running_loop()
        self._answered, at = loop.create_future(), loop.time()
        self.transport.write(request)
        status, retry_after = await self._answered
        return Result(at, loop.time() - at, status, retry_after)


class Clients:
    """Connections to one port, opened as they are needed."""

    def __init__(self, port: int, body: bytes) -> None:
        self._port = port
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        self._request = head % len(body) + body
        self._idle: list[Connection] = []
        self.results: list[Result] = []

    async def ask(self) -> None:
        """Send one request."""
        connection = self._idle.pop() if self._idle else None
        if connection is None or connection.closed:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
        self.results.append(await connection.ask(self._request))
        self._idle.append(connection)

    async def offer(self, rate: float, seconds: float) -> None:
        """Ask `rate` times a second and return when all are answered."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
                tasks.create_task(self.ask())

    async def saturate(self, count: int, seconds: float) -> None:
        """Let `count` clients ask one request after the other."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        async def client() -> None:
            while loop.time() < end:
                await self.ask()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(client())

    def close(self) -> None:
        """Close every connection."""
        for connection in self._idle:
            connection.transport.close()
