"""Processes of another release, or with another configuration, share the streams, as they do during a rollout."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2
import msgspec
from chaos.arena import Arena, Layout
from chaos.load import PATH, request
from chaos.scenario import Verdict, scenario
from fakes.gateways import environment
from fakes.waiting import wait_until

from pipeline.job import LIVE, Facts, Job, Reply, decode_reply, encode, new_id
from pipeline.transport import keyspace
from pipeline.transport.connection import Command, Link
from pipeline.transport.registry import ProcessInfo

REQUESTS = 48
OWN_TIME = 5.0
"""Seconds requests take themselves, on a busy machine."""

NOVEL: Final = {"novel": {"deep": [1, "x"]}, "later": None}
"""Fields that a later release may have added."""

UNKNOWN_EARLIER: Final = ("since", "endpoint", "config", "traceparent", "deferrals", "facts")
"""Fields that an earlier release may not have had."""

DEFERRED = 15.0
"""Seconds for which a job is put off in the end, if no worker that it comes to knows its model."""

Entry = dict[bytes, bytes]
Turn = Callable[[Link, Entry, int], Awaitable[tuple[Command, ...]]]


def translated(message: Any, number: int) -> bytes:
    """Return a message as another release writes it: by turns a later one and an earlier one."""
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    earlier = {name: value for name, value in fields.items() if name not in UNKNOWN_EARLIER}
    return encode({**fields, **NOVEL} if number % 2 else earlier)


@asynccontextmanager
async def other_worker(arena: Arena, stage: str, turn: Turn) -> AsyncIterator[list[str]]:
    """Take part in a stage by hand; the list holds the ids of the entries that it settled."""
    settled: list[str] = []
    async with (
        registered(arena, f"{stage}-other-0-ffffff", stage) as (link, consumer),
        anyio.create_task_group() as tasks,
    ):
        stopped = anyio.Event()
        tasks.start_soon(_work, link, consumer, stage, turn, settled, stopped)
        yield settled
        stopped.set()


async def _work(link: Link, consumer: str, stage: str, turn: Turn, settled: list[str], stopped: anyio.Event) -> None:
    stream, counter = keyspace.jobs(stage, LIVE), keyspace.held_bytes(stage, LIVE)
    read = ("XREADGROUP", "GROUP", keyspace.GROUP, consumer, "COUNT", 4, "BLOCK", 200, "STREAMS", stream, ">")
    while not stopped.is_set():
        (reply,) = await link.call(read, wait=0.2)
        for entry, fields in reply[0][1] if reply else ():
            values = dict(zip(fields[::2], fields[1::2], strict=True))
            writes = await turn(link, values, len(settled))
            end = (("XACK", stream, keyspace.GROUP, entry), ("XDEL", stream, entry), ("DECRBY", counter, values[b"s"]))
            await link.call(*writes, *end)
            settled.append(entry.decode())
    await link.call(("XGROUP", "DELCONSUMER", stream, keyspace.GROUP, consumer))


@asynccontextmanager
async def registered(arena: Arena, name: str, stage: str = "") -> AsyncIterator[tuple[Link, str]]:
    """Register a process of a later release; its registration and its metrics have what nobody here knows."""
    link = Link(arena.server.url, name)
    stages = (stage,) if stage else ()
    process = ProcessInfo(consumer=name, role="worker" if stage else "ingress", stages=stages)
    (seconds, _), *_ = await link.call(("TIME",))
    await link.call(
        ("HSET", keyspace.up(name), "p", translated(process, 1), "m", b"\xc1 of a later release"),
        ("PEXPIRE", keyspace.up(name), 60_000),
        ("ZADD", keyspace.CONSUMERS, (int(seconds) + 60) * 1000, name),
    )
    try:
        yield link, name
    finally:
        with anyio.CancelScope(shield=True):
            await link.call(("UNLINK", keyspace.up(name), keyspace.replies(name)), ("ZREM", keyspace.CONSUMERS, name))
            await link.close()


async def forward(link: Link, values: Entry, number: int) -> tuple[Command, ...]:
    """Hand a job on to dispatch, as the other release's resolve stage does; it has no prompt managers."""
    job = msgspec.msgpack.decode(values[b"h"], type=Job)
    job = msgspec.structs.replace(job, stages_left=job.stages_left[1:])
    kind = b"r" if b"r" in values else b"b"
    size = values[b"s"]
    fields = ("h", translated(job, number), "s", size, kind, values[kind], "later", "x")
    counter = keyspace.held_bytes("dispatch", LIVE)
    return ("XADD", keyspace.jobs("dispatch", LIVE), "*", *fields), ("INCRBY", counter, size)


def dispatch(arena: Arena, client: httpx2.AsyncClient) -> Turn:
    """Return how the other release's dispatch stage answers."""

    async def answer(link: Link, values: Entry, number: int) -> tuple[Command, ...]:
        job = msgspec.msgpack.decode(values[b"h"], type=Job)
        body = values.get(b"b") or (await link.call(("GET", values[b"r"])))[0]
        response = await client.post(f"http://{arena.provider.address}{PATH}", content=body)
        reply = Reply(
            id=job.id, run=f"other{number}", content_type=response.headers["content-type"], facts=Facts(attempts=1)
        )
        stream = keyspace.replies(job.reply_to)
        if not job.stream:
            return (("XADD", stream, "*", "t", translated(reply, number), "b", response.content),)
        frame = [job.id, reply.run, 0, response.content, None, reply.content_type, *([NOVEL] if number % 2 else [])]
        reply = msgspec.structs.replace(reply, frames=1)
        frames = ("XADD", stream, "*", "f", encode([frame]), "later", "x")
        return frames, ("XADD", stream, "*", "t", translated(reply, number), "b", b"")

    return answer


async def other_release(arena: Arena, chance: random.Random) -> Verdict:
    """Let a worker of each stage and an ingress process be of another release."""
    async with (
        httpx2.AsyncClient(trust_env=False) as client,
        other_worker(arena, "resolve", forward) as resolved,
        other_worker(arena, "dispatch", dispatch(arena, client)) as dispatched,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(arena.load.burst, REQUESTS)
            answered = await other_ingress(arena)
        while len(resolved) < 4 or len(dispatched) < 4:
            await arena.load.burst(4)
    return Verdict(
        within=OWN_TIME,
        figures={"resolved": len(resolved), "dispatched": len(dispatched), "asked_by_other": answered},
    )


async def other_ingress(arena: Arena, count: int = 10) -> int:
    """Ask as an ingress process of another release does; return how many whole answers came."""
    name = "ingress-other-0-ffffff"
    async with registered(arena, name) as (link, consumer):
        (seconds, _), *_ = await link.call(("TIME",))
        now = int(seconds) * 1000
        stream = keyspace.jobs("resolve", LIVE)
        asked = set()
        await link.call(("XADD", keyspace.replies(name), "*", "o", ""), ("PEXPIRE", keyspace.replies(name), 60_000))
        for number in range(count):
            job = Job(
                id=new_id(),
                operation="chat.completions",
                stages_left=("resolve", "dispatch"),
                deadline=now + 30_000,
                admitted=now,
                reply_to=consumer,
                model="gpt-4",
            )
            body = msgspec.json.encode(request(f"other{number}-plain", "plain"))
            fields = ("h", translated(job, number), "s", len(body), "b", body)
            await link.call(("XADD", stream, "*", *fields), ("INCRBY", keyspace.held_bytes("resolve", LIVE), len(body)))
            asked.add(job.id)

        async def answered() -> bool:
            (entries,) = await link.call(("XRANGE", keyspace.replies(name), "-", "+"))
            replies = [decode_reply(fields[1]) for _, fields in entries if fields[0] == b"t"]
            return {reply.id for reply in replies if reply.status == 200 and reply.error is None} == asked

        await wait_until(answered, timeout=15)
    return count


scenario(
    "other-release",
    "F32",
    "a worker of each stage and an ingress whose messages have fields more, or fewer, than ours",
    seconds=7,
)(other_release)


async def other_configuration(arena: Arena, chance: random.Random) -> Verdict:
    """Start a dispatch worker that knows other models: what it cannot serve it leaves to the others."""
    text = (arena.directory / "config.yaml").read_text().replace("model_name: gpt-4", "model_name: gpt-of-another")
    (arena.directory / "other.yaml").write_text(text)
    done = anyio.Event()
    with _worker(arena, "dispatch", "other.yaml") as log:
        await wait_until(lambda: '"event":"ready"' in log.read_text(), timeout=20)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(arena.load.steady, 25.0, done, "plain")
            await wait_until(
                lambda: put_off(arena), timeout=20
            )  # a job came to the worker that does not know its model
            done.set()
    figures = {"put_off": put_off(arena), "of": len(arena.load.outcomes)}
    return Verdict(within=DEFERRED + OWN_TIME, figures=figures)


def put_off(arena: Arena) -> int:
    """Return how many requests were answered so late that some worker must have put them off."""
    return sum(outcome.seconds > 0.5 + arena.witness.takes for outcome in arena.load.outcomes)


@contextmanager
def _worker(arena: Arena, stage: str, config: str) -> Iterator[Path]:
    """Run a worker that the supervisor knows nothing of; yields its log."""
    command = [sys.executable, "-P", "-m", "pipeline", "worker", stage, "--config", config]
    log = arena.directory / "other.log"
    with log.open("wb") as output:
        variables = environment(REDIS_URL=arena.server.url)
        process = subprocess.Popen(command, cwd=arena.directory, env=variables, stdout=output, stderr=output)
        try:
            yield log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


scenario(
    "other-configuration",
    "F32",
    "one dispatch worker of 5 does not know the model that is asked for",
    layout=Layout(resolve=4, dispatch=4),
    seconds=12,
)(other_configuration)
