"""A process dies at a certain step: its jobs are taken over, and answered once."""

from __future__ import annotations

import functools
import random
import signal
import time
from pathlib import Path

import anyio
from chaos.arena import Arena, elapsed
from chaos.load import Outcome
from chaos.scenario import Verdict, scenario
from fakes.waiting import wait_until

from pipeline.failpoints import NAMES

REQUESTS = 40
LATE = 0.5
"""Seconds by which a busy provider may notice a call after it was made."""

OWN_TIME = 4.0
"""Seconds the requests take themselves, on a busy machine."""

RESOLVE = ("after_read", "before_hook", "mid_hook", "after_resolve", "before_settle", "after_settle_sent")
DISPATCH = ("after_read", "before_provider", "mid_provider", "after_response", "before_settle", "after_settle_sent")
CALLED_TWICE = frozenset({"dispatch.mid_provider", "dispatch.after_response", "dispatch.before_settle"})
"""Points at which the provider was asked and the answer is not written yet."""


async def kill_worker(point: str, arena: Arena, chance: random.Random) -> Verdict:
    """Kill the process that reaches `point`: first with one request, then with forty under way."""
    stage = point.partition(".")[0]
    alone = await _killed_alone(point, arena)
    before = arena.pids(stage)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, REQUESTS // 2)
        fired = arena.arm(point)
        tasks.start_soon(arena.load.burst, REQUESTS // 2)
        killed = await _fired(fired)
    recovered = elapsed(killed)
    await wait_until(lambda: len(set(arena.pids(stage)) - set(before)) == 1, timeout=15)
    return Verdict(
        codes=frozenset({"worker_lost"}) if stage == "dispatch" else frozenset(),
        again=(point in CALLED_TWICE) + in_flight_at(arena, killed),
        within=arena.layout.lease + 2 + OWN_TIME,
        figures={
            "alone_s": round(alone.seconds, 1),
            "recovered_s": round(recovered, 1),
            "claimed": arena.events("claimed", stage=stage),
        },
    )


async def _killed_alone(point: str, arena: Arena) -> Outcome:
    """Kill the process that has one request, and see what that one became."""
    fired = arena.arm(point)
    outcome = await arena.load.one("whole")
    await _fired(fired)  # after a settlement the answer may be here before the process is gone
    assert outcome.whole, outcome
    calls = arena.witness.calls[outcome.name]
    assert calls == 1 + (point in CALLED_TWICE), f"{point}: {calls} provider calls for {outcome.name}"
    limit = arena.layout.lease + 2 + 1
    assert outcome.seconds < limit, f"{outcome}: redelivered after more than the lease and 2 s"
    await arena.restore()
    return outcome


async def _fired(file: Path) -> float:
    """Wait until a failpoint has fired; return when."""
    await wait_until(lambda: not file.exists(), timeout=15)
    return time.monotonic()


def in_flight_at(arena: Arena, killed: float) -> int:
    """Return how many calls were made again whose first one was under way when the process died: those may be."""
    times: dict[str, list[float]] = {}
    for received in arena.witness.received:
        content = received.json["messages"][-1]["content"]
        times.setdefault(content.partition(" ")[0], []).append(received.time)
    begun = killed - arena.witness.takes - LATE
    return sum(len(calls) - 1 for calls in times.values() if len(calls) > 1 and begun <= calls[0] <= killed + LATE)


for _stage, _points in (("resolve", RESOLVE), ("dispatch", DISPATCH)):
    for _point in _points:
        _name = f"{_stage}.{_point}"
        scenario(
            f"kill-{_name}", "F1", f"kill -9 at {_name}: alone, then with {REQUESTS} requests under way", seconds=7
        )(functools.partial(kill_worker, _name))


async def kill_ingress(point: str, arena: Arena, chance: random.Random) -> Verdict:
    """Kill the ingress at `point`: its clients lose their connections, and nothing else happens."""
    before, workers = arena.pids("ingress"), arena.pids("resolve") + arena.pids("dispatch")
    async with anyio.create_task_group() as tasks:
        fired = arena.arm(point) if point in NAMES else None
        tasks.start_soon(arena.load.burst, REQUESTS, "stream" if point == "ingress.mid_stream" else "")
        if fired is not None:
            await _fired(fired)
        else:
            await wait_until(lambda: arena.witness.begun(0) >= REQUESTS // 4, timeout=10)
            arena.signal("ingress", signal.SIGKILL)
    await wait_until(lambda: arena.pids("ingress") not in (before, []), timeout=15)
    assert arena.pids("resolve") + arena.pids("dispatch") == workers, "a worker went with it"
    return Verdict(cut=True, figures={"clients_cut": arena.load.codes["cut"]})


for _point in ("ingress.before_admit", "ingress.after_admit", "ingress.waiting", "ingress.mid_stream"):
    scenario(f"kill-{_point}", "F2", f"kill -9 of the ingress at {_point}, {REQUESTS} requests under way", seconds=7)(
        functools.partial(kill_ingress, _point)
    )
