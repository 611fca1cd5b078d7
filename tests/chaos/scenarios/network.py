"""Each way of the gateway is disturbed: refused, reset, silent, slow, half open, or cut just before an answer."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from chaos.arena import MASTER_KEY, Arena, elapsed
from chaos.load import loading
from chaos.scenario import Verdict, scenario
from chaos.scenarios.server import BACK, OWN_TIME, served_again, under_load
from chaos.wire import Edge, Wire
from fakes.waiting import wait_until

from pipeline.transport.connection import ADMIT, ANSWER_TIMEOUT, WRITE

FAULTY = 2.0
"""Seconds a fault lasts."""

SILENT = 15.0
"""Seconds in which a black hole is to be noticed."""

FAULTS = {
    "refused": {"refuse": True},
    "silent": {"black_hole": True},
    "late-200ms": {"latency": 0.2},
    "64kB-s": {"rate": 64 * 1024},
}
REDIS = ("ingress", "resolve", "dispatch")
PROVIDER = ""
PROVIDER_LOST = frozenset({"upstream_unavailable", "upstream_cut"})


def edge(arena: Arena, way: str) -> Edge:
    """Return the edge of a way: of a part to Redis, or of dispatch to the provider."""
    return arena.provider.edges[""] if way == PROVIDER else arena.wire.edges[way]


@contextmanager
def disturbed(arena: Arena, way: str, fault: str) -> Iterator[None]:
    """Disturb a way for a while; what passes slowly goes on, what does not pass is cut."""
    if fault == "refused":
        (arena.provider if way == PROVIDER else arena.wire).cut(way)
    for name, value in FAULTS[fault].items():
        setattr(edge(arena, way), name, value)
    try:
        yield
    finally:
        (arena.provider if way == PROVIDER else arena.wire).heal()


async def disturb(way: str, fault: str, arena: Arena, chance: random.Random) -> Verdict:
    """Disturb a way under load: nobody hangs, and all is well soon after it."""
    arena.witness.takes = 0.4
    slow = fault in ("late-200ms", "64kB-s")
    async with under_load(arena, 10):
        await anyio.sleep(0.7)
        began = time.monotonic()
        with disturbed(arena, way, fault):
            await anyio.sleep(FAULTY)
        healed = time.monotonic()
        again = await served_again(arena, healed)
    codes = frozenset({"redis_unavailable", "worker_lost"}) if way != PROVIDER else PROVIDER_LOST
    struck = [o for o in arena.load.outcomes if began - OWN_TIME <= o.began <= healed + BACK]
    # Cut off from Redis, a worker holds calls that others take over when their leases run out.
    again_most = len(struck) if way == "dispatch" and not slow else 0
    return Verdict(
        codes=frozenset() if slow else codes,
        again=again_most,
        within=FAULTY + ANSWER_TIMEOUT + BACK + 2 * OWN_TIME,
        figures={"recovered_s": again},
    )


for _way in (*REDIS, PROVIDER):
    for _fault in FAULTS:
        _name = f"{_way or 'dispatch'}-{'provider' if _way == PROVIDER else 'redis'}"
        scenario(
            f"network-{_name}-{_fault}", "F14", f"{_name.replace('-', ' to ')}: {_fault} for {FAULTY:.0f} s", seconds=8
        )(functools.partial(disturb, _way, _fault))


async def reset(way: str, arena: Arena, chance: random.Random) -> Verdict:
    """Reset all connections of a way, ten times under load: nobody notices who did not have to."""
    async with under_load(arena, 20):
        for _ in range(10):
            await anyio.sleep(chance.uniform(0.1, 0.4))
            (arena.provider if way == PROVIDER else arena.wire).cut(way)
        again = await served_again(arena, time.monotonic())
    refused = frozenset() if way != PROVIDER else PROVIDER_LOST
    return Verdict(codes=refused, within=BACK + 2 * OWN_TIME, figures={"recovered_s": again})


for _way in (*REDIS, PROVIDER):
    _name = f"{_way or 'dispatch'}-{'provider' if _way == PROVIDER else 'redis'}"
    scenario(f"network-{_name}-reset", "F14", f"{_name.replace('-', ' to ')}: ten resets under load", seconds=8)(
        functools.partial(reset, _way)
    )


def complains(arena: Arena, part: str) -> bool:
    """Whether every process of a part has said that Redis is out of reach."""
    lines = [line for line in arena.log.splitlines() if "cannot be reached" in line]
    return len({line.split()[0] for line in lines if line.startswith(part)}) == len(arena.pids(part))


async def silence(part: str, arena: Arena, chance: random.Random) -> Verdict:
    """Let nothing of a part through to Redis, and nobody know of it, until it has noticed."""
    began = time.monotonic()
    arena.wire.edges[part].black_hole = True
    await wait_until(lambda: complains(arena, part), timeout=SILENT)
    noticed = elapsed(began)
    if part == "ingress":
        outcome = await arena.load.one("plain")
        assert outcome.code == "redis_unavailable", outcome
        assert outcome.seconds < ANSWER_TIMEOUT + OWN_TIME, outcome
    arena.wire.heal()
    again = await served_again(arena, time.monotonic())
    return Verdict(
        codes=frozenset({"redis_unavailable"}), figures={"noticed_s": round(noticed, 1), "recovered_s": again}
    )


for _part in REDIS:
    scenario(f"network-{_part}-redis-black-hole", "F14 M5", f"{_part} to redis: nothing passes", seconds=12)(
        functools.partial(silence, _part)
    )


async def half_open(part: str, arena: Arena, chance: random.Random) -> Verdict:
    """Restart the server, and let a part believe that its connections still stand."""
    arena.wire.edges[part].half_open = True
    await arena.redis(("CLIENT", "KILL", "TYPE", "normal"))
    began = time.monotonic()
    await wait_until(lambda: complains(arena, part), timeout=SILENT)
    noticed = elapsed(began)
    arena.wire.edges[part].half_open = False  # what is new is whole: the part comes back by itself
    again = await served_again(arena, time.monotonic())
    return Verdict(
        codes=frozenset({"redis_unavailable"}), figures={"noticed_s": round(noticed, 1), "recovered_s": again}
    )


for _part in REDIS:
    scenario(f"network-{_part}-redis-half-open", "F14", f"{_part} to redis: closed by the server alone", seconds=9)(
        functools.partial(half_open, _part)
    )


async def unanswered(part: str, sha: str, arena: Arena, chance: random.Random) -> Verdict:
    """Deliver what a part writes and cut its connection before the answer, twenty times: all is done once."""
    way = arena.wire.edges[part]
    lost = way.lost
    for _ in range(20):
        async with anyio.create_task_group() as tasks:
            way.lose_answer_to = sha.encode()
            tasks.start_soon(arena.load.burst, 3)
    assert way.lost - lost >= 15, way.lost
    return Verdict(within=2 * OWN_TIME, figures={"cut": way.lost - lost})


for _part, _script in (("ingress", ADMIT), ("resolve", WRITE), ("dispatch", WRITE)):
    scenario(
        f"network-{_part}-redis-unanswered", "F14 M2", f"{_script.name} of {_part} delivered, its answer cut", seconds=9
    )(functools.partial(unanswered, _part, _script.sha))


async def clients(arena: Arena, chance: random.Random) -> Verdict:
    """Disturb the clients' own way: slow ones are served, and those that are cut cost nobody anything."""
    with Wire(arena.gateway.url.removeprefix("http://")).running() as wire:
        edge = wire.edges[""]
        async with loading(f"http://{wire.address}", MASTER_KEY, chance) as load:
            edge.latency = 0.2
            assert all(outcome.whole for outcome in await load.burst(5)), load.outcomes
            edge.latency, edge.rate = 0.0, 64 * 1024
            assert all(outcome.whole for outcome in await load.burst(5)), load.outcomes
            edge.rate = 0.0
            arena.witness.takes = 5.0
            before = len(arena.witness.left)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load.burst, 10)
                await wait_until(lambda: arena.witness.begun(load.outcomes[-1].began) >= 10, timeout=10)
                cut = time.monotonic()
                wire.cut("")
                await wait_until(lambda: len(arena.witness.left) - before >= 10, timeout=5)
            freed = elapsed(cut)
    arena.witness.takes = 0.2
    assert freed < 1 + OWN_TIME, f"provider calls ended {freed:.1f} s after their clients were cut"
    return Verdict(figures={"calls_ended_s": round(freed, 2)})


scenario(
    "network-clients", "F14 F24", "clients to ingress: late, slow, then reset in the middle of answers", seconds=9
)(clients)
