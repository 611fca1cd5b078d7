"""Clients that no HTTP library would be: they leave, dawdle, fall silent, or read a byte a second."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from chaos.arena import MASTER_KEY
from chaos.load import PATH

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")


class Caller:
    """One connection to the gateway; `name` is how the provider will know its request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.read = bytearray()
        self.left = 0.0

    def say(self, data: bytes) -> None:
        """Send bytes, unless the gateway has hung up."""
        with contextlib.suppress(OSError):
            self._writer.write(data)

    async def listen(self, most: int = 2**16) -> bool:
        """Read up to `most` bytes; return whether the connection goes on."""
        try:
            data = await self._reader.read(most)
        except OSError:
            data = b""
        self.read += data
        return bool(data)

    async def hear(self, words: bytes) -> None:
        """Read until `words` have come."""
        while words not in self.read:
            assert await self.listen(), f"the gateway hung up after {bytes(self.read)!r}"

    async def ended(self) -> float:
        """Read to the end; return when it came."""
        while await self.listen():
            pass
        return time.monotonic()

    @property
    def status(self) -> int:
        """Status of the first response; 0: there was none."""
        found = _STATUS.match(self.read)
        return int(found[1]) if found else 0

    def leave(self) -> None:
        """Close the connection."""
        self.left = time.monotonic()
        self._writer.transport.abort()


async def dial(url: str, *, receives: int = 0) -> Caller:
    """Connect to the gateway; `receives`: bytes the kernel may keep for us unread."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    sock = socket.socket()
    sock.setblocking(False)
    if receives:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    # The limit bounds what the reader takes from the kernel on its own account.
    return Caller(*await asyncio.open_connection(sock=sock, limit=max(1, receives) if receives else 2**16))


def head(size: int) -> bytes:
    """Return the head of a request with a body of that size, and its end still missing."""
    fields = {
        "host": "gateway",
        "authorization": f"Bearer {MASTER_KEY}",
        "content-type": "application/json",
        "content-length": str(size),
    }
    lines = [f"POST {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), ""]
    return "\r\n".join(lines).encode()


def whole(body: Mapping[str, Any]) -> bytes:
    """Return a request."""
    data = json.dumps(body).encode()
    return head(len(data)) + b"\r\n" + data
