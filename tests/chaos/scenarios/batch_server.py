"""The server dies, forgets or is robbed while a batch runs: what was lost is fed again, and nothing else."""

from __future__ import annotations

import functools
import os
import random
import shutil
import time

import anyio
import msgspec
from chaos.arena import Arena
from chaos.batches import ENDS, LINES, Batch
from chaos.scenario import Verdict, scenario
from chaos.scenarios.batch_kills import KEPT, ONE, SECONDS, again, took_over
from chaos.scenarios.server import kill_server, logs, start_server, stop_server
from fakes.waiting import wait_until

from pipeline.job import BATCH
from pipeline.settings import TransportSettings
from pipeline.transport import keyspace
from pipeline.transport.connection import Command

ANSWERS = "lines"
"""Stands for the stream of answers, whose name the batch knows."""

STREAMS = [keyspace.jobs(stage, BATCH) for stage in ("resolve", "dispatch")]


async def robbed(commands: tuple[Command, ...], arena: Arena, chance: random.Random) -> Verdict:
    """Take something out of the server half-way."""
    async with arena.batch() as batch:
        await batch.reaches(chance.uniform(0.2, 0.7))
        await arena.redis(*(tuple(_named(word, batch) for word in command) for command in commands))
        robbed_at = time.monotonic()
    return Verdict(again=again(arena), kept=KEPT, figures=await took_over(arena, batch, robbed_at))


def _named(word: str | bytes | float, batch: Batch) -> str | bytes | float:
    return keyspace.lines(batch.hex) if word == ANSWERS else word


for _name, _commands in {
    "flushed": (("FLUSHALL",),),
    "answers-deleted": (("DEL", ANSWERS),),
    "resolve-stream-deleted": (("DEL", STREAMS[0]),),
    "dispatch-stream-deleted": (("DEL", STREAMS[1]),),
    "groups-destroyed": tuple(("XGROUP", "DESTROY", stream, keyspace.GROUP) for stream in STREAMS),
    "scripts-flushed": (("SCRIPT", "FLUSH"),),
}.items():
    scenario(
        f"batch-server-{_name}",
        "F11 M3",
        " and ".join(" ".join(map(str, command)) for command in _commands) + f", in a batch of {LINES:,} lines",
        layout=ONE,
        seconds=SECONDS,
    )(functools.partial(robbed, _commands))


async def restarted(arena: Arena, chance: random.Random) -> Verdict:
    """Restart the server in good order, twice."""
    async with arena.batch() as batch:
        for share in (0.2, 0.5):
            await batch.reaches(share + chance.uniform(0, 0.2))
            await stop_server(arena)
            await anyio.sleep(chance.uniform(0, 2))
            await start_server(arena)
            back = time.monotonic()
    return Verdict(again=again(arena, 2), kept=KEPT, figures=await took_over(arena, batch, back))


scenario("batch-server-restarted", "F8 M3", "SIGTERM of the server, twice in a batch", layout=ONE, seconds=SECONDS)(
    restarted
)


async def killed(forgets: str, arena: Arena, chance: random.Random) -> Verdict:
    """Kill the server; it comes back with all it had, without the last second of it, or empty."""
    async with arena.batch() as batch:
        await batch.reaches(chance.uniform(0.2, 0.5))
        sizes, since = {file: file.stat().st_size for file in logs(arena)}, time.monotonic()
        if forgets == "the last second":
            await anyio.sleep(1)
        await kill_server(arena)
        if forgets == "the last second":
            for file, size in sizes.items():
                os.truncate(file, size)
        elif forgets == "everything" and sizes:
            shutil.rmtree(next(iter(sizes)).parent)
        forgotten = arena.witness.begun(since - arena.witness.takes) if forgets == "the last second" else 0
        await anyio.sleep(chance.uniform(0, 2))
        await start_server(arena)
        back = time.monotonic()
        await wait_until(lambda: batch.ended, timeout=ENDS)
    # What the log forgot to be answered is run again, though its answers were collected.
    return Verdict(again=again(arena) + forgotten, kept=KEPT, figures=await took_over(arena, batch, back))


for _persistence, _forgets in {"always": "nothing", "everysec": "the last second", "no": "everything"}.items():
    scenario(
        f"batch-server-killed-{_persistence}",
        "F9 M3",
        f"kill -9 of the server in a batch of {LINES:,} lines, log {_persistence}: it forgets {_forgets}",
        layout=msgspec.structs.replace(ONE, server=TransportSettings(persistence=_persistence)),
        seconds=SECONDS,
    )(functools.partial(killed, _forgets))
