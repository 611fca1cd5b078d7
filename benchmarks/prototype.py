"""
The yardstick: the barest thing of promptmill's shape, with none of its promises.

Two stages on Redis streams, redis-py pipelines, a settle script without a fence, pyreqwest. No authentication, no
routing, no leases, no deadlines, no cancellation, no errors: what it costs is what the shape costs.
Run as `python prototype.py ingress|resolve|dispatch`, with REDIS_URL, UPSTREAM and PORT in the environment.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from typing import Any

import msgspec
import uvicorn
import uvloop
from pyreqwest.client import ClientBuilder
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

SETTLE = """
redis.call('XACK', KEYS[1], 'g', ARGV[1])
redis.call('XDEL', KEYS[1], ARGV[1])
return redis.call('XADD', KEYS[2], '*', 'id', ARGV[2], 'b', ARGV[3])
"""
HEADERS = {"content-type": "application/json"}


def connect() -> Any:
    return Redis.from_url(os.environ["REDIS_URL"], protocol=2)


class Coalescer:
    """Sends what arrives while one pipeline is under way together in the next."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._waiting: list[Any] = []
        self._wake = asyncio.Event()

    def put(self, item: Any) -> None:
        self._waiting.append(item)
        self._wake.set()

    async def run(self, add: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            pipe = self._redis.pipeline(transaction=False)
            for item in batch:
                add(pipe, item)
            await pipe.execute()


async def ingress() -> None:
    redis, waiters, ids = connect(), {}, itertools.count()
    out = Coalescer(redis)

    async def chat(request: Request) -> Response:
        job = str(next(ids)).encode()
        waiters[job] = future = asyncio.get_running_loop().create_future()
        out.put((job, await request.body()))
        return Response(await future, media_type="application/json")

    async def replies() -> None:
        reader, last = connect(), "$"
        while True:
            for _, entries in await reader.xread({"replies": last}, count=256, block=1000) or ():
                for last, fields in entries:  # noqa: B007 - the last id is where the next read starts
                    waiters.pop(fields[b"id"]).set_result(fields[b"b"])
                await redis.xtrim("replies", minid=last)

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    config = uvicorn.Config(app, port=int(os.environ["PORT"]), access_log=False, log_level="error")
    await asyncio.gather(
        replies(),
        out.run(lambda pipe, item: pipe.xadd("resolve", {"id": item[0], "b": item[1]})),
        uvicorn.Server(config).serve(),
    )


async def stage(name: str, target: str, work: Any) -> None:
    redis, reader = connect(), connect()
    settle = await redis.script_load(SETTLE)
    out = Coalescer(redis)
    try:
        await redis.xgroup_create(name, "g", "0", mkstream=True)
    except ResponseError:
        pass  # it is there

    async def deliver(entry: bytes, fields: dict[bytes, bytes]) -> None:
        out.put((entry, fields[b"id"], await work(fields[b"b"])))

    async def fetch() -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                for _, entries in await reader.xreadgroup("g", "c", {name: ">"}, count=256, block=1000) or ():
                    for entry, fields in entries:
                        tasks.create_task(deliver(entry, fields))

    await asyncio.gather(
        fetch(), out.run(lambda pipe, item: pipe.evalsha(settle, 2, name, target, item[0], item[1], item[2]))
    )


async def resolve(body: bytes) -> bytes:
    request = msgspec.json.decode(body)
    request["messages"] = [{"role": "system", "content": "Be a good Bot!"}, *request["messages"]]
    request.pop("prompt_id", None)
    return msgspec.json.encode(request)


async def dispatch_stage() -> None:
    async with ClientBuilder().build() as client:
        url = os.environ["UPSTREAM"]

        async def dispatch(body: bytes) -> bytes:
            response = await client.post(url).headers(HEADERS).body_bytes(body).build().send()
            return bytes(await response.bytes())

        await stage("dispatch", "replies", dispatch)


if __name__ == "__main__":
    role = {"ingress": ingress, "resolve": lambda: stage("resolve", "dispatch", resolve), "dispatch": dispatch_stage}
    uvloop.run(role[sys.argv[1]]())
