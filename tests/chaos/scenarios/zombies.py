"""A process is frozen for three leases and goes on: others have finished its jobs, and it notices."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from chaos.arena import Arena
from chaos.load import Outcome, percentile
from chaos.scenario import Verdict, scenario
from chaos.witness import now
from fakes.waiting import wait_until

from pipeline.transport.registry import BEAT, GONE_AFTER

FROZEN_LEASES = 3
REQUESTS = 16
WAKES = 0.5
"""Seconds a busy machine takes to run a thawed process again, and to notice what it does."""

OWN_TIME = 4.0
"""Seconds the requests take themselves, on a busy machine."""

GIVEN_UP = GONE_AFTER + 3 * BEAT
"""Seconds after which workers have dropped what a frozen ingress waits for."""

WATCHED = 2.0
"""Seconds after a thaw during which the owners of pending deliveries are looked at."""


@asynccontextmanager
async def frozen(arena: Arena, pid: int, seconds: float = 0.0) -> AsyncIterator[None]:
    """Freeze a process for three leases or `seconds`, whatever happens meanwhile; it goes on afterwards."""
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        yield
        await anyio.sleep(began + (seconds or FROZEN_LEASES * arena.layout.lease) - time.monotonic())
    finally:
        os.kill(pid, signal.SIGCONT)


async def flips(arena: Arena, stage: str, pid: int, entries: set[str], seconds: float) -> list[str]:
    """Watch `entries` for a while; return those that the thawed process owned at any time."""
    limit, flipped = time.monotonic() + seconds, set()
    while time.monotonic() < limit:
        flipped |= entries & await held_by(arena, stage, pid)
        await anyio.sleep(0.01)
    return sorted(flipped)


async def held_by(arena: Arena, stage: str, pid: int) -> set[str]:
    """Return the pending entries that a process owns."""
    return {entry for entry, held in (await arena.pending(stage)).items() if held.pid == pid}


async def holder(arena: Arena, stage: str) -> int:
    """Return the process of a stage that holds most."""
    held = Counter(held.pid for held in (await arena.pending(stage)).values())
    return max(arena.pids(stage), key=lambda pid: held[pid])


async def _freeze_holder(arena: Arena, stage: str, ready: Callable[[], Awaitable[bool]]) -> tuple[int, set[str]]:
    """Wait until the jobs are where they shall be; return a process that holds some, and their entries."""
    await wait_until(ready, timeout=15)
    pid = await holder(arena, stage)
    os.kill(pid, signal.SIGSTOP)  # first, and then look: what it holds now it holds until it goes on
    return pid, await held_by(arena, stage, pid)


async def freeze_dispatch(kind: str, takes: float, arena: Arena, chance: random.Random) -> Verdict:
    """Freeze a dispatch worker with calls in flight, which take `takes` leases; see what it does when it goes on."""
    arena.witness.takes = takes * arena.layout.lease
    began = now()

    async def all_called() -> bool:
        """A stream may be run again until its first bytes are out, so these are waited for."""
        begun = [outcome for outcome in arena.load.outcomes if outcome.text or kind != "stream"]
        return arena.witness.begun(began) >= REQUESTS <= len(begun)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, REQUESTS, kind)
        pid, entries = await _freeze_holder(arena, "dispatch", all_called)
        assert entries, "nothing was in flight in the frozen process"
        async with frozen(arena, pid):
            pass
        thawed = now()
        flipped = await flips(arena, "dispatch", pid, entries, WATCHED)
    assert not flipped, f"pending deliveries came back to the frozen worker: {flipped}"
    stale, lost = arena.events("stale settle", stage="dispatch"), arena.events("lease lost", stage="dispatch")
    left = [time - thawed for time in arena.witness.left if 0 < time - thawed < 1 + WAKES]
    if takes < FROZEN_LEASES:
        assert stale, "the answers that came while it was frozen were not settled as stale"
    else:
        assert lost == len(entries), f"{lost} of {len(entries)} leases were found lost"
        assert len(left) == len(entries), f"{len(left)} of {len(entries)} provider calls were closed within a second"
    return Verdict(
        codes=frozenset({"worker_lost"}) if kind == "stream" else frozenset(),
        again=0 if kind == "stream" else len(entries),
        within=2 * arena.witness.takes + arena.layout.lease + 2 + OWN_TIME,
        figures={"frozen_with": len(entries), "stale": stale, "lost": lost, "closed_s": round(max(left, default=0), 2)},
    )


for _kind in ("whole", "stream"):
    scenario(
        f"freeze-dispatch-{_kind}-answered",
        "F5 M3",
        f"SIGSTOP of a dispatch worker for 3 leases with {_kind} calls in flight, whose answers come meanwhile",
        seconds=9,
    )(functools.partial(freeze_dispatch, _kind, 1.5))
    scenario(
        f"freeze-dispatch-{_kind}-under-way",
        "F5 M3",
        f"SIGSTOP of a dispatch worker for 3 leases with {_kind} calls in flight, still under way when it goes on",
        seconds=12,
    )(functools.partial(freeze_dispatch, _kind, 6.0))


async def freeze_resolve(kind: str, arena: Arena, chance: random.Random) -> Verdict:
    """Freeze a resolve worker inside a hook: the hook runs again elsewhere, its late outcome goes nowhere."""
    fired = arena.arm("resolve.mid_hook", "sleep(500)")

    async def in_hook() -> bool:
        return not fired.exists()

    outcome: list[Outcome] = []

    async def ask() -> None:
        outcome.append(await arena.load.one(kind))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        pid, entries = await _freeze_holder(arena, "resolve", in_hook)
        assert len(entries) == 1, f"{len(entries)} jobs in the hook"
        async with frozen(arena, pid):
            await wait_until(lambda: outcome, timeout=FROZEN_LEASES * arena.layout.lease + OWN_TIME)
            answered = outcome[0].seconds
            await arena.load.burst(REQUESTS)  # with a worker less
        flipped = await flips(arena, "resolve", pid, entries, WATCHED)
    assert not flipped, f"a pending delivery came back to the frozen worker: {flipped}"
    stale, lost = arena.events("stale settle", stage="resolve"), arena.events("lease lost", stage="resolve")
    assert stale + lost >= 1, "the frozen worker never heard that its lease was lost"
    return Verdict(
        within=arena.layout.lease + 2 + OWN_TIME,
        figures={"answered_s": round(answered, 1), "stale": stale, "lost": lost},
    )


for _kind in ("whole", "stream"):
    scenario(
        f"freeze-resolve-{_kind}",
        "F5",
        f"SIGSTOP of a resolve worker for 3 leases inside the hook of a {_kind} request",
        seconds=9,
    )(functools.partial(freeze_resolve, _kind))


async def freeze_idle(stage: str, arena: Arena, chance: random.Random) -> Verdict:
    """Freeze a worker while it waits for jobs: what the server hands it meanwhile, others take over."""
    pid = arena.signal(stage, signal.SIGSTOP)
    async with frozen(arena, pid):
        outcomes = await arena.load.burst(REQUESTS, "whole")
    woken = now()
    await anyio.sleep(WATCHED)
    assert not arena.witness.begun(woken), "the thawed worker called the provider for jobs that others had answered"
    return Verdict(
        within=arena.layout.lease + 2 + OWN_TIME,
        figures={
            "claimed": arena.events("claimed", stage=stage),
            "p50_s": round(percentile([outcome.seconds for outcome in outcomes], 0.5), 2),
        },
    )


for _stage in ("resolve", "dispatch"):
    scenario(
        f"freeze-idle-{_stage}",
        "F5",
        f"SIGSTOP of a {_stage} worker for 3 leases while it waits for jobs, which come then",
        seconds=7,
    )(functools.partial(freeze_idle, _stage))


async def freeze_ingress(arena: Arena, chance: random.Random) -> Verdict:
    """Freeze the ingress while its requests are under way: they are answered late, and once."""
    began = now()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, REQUESTS)
        await wait_until(lambda: arena.witness.begun(began) >= REQUESTS // 4, timeout=10)
        async with frozen(arena, arena.signal("ingress", signal.SIGSTOP)):
            tasks.start_soon(arena.load.burst, REQUESTS)  # their connections wait in the kernel
    return Verdict(within=FROZEN_LEASES * arena.layout.lease + OWN_TIME)


scenario("freeze-ingress", "F5", "SIGSTOP of the ingress for 3 leases, requests under way", seconds=6)(freeze_ingress)


async def freeze_ingress_for_long(arena: Arena, chance: random.Random) -> Verdict:
    """Freeze the ingress until its requests are given up: their clients hear so as soon as it goes on."""
    arena.witness.takes = 2 * GIVEN_UP
    began = now()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, REQUESTS)
        await wait_until(lambda: arena.witness.begun(began) >= REQUESTS, timeout=10)
        async with frozen(arena, arena.signal("ingress", signal.SIGSTOP), GIVEN_UP):
            await wait_until(lambda: len(arena.witness.left) == REQUESTS, timeout=GIVEN_UP)
        thawed, arena.witness.takes = now(), 0.2
    heard = max(outcome.at for outcome in arena.load.outcomes) - thawed
    return Verdict(
        codes=frozenset({"redis_unavailable"}),
        within=GIVEN_UP + OWN_TIME,
        figures={"heard_s": round(heard, 2)},
    )


scenario(
    "freeze-ingress-for-long",
    "F5",
    f"SIGSTOP of the ingress for {GIVEN_UP:.0f} s, requests under way, whose calls end meanwhile",
    seconds=GIVEN_UP + 4,
)(freeze_ingress_for_long)
