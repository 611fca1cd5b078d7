"""`python -m benchmarks.sender`: calls/s, CPU per call and memory per call in flight of the sender to providers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import uvloop

from benchmarks import rig
from pipeline.settings import DispatchSettings
from workers.providers._dialect import UpstreamRequest
from workers.providers._http import Sender

CALLS: Final = 20_000
IN_FLIGHT: Final = 5_000
BODY: Final = json.dumps({"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}).encode()
HEADERS: Final = {"Content-Type": "application/json", "Authorization": "Bearer sk-benchmark"}

Call = Callable[[], Awaitable[object]]


@asynccontextmanager
async def _sender(url: str) -> AsyncIterator[Call]:
    async with Sender(DispatchSettings(connect_timeout=30)) as sender:
        yield lambda: sender.call(UpstreamRequest("POST", url, HEADERS, BODY), 60)


@asynccontextmanager
async def _pyreqwest(url: str) -> AsyncIterator[Call]:
    from pyreqwest.client import ClientBuilder  # noqa: PLC0415 - a comparison where it is installed, not a need

    async with ClientBuilder().follow_redirects(enable=False).build() as client:

        async def call() -> bytes:
            timeout = timedelta(seconds=60)
            async with client.post(url).headers(HEADERS).body_bytes(BODY).timeout(timeout).build_streamed() as answer:
                return (await answer.bytes()).to_bytes()

        yield call


CLIENTS: Final = {"sender": _sender, "pyreqwest": _pyreqwest}


async def _speed(client: str, url: str, connections: int) -> None:
    async with CLIENTS[client](url) as call:

        async def work(count: int) -> None:
            for _ in range(count):
                await call()

        async def all_of(calls: int) -> None:
            await asyncio.gather(*(work(calls // connections) for _ in range(connections)))

        await all_of(CALLS // 4)  # warm
        before, began = time.process_time(), time.perf_counter()
        await all_of(CALLS)
        cpu, wall = time.process_time() - before, time.perf_counter() - began
        done = CALLS // connections * connections
        print(f"{client:10} {connections:6} {done / wall:10.0f} {cpu / done * 1e6:10.1f}", flush=True)


async def _memory(client: str, port: str) -> None:
    async with CLIENTS[client](f"http://127.0.0.1:{port}/v1/chat/completions") as call:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await call()  # whatever is made once
        before = _resident()
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(_ignored(call)) for _ in range(IN_FLIGHT)]
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
            writer.write(b"await %d\n" % IN_FLIGHT)
            await reader.readline()
            writer.close()
            print(f"{client:10} {IN_FLIGHT:6} in flight: {(_resident() - before) / IN_FLIGHT / 1024:.1f} KB each")
            for task in waiting:
                task.cancel()


async def _ignored(call: Call) -> None:
    await call()


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


async def _hang() -> None:
    """Serve calls that are never answered; a line `await N` is, once N calls have arrived."""
    arrivals = asyncio.Condition()
    arrived = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        with contextlib.suppress(ConnectionError):
            first = await reader.readline()
            async with arrivals:
                if first.startswith(b"await"):
                    await arrivals.wait_for(lambda: arrived >= int(first.split()[1]))
                    writer.write(b"all\n")
                else:
                    arrived += 1
                    arrivals.notify_all()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=IN_FLIGHT)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _measure(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.sender", *arguments], check=True)


def main() -> None:
    """Compare the sender with pyreqwest where that is installed, each figure in a process of its own."""
    clients = [name for name in CLIENTS if name == "sender" or importlib.util.find_spec(name)]
    print(f"{'client':10} {'calls':>6} {'calls/s':>10} {'CPU us':>10}", flush=True)
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as name, rig.upstream(Path(name)) as upstream:
        for connections in (1, 16, 64, 256):
            for client in clients:
                _measure("speed", client, upstream + "/v1/chat/completions", str(connections))
    for client in clients:
        with subprocess.Popen([sys.executable, "-m", "benchmarks.sender", "hang"], stdout=subprocess.PIPE) as hanging:
            assert hanging.stdout is not None
            try:
                _measure("memory", client, hanging.stdout.readline().decode().strip())
            finally:
                hanging.kill()


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    match sys.argv[1:]:
        case ["speed", client, url, connections]:
            uvloop.run(_speed(client, url, int(connections)))
        case ["memory", client, port]:
            uvloop.run(_memory(client, port))
        case ["hang"]:
            uvloop.run(_hang())
        case _:
            main()
