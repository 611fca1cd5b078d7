"""A large batch, and a fault of any kind every few seconds until it is over."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections import Counter

import anyio
import msgspec
from chaos.arena import Arena
from chaos.batches import Batch
from chaos.scenario import Verdict, scenario
from chaos.scenarios.batch_kills import KEPT, TWO, again
from chaos.scenarios.server import GONE, kill_server, start_server
from fakes.waiting import wait_until

PARTS = ("ingress", "resolve", "dispatch", "feed")
FAULTS = (*[f"kill {part}" for part in PARTS], *[f"cut {part}" for part in PARTS], "cut provider", "kill server")
FLUSHED_AT = 0.5
"""Share of the lines that is done when everything in Redis is lost, once."""

UNTIL = 0.95
"""Share of the lines after which nothing happens: answers that Redis keeps, away at the very end, live for a day."""

SLOWEST = 60.0
"""Lines a second, at least, with all those faults: a third of what a busy machine does."""

MIXED = msgspec.structs.replace(TWO, dispatch=3)


async def mixed(lines: int, arena: Arena, chance: random.Random) -> Verdict:
    """Do something every two to four seconds."""
    done: Counter[str] = Counter()
    async with arena.batch(lines, limit=lines / SLOWEST + 60) as batch:
        while batch.done < UNTIL * lines:
            if batch.done >= FLUSHED_AT * lines and not done["flush"]:
                await arena.redis(("FLUSHALL",))
                done["flush"] += 1
            else:
                fault = chance.choice(FAULTS)
                await _do(fault, arena, chance)
                done[fault] += 1
            await _pause(batch, chance.uniform(2, 4))
    assert done["flush"], "it was over too soon"
    faults = sum(done.values())
    took = batch.ended - batch.began
    return Verdict(
        codes=GONE,
        again=again(arena, faults),
        parts=done["kill feed"] + done["kill ingress"],
        kept=2 * KEPT,
        figures={"faults": faults, "owners": await arena.owners(batch), "lines_s": round(lines / took), **done},
    )


async def _do(fault: str, arena: Arena, chance: random.Random) -> None:
    verb, _, part = fault.partition(" ")
    if fault == "kill server":
        await kill_server(arena)
        await anyio.sleep(chance.uniform(0, 1))
        await start_server(arena)
    elif fault == "cut provider":
        arena.provider.cut("")
    elif verb == "cut":
        arena.wire.cut(part)
    elif pids := arena.pids(part):
        os.kill(chance.choice(pids), signal.SIGKILL)


async def _pause(batch: Batch, seconds: float) -> None:
    """Wait, and no longer than the batch takes."""
    limit = time.monotonic() + seconds
    await wait_until(lambda: batch.ended or time.monotonic() > limit, timeout=seconds + 1, every=0.05)


for _lines, _seconds in ((5_000, 15), (50_000, 300)):
    scenario(
        f"batch-mixed-{_lines}",
        "F3 F4 F11 F14 M3",
        f"in a batch of {_lines:,} lines, every 2 to 4 s: kill -9 of any process or the server, or every connection of "
        "a part reset; and once FLUSHALL",
        layout=MIXED,
        seconds=_seconds,
        fresh=True,
    )(functools.partial(mixed, _lines))
