"""`python -m benchmarks.slow_readers`: clients that read one byte a second from streams, and one that reads well."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import anyio

from benchmarks import measure, rig, streams, upstreams

FLOOD: Final = b"data: " + json.dumps({"choices": [{"delta": {"content": "x" * 16_000}}]}).encode() + b"\n\n"
HEALTHY: Final = 10.0
"""Events per second of the stream that is read well."""

ALONE: Final = 3.0
"""Seconds for which that stream is measured without the others."""


class Upstream(upstreams.Wire):
    """Answers a request with a flood, or with events that say when they were sent; counts who leaves."""

    left = 0
    rate = 4.0
    _flood = _waiting = False

    def take(self, call: bytes) -> None:
        """Begin. `GET` asks how many floods were left."""
        if call.startswith(b"GET"):
            self._transport.write(upstreams.http(Upstream.left))
            return
        self._transport.write(streams.HEAD)
        self._flood = b"flood" in call
        self._send()

    def pause_writing(self) -> None:
        """The gateway is behind."""
        self._waiting = True

    def resume_writing(self) -> None:
        """The gateway takes more."""
        self._waiting = False

    def _send(self) -> None:
        if self._transport.is_closing():
            return
        event = FLOOD if self._flood else streams.EVENT % time.monotonic()
        if not self._waiting:
            self._transport.write(b"%x\r\n%s\r\n" % (len(event), event))
        asyncio.get_running_loop().call_later(1 / (self.rate if self._flood else HEALTHY), self._send)

    def connection_lost(self, error: Exception | None) -> None:
        """The gateway ended the call."""
        Upstream.left += self._flood


async def serve_upstream(rate: float) -> None:
    """Serve until the process is ended."""
    Upstream.rate = rate
    server = await upstreams.listen(Upstream)
    await server.serve_forever()


def request(content: str) -> bytes:
    """Return a request for a stream."""
    body = {"model": "gpt-4", "stream": True, "messages": [{"role": "user", "content": content}]}
    encoded = json.dumps(body).encode()
    return streams.REQUEST % (len(encoded), encoded)


async def read_slowly(port: int) -> None:
    """Read one byte a second until the gateway ends the connection."""
    with socket.socket() as client:
        client.settimeout(0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, request("flood"))
        with contextlib.suppress(OSError):
            while await loop.sock_recv(client, 1):  # noqa: ASYNC110 - it is this slow on purpose
                await asyncio.sleep(1)


async def read_well(port: int, delays: list[float]) -> None:
    """Read the other stream, and note how late each event is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request("steady"))
    try:
        while data := await reader.read(2**16):
            delays += [time.monotonic() - float(at) for at in streams.AT.findall(data)]
    finally:
        writer.close()


async def left(port: int) -> int:
    """Return how many floods the gateway has left."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    said = await reader.readuntil(b"\r\n\r\n")
    count = int(await reader.readexactly(int(said.rpartition(b": ")[2])))
    writer.close()
    return count


async def follow(gateway: rig.Gateway, upstream_port: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures: seconds, and megabytes of the ingress process."""
    port = int(gateway.url.rpartition(":")[2])
    (ingress,) = measure.processes(gateway.pid)["ingress"]
    alone: list[float] = []
    beside: list[float] = []
    with anyio.move_on_after(ALONE):
        await read_well(port, alone)
    async with anyio.create_task_group() as clients:
        clients.start_soon(read_well, port, beside)
        before, most = measure.rss_bytes(ingress), 0
        begin, cancelled = time.monotonic(), 0.0
        for _ in range(options.clients):
            clients.start_soon(read_slowly, port)
        while time.monotonic() < begin + options.seconds:
            await asyncio.sleep(0.2)
            most = max(most, measure.rss_bytes(ingress))
            if not cancelled and await left(upstream_port) == options.clients:
                cancelled = time.monotonic() - begin
        clients.cancel_scope.cancel()
    return {
        "clients": options.clients,
        "calls_cancelled_after": cancelled,
        "rss_before_mb": before / 2**20,
        "rss_most_mb": most / 2**20,
        "rss_after_mb": measure.rss_bytes(ingress) / 2**20,
        "delay_alone": _percentiles(alone),
        "delay_beside": _percentiles(beside),
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    found = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": found[49], "p99": found[98]}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    settings = f"promptmill_settings: {{max_unread_bytes: {options.unread}}}\n"
    with (
        tempfile.TemporaryDirectory(prefix="promptmill-slow-") as name,
        upstreams.running("slow_readers", "--upstream", "--rate", options.rate) as url,
        rig.gateway(Path(name), url, settings) as gateway,
    ):
        return asyncio.run(follow(gateway, int(url.rpartition(":")[2]), options))


def main() -> int:
    """Measure and print; returns the exit status, 1 when a provider call was not cancelled."""
    options = _options()
    if options.upstream:
        asyncio.run(serve_upstream(options.rate))
        return 0
    figures = run(options)
    print(json.dumps(figures, indent=None if options.json else 1))
    return 0 if figures["calls_cancelled_after"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_readers", description=__doc__)
    parser.add_argument("--clients", type=int, default=200, help="slow clients (default: 200)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the measurement (default: 60)")
    parser.add_argument("--rate", type=float, default=4.0, help="events of 16 KB a second to each (default: 4)")
    parser.add_argument("--unread", default="64MiB", help="max_unread_bytes of the gateway (default: 64MiB)")
    parser.add_argument("--json", action="store_true", help="print the figures on one line")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
