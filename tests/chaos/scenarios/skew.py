"""Clocks of the gateway's processes are wrong, each in its own way, and jump: only the server's clock counts."""

from __future__ import annotations

import json
import random
import signal
import time

import anyio
import msgspec
from chaos.arena import Arena, Layout
from chaos.scenario import Verdict, scenario
from chaos.scenarios.batch_kills import KEPT, ONE
from fakes.waiting import wait_until

from pipeline.errors import DeadlineExceeded

HOUR = 3600
ALMOST = 3000
"""Seconds: what has lain about for an hour, by the clock of a machine, is swept."""

OWN_TIME = 4.0
"""Seconds requests take themselves, on a busy machine."""

RATE = 15.0
STEP = 1.5
DEADLINE = 1.5
LATE = 1.5
"""Seconds by which a deadline may be noticed late there."""

_SITE = """
import json, pathlib, sys, time

_file = pathlib.Path(__file__).with_name("clocks")
_part = next((part for part in ("ingress", "resolve", "dispatch", "feed") if part in sys.orig_argv), "")
_time, _time_ns = time.time, time.time_ns

def _wrong():
    try:
        return json.loads(_file.read_text()).get(_part, 0)
    except (OSError, ValueError):
        return 0

time.time = lambda: _time() + _wrong()
time.time_ns = lambda: _time_ns() + _wrong() * 10**9
"""
"""Makes the clock of each part of the gateway wrong by as many seconds as the file `clocks` says, from then on."""


def set_clocks(arena: Arena, **wrong: int) -> None:
    """Change what time it is for the parts of the gateway; the server's clock is right."""
    (arena.directory / "site" / "new").write_text(json.dumps(wrong))
    (arena.directory / "site" / "new").rename(arena.directory / "site" / "clocks")


async def clock_skew(arena: Arena, chance: random.Random) -> Verdict:
    """Let clocks be an hour off, and jump, under load; a process that starts with a wrong one is among them."""
    done = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.steady, RATE, done)
        set_clocks(arena, ingress=HOUR, resolve=-HOUR)
        await anyio.sleep(STEP)
        set_clocks(arena, ingress=HOUR, resolve=-HOUR, dispatch=HOUR)
        await arena.ended(arena.signal("dispatch", signal.SIGTERM))
        await wait_until(arena.complete, timeout=20, every=0.1)
        await anyio.sleep(STEP)
        set_clocks(arena, ingress=-HOUR, resolve=HOUR, dispatch=-HOUR)
        await anyio.sleep(STEP)
        done.set()
    claimed = arena.events("claimed", number=2)  # with number 1 it was handed back
    assert not claimed, f"{claimed} leases seemed to have run out"
    assert not arena.load.codes, f"requests failed: {dict(arena.load.codes)}"
    arena.witness.takes = 5.0
    late = [outcome.seconds for outcome in await arena.load.burst(6, "whole", timeout=DEADLINE)]
    arena.witness.takes = 0.2
    assert DEADLINE - 0.1 < min(late) <= max(late) < DEADLINE + LATE, f"a deadline of {DEADLINE} s came after {late}"
    return Verdict(
        codes=frozenset({DeadlineExceeded.code}), within=OWN_TIME, figures={"deadline_s": round(max(late), 2)}
    )


async def batch_clock_skew(arena: Arena, chance: random.Random) -> Verdict:
    """Make a batch where it is later than where it is fed, and the other way round half-way, with another owner."""
    set_clocks(arena, ingress=ALMOST, feed=-ALMOST, resolve=-HOUR, dispatch=HOUR)
    await arena.ended(arena.signal("feed", signal.SIGTERM))
    async with arena.batch() as batch:
        await batch.reaches(chance.uniform(0.2, 0.5))
        set_clocks(arena, ingress=-ALMOST, feed=ALMOST, resolve=HOUR, dispatch=-HOUR)
        await arena.ended(arena.signal("feed", signal.SIGTERM))
    set_clocks(arena)
    assert abs(batch.now["completed_at"] - time.time()) < HOUR / 2, "it was over by another clock than the server's"
    return Verdict(kept=KEPT)


scenario(
    "batch-clock-skew",
    "F18",
    "clocks of ingress and feed 100 minutes apart in a batch of 2,000 lines, the other way round half-way",
    layout=msgspec.structs.replace(ONE, site=_SITE),
    seconds=15,
)(batch_clock_skew)


scenario(
    "clock-skew",
    "F18",
    "clocks of ingress, resolve and dispatch an hour apart, and jumping forth and back under load",
    layout=Layout(site=_SITE),
    seconds=15,
)(clock_skew)
