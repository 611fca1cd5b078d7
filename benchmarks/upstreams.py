"""What the upstreams of the benchmarks share: connections that hand on whole calls, and processes of their own."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

LENGTH: Final = re.compile(rb"(?i)content-length: *(\d+)")


class Wire(asyncio.Protocol):
    """One connection to an upstream, with one call at a time on it."""

    _received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand on a call once it is complete."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if found and len(body) >= (int(length[1]) if length else 0):
            call, self._received = self._received, b""
            self.take(call)

    def take(self, call: bytes) -> None:
        """Take a call, its head and its body."""
        raise NotImplementedError


def http(said: object) -> bytes:
    """Return an answer in JSON."""
    body = json.dumps(said).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def listen(wire: Callable[[], Wire]) -> asyncio.Server:
    """Listen on a free port, and say it on standard output."""
    server = await asyncio.get_running_loop().create_server(wire, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    return server


@contextmanager
def running(module: str, *arguments: Any) -> Iterator[str]:
    """Run a module that listens in a process of its own, and yield its URL."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()
