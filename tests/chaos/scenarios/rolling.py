"""Process after process is killed at random, or replaced as an operator does it, while requests go on coming."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from chaos.arena import Arena, Layout, elapsed
from chaos.load import percentile
from chaos.scenario import Verdict, scenario
from chaos.scenarios.kills import in_flight_at
from chaos.scenarios.zombies import WAKES, held_by
from fakes.waiting import wait_until

RATE = 25.0
"""Requests a second, of all kinds."""

OWN_TIME = 5.0
"""Seconds requests take themselves, on a machine that starts processes all the time."""

FLEET = Layout(resolve=4, dispatch=4)
KILL_EVERY = 2.0
CROSSED = 3
"""Requests that clients on a busy machine may send on a kept connection just when it is closed: HTTP has no remedy."""

BOOT = 10.0
"""Seconds a process may take to start on a busy machine."""

HELD_UP_MS = 1500
CLAIMED_WITHIN = 1.0
GRACE = 10.0
"""As the arena configures it."""


@asynccontextmanager
async def traffic(arena: Arena, rate: float = RATE) -> AsyncIterator[None]:
    """Send requests all the time; on the way out wait until they have ended."""
    done = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.steady, rate, done)
        await wait_until(lambda: sum(outcome.whole for outcome in arena.load.outcomes) >= rate / 2, timeout=15)
        yield
        done.set()


def kill_one(arena: Arena, chance: random.Random) -> str:
    """Kill any worker and return its part."""
    pid, part = chance.choice([(p, part) for p, part in arena.processes().items() if part != "ingress"])
    os.kill(pid, signal.SIGKILL)
    return part


async def random_kills(arena: Arena, chance: random.Random) -> Verdict:
    """Kill a worker of any kind every two seconds, five times."""
    killed: list[tuple[str, float]] = []
    async with traffic(arena):
        for _ in range(5):
            killed.append((kill_one(arena, chance), time.monotonic()))
            await anyio.sleep(KILL_EVERY)
    return Verdict(
        codes=frozenset({"worker_lost"}),
        again=sum(in_flight_at(arena, at) for part, at in killed if part == "dispatch"),
        within=2 * (arena.layout.lease + 2) + OWN_TIME,
        figures={
            "kills": len(killed),
            "of_dispatch": sum(part == "dispatch" for part, _ in killed),
            "claimed": arena.events("claimed"),
        },
    )


scenario(
    "rolling-kills",
    "F4",
    f"kill -9 of any of 8 workers every {KILL_EVERY:.0f} s, {RATE:.0f} requests a second",
    layout=FLEET,
    seconds=15,
)(random_kills)


CLIENTS = 40
"""Requests at a time, one after the other from each client."""

CLEAN_SECONDS = 40.0
KILL_SECONDS = 300.0
LONG_REQUESTS = 20_000
KEPT_SHARE = 0.7
TAKES = 0.35
"""Seconds of a provider call in the long form: 20,000 requests last for about five minutes then."""

KINDS = ("whole", "stream", "plain")
"""Of the long form: without large bodies, of which the witness would keep a gigabyte."""


async def five_minutes_of_kills(arena: Arena, chance: random.Random) -> Verdict:
    """Measure what the gateway does when nothing is wrong, and then what it does while its workers die."""
    arena.witness.takes = TAKES
    async with clients(arena, chance):
        clean = await throughput(arena, CLEAN_SECONDS)
    killed: list[tuple[str, float]] = []
    began, before = time.monotonic(), len(arena.load.outcomes)
    async with clients(arena, chance):
        while elapsed(began) < KILL_SECONDS or len(arena.load.outcomes) - before < LONG_REQUESTS:
            killed.append((kill_one(arena, chance), time.monotonic()))
            await anyio.sleep(KILL_EVERY)
        took, answered = elapsed(began), [o for o in arena.load.outcomes[before:] if o.whole]
    share = len(answered) / took / clean
    assert share >= KEPT_SHARE, f"{share:.0%} of the clean throughput of {clean:.0f} a second"
    return Verdict(
        codes=frozenset({"worker_lost"}),
        again=sum(in_flight_at(arena, at) for part, at in killed if part == "dispatch"),
        within=3 * (arena.layout.lease + 2) + OWN_TIME,
        figures={
            "kills": len(killed),
            "clean_rps": round(clean, 1),
            "killed_rps": round(len(answered) / took, 1),
            "share": round(share, 2),
            "claimed": arena.events("claimed"),
            "p50_s": round(percentile([outcome.seconds for outcome in answered], 0.5), 2),
        },
    )


@asynccontextmanager
async def clients(arena: Arena, chance: random.Random) -> AsyncIterator[None]:
    """Let clients ask, each again as soon as it was answered; on the way out wait for their last answers."""
    leaving = False

    async def client() -> None:
        while not leaving:
            await arena.load.one(chance.choice(KINDS))

    async with anyio.create_task_group() as tasks:
        for _ in range(CLIENTS):
            tasks.start_soon(client)
        yield
        leaving = True


async def throughput(arena: Arena, seconds: float) -> float:
    """Return how many requests a second are answered."""
    before, began = sum(outcome.whole for outcome in arena.load.outcomes), time.monotonic()
    await anyio.sleep(seconds)
    return (sum(outcome.whole for outcome in arena.load.outcomes) - before) / elapsed(began)


scenario(
    "rolling-kills-five-minutes",
    "F4",
    f"kill -9 of any of 10 workers every {KILL_EVERY:.0f} s for 5 minutes and {LONG_REQUESTS:,} requests",
    layout=Layout(resolve=5, dispatch=5),
    seconds=400,
)(five_minutes_of_kills)


async def crossed(arena: Arena) -> int:
    """Return how many requests met the close of their idle connection; nothing of them ran, so they are asked again."""
    cut = [outcome for outcome in arena.load.outcomes if not outcome.status]
    assert not [outcome for outcome in cut if arena.witness.calls[outcome.name]], f"cut under a request: {cut}"
    assert len(cut) <= CROSSED, f"{len(cut)} requests were cut: {cut}"
    for outcome in cut:
        assert (await arena.load.one(outcome.kind)).whole
    return len(cut)


async def rolling_restart(part: str, arena: Arena, chance: random.Random) -> Verdict:
    """SIGTERM every process of a part, one after the other; the supervisor puts a new one in its place."""
    drains: list[float] = []
    async with traffic(arena):
        for old in arena.pids(part):
            began = time.monotonic()
            os.kill(old, signal.SIGTERM)
            await arena.ended(old, GRACE)
            drains.append(elapsed(began))
            await wait_until(arena.complete, timeout=20, every=0.1)
    return Verdict(
        cut=await crossed(arena) > 0,
        within=OWN_TIME + (BOOT if part == "ingress" else 0),  # of the one that listens
        figures={"replaced": len(drains), "drain_s": round(max(drains), 2)},
    )


for _part in ("ingress", "resolve", "dispatch"):
    scenario(
        f"restart-{_part}",
        "F6",
        f"SIGTERM of every {_part} process in turn, {RATE:.0f} requests a second",
        seconds=10,
    )(functools.partial(rolling_restart, _part))


async def reload(arena: Arena, chance: random.Random) -> Verdict:
    """SIGHUP to the supervisor with one more model: every process is replaced, the new one first."""
    before, config = set(arena.processes()), arena.directory / "config.yaml"
    began = time.monotonic()
    async with traffic(arena):
        lines = config.read_text().splitlines()
        at = next(number for number, line in enumerate(lines) if "model_name: gpt-4" in line)
        model = [line.replace("model_name: gpt-4", "model_name: gpt-5") for line in lines[at : at + 2]]
        config.write_text("\n".join([*lines[: at + 2], *model, *lines[at + 2 :]]) + "\n")
        arena.gateway.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: "| reloaded" in arena.log, timeout=60, every=0.1)
        took = elapsed(began)
    assert not before & set(arena.processes()), "a process of the old configuration goes on"
    answer = await arena.load.client.post(
        "/v1/chat/completions", json={"model": "gpt-5", "messages": [{"role": "user", "content": "reloaded-plain"}]}
    )
    assert answer.status_code == 200, answer.text
    return Verdict(
        cut=await crossed(arena) > 0,
        within=OWN_TIME,
        figures={"replaced": len(before), "reload_s": round(took, 1)},
    )


scenario(
    "reload",
    "F6",
    f"SIGHUP to the supervisor with a changed configuration, {RATE:.0f} requests a second",
    seconds=14,
    fresh=True,
)(reload)


async def hand_back(stage: str, arena: Arena, chance: random.Random) -> Verdict:
    """SIGTERM a worker between reading jobs and starting them: others have them at once, long before a lease ends."""
    fired = arena.arm(f"{stage}.after_read", f"sleep({HELD_UP_MS})")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, 8, "whole")
        await wait_until(lambda: not fired.exists(), timeout=10)
        await anyio.sleep(HELD_UP_MS / 3000)  # what the other workers read they have done by then
        pending = await arena.pending(stage)
        pid = pending[min(pending)].pid
        read = await held_by(arena, stage, pid)
        os.kill(pid, signal.SIGTERM)
        handed, taken = await _handed_on(arena, stage, pid, read)
    claimed = arena.events("claimed", stage=stage)
    assert claimed >= len(read), f"{claimed} of {len(read)} deliveries were claimed: the stopping worker ran the others"
    assert taken - handed < CLAIMED_WITHIN + WAKES, f"claimed {taken - handed:.1f} s after they were handed back"
    return Verdict(
        within=HELD_UP_MS / 1000 + CLAIMED_WITHIN + OWN_TIME,
        figures={"read": len(read), "claimed_after_s": round(taken - handed, 2)},
    )


async def _handed_on(arena: Arena, stage: str, pid: int, entries: set[str]) -> tuple[float, float]:
    """Return when a process handed entries back, and when others had taken all of them."""
    handed = 0.0
    limit = time.monotonic() + HELD_UP_MS / 1000 + arena.layout.lease
    while time.monotonic() < limit:
        pending = {entry: held for entry, held in (await arena.pending(stage)).items() if entry in entries}
        ours = [held for held in pending.values() if held.pid == pid]
        if not handed and (len(ours) < len(entries) or any(held.idle > arena.layout.lease for held in ours)):
            handed = time.monotonic()
        if handed and not ours:
            return handed, time.monotonic()
    raise AssertionError(f"{len(ours)} of {len(entries)} deliveries were not handed on")


for _stage in ("resolve", "dispatch"):
    scenario(
        f"hand-back-{_stage}",
        "F6",
        f"SIGTERM of a {_stage} worker that has read jobs and not started them",
        layout=Layout(lease=6),
        seconds=6,
    )(functools.partial(hand_back, _stage))
