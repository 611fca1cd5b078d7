"""Three times as many requests as the workers can take: they do their best, and the rest hears it at once."""

from __future__ import annotations

import functools
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
from chaos.arena import Arena, Layout
from chaos.gauges import memory
from chaos.load import Outcome, percentile
from chaos.scenario import QUICK, Verdict, scenario

PROCESSES, SLOTS = 2, 4
TAKES = 0.4
CAPACITY = PROCESSES * SLOTS / TAKES
"""Answers a second, whatever the machine: slots and the provider's time set it."""
BACKLOG = 30
BUSY = Layout(dispatch=PROCESSES, settings=f"dispatch_slots: {SLOTS}\nmax_backlog: {BACKLOG}")

KIND = "plain"
SETTLING = 2.5
"""Seconds of overload that do not count: the backlog fills, and the pace becomes known."""
OWN_TIME = 2.5
"""Seconds a request takes itself, on a busy machine."""
FAST, TYPICAL = 0.3, 0.01
"""Seconds in the ingress until a request is refused: for nearly all on a busy machine, and for half of them."""
GOODPUT, WASTED = 0.9, 0.05
"""Answers a second as a share of the peak, and the share of provider calls whose clients had their errors before."""
GOODPUT_SHORTLY, WASTED_SHORTLY = 0.5, 0.2
"""The same in a few seconds, which other work on the machine makes differ from the next few: it is no collapse."""
GREW = 8 * 2**20
"""Bytes a process may grow by from the first third of the overload to the last."""
SLOW = TAKES + OWN_TIME
"""An answer that took longer is not back to normal."""


class Seen(msgspec.Struct):
    """What the overload did."""

    peak: float
    began: float
    ended: float
    outcomes: list[Outcome]
    memory: dict[str, list[int]]

    @property
    def steady(self) -> list[Outcome]:
        """Return what ended during the overload, once it had settled."""
        return [o for o in self.outcomes if self.began + SETTLING <= o.at <= self.ended]

    @property
    def goodput(self) -> float:
        """Return answers a second, as a share of the peak."""
        return sum(o.whole for o in self.steady) / (self.ended - self.began - SETTLING) / self.peak

    @property
    def growth(self) -> dict[str, int]:
        """Return by how many bytes each part grew."""
        thirds = {part: (sizes[: len(sizes) // 3], sizes[-len(sizes) // 3 :]) for part, sizes in self.memory.items()}
        return {part: int(statistics.median(last) - statistics.median(first)) for part, (first, last) in thirds.items()}


async def for_seconds(seconds: float, work: Callable[[anyio.Event], Any]) -> None:
    """Run `work(over)`, and set the event after so many seconds."""
    over = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, over)
        await anyio.sleep(seconds)
        over.set()


async def saturate(arena: Arena, over: anyio.Event) -> None:
    """Keep every slot busy, and as many requests waiting."""

    async def one_after_another() -> None:
        while not over.is_set():
            await arena.load.one(KIND)

    async with anyio.create_task_group() as tasks:
        for _ in range(2 * PROCESSES * SLOTS):
            tasks.start_soon(one_after_another)


async def overload(arena: Arena, seconds: float, **fields: Any) -> Seen:
    """Find out what the gateway does at its best, then offer three times as much for so many seconds."""
    began = time.monotonic()
    await for_seconds(3, functools.partial(saturate, arena))
    peak = sum(began + 1 <= o.at <= began + 3 for o in arena.load.outcomes) / 2
    arena.load.outcomes.clear()
    pids = {part: arena.pids(part) for part in arena.layout.scales}  # once: to look for them takes a while
    sizes: dict[str, list[int]] = {part: [] for part in pids}

    async def sample(over: anyio.Event) -> None:
        while not over.is_set():
            await anyio.sleep(seconds / 60)
            for part, found in sizes.items():
                found.append(memory(pids[part]))

    async def offer(over: anyio.Event) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sample, over)
            await arena.load.steady(3 * CAPACITY, over, KIND, **fields)

    began = time.monotonic()
    await for_seconds(seconds, offer)
    return Seen(peak, began, began + seconds, list(arena.load.outcomes), sizes)


async def recovered(arena: Arena, seconds: float) -> float:
    """Offer half of the capacity for so many seconds; return after how many all was as usual."""
    began = time.monotonic()
    before = len(arena.load.outcomes)
    await for_seconds(seconds, lambda over: arena.load.steady(CAPACITY / 2, over, KIND))
    return max((o.at - began for o in arena.load.outcomes[before:] if not o.whole or o.seconds > SLOW), default=0.0)


def refusals(arena: Arena) -> list[float]:
    """Return the seconds that refused requests were in the ingress, as its log has them."""
    lines = (line[line.index("{") :] for line in arena.log.splitlines() if '"code":"backlog_full"' in line)
    return [json.loads(line)["seconds"] for line in lines]


async def bounded(seconds: float, fields: dict[str, Any], arena: Arena, chance: random.Random) -> Verdict:
    """Goodput stays at its peak, waits and memory stay bounded, refusals are quick and honest, and all of it passes."""
    arena.witness.takes = TAKES
    seen = await overload(arena, seconds, **fields)
    longest: float = fields.get("timeout") or BACKLOG / min(seen.peak, CAPACITY) + TAKES
    after = await recovered(arena, min(12.0, seconds / 2))
    admitted = percentile([o.seconds for o in seen.outcomes if o.whole], 0.99)
    refused = refusals(arena)
    calls = arena.witness.calls
    wasted = sum(calls[o.name] for o in seen.steady if not o.whole) / sum(calls[o.name] for o in seen.steady)
    figures = {
        "peak_rps": round(seen.peak, 1),
        "offered_rps": round(len(seen.outcomes) / (seen.ended - seen.began), 1),
        "goodput": round(seen.goodput, 2),
        "admitted_p99_s": round(admitted, 2),
        "refused_p50_ms": round(1000 * percentile(refused, 0.5), 1),
        "refused_p99_ms": round(1000 * percentile(refused, 0.99), 1),
        "wasted_calls": round(wasted, 3),
        "recovered_s": round(after, 1),
        "grew_mb": {part: round(grew / 2**20, 1) for part, grew in seen.growth.items()},
    }
    goodput, waste = (GOODPUT, WASTED) if seconds > QUICK else (GOODPUT_SHORTLY, WASTED_SHORTLY)
    assert seen.goodput >= goodput, figures
    assert admitted <= longest + OWN_TIME, figures
    assert percentile(refused, 0.5) <= TYPICAL, figures
    assert percentile(refused, 0.99) <= FAST, figures
    assert all(1 <= int(o.retry_after) <= 60 for o in seen.outcomes if o.code == "backlog_full")
    assert wasted <= waste, figures
    assert after <= min(10.0, seconds / 2 - 1), figures
    assert max(seen.growth.values()) <= GREW, figures
    codes = {"backlog_full", "deadline_exceeded"} if fields else {"backlog_full"}
    return Verdict(codes=frozenset(codes), within=longest + 2 * OWN_TIME, figures=figures)


IMPATIENT = {"timeout": 1.8}
for _seconds, _form in ((8, "shortly"), (120, "for-two-minutes"), (300, "for-five-minutes")):
    scenario(
        f"overload-{_form}",
        "F27 M6",
        f"3x the capacity of {CAPACITY:.0f} requests a second for {_seconds} s, then half of it",
        layout=BUSY,
        seconds=_seconds * 1.5 if _seconds < 60 else _seconds + 20,
    )(functools.partial(bounded, _seconds, {}))

scenario(
    "overload-of-impatient-clients",
    "F27",
    f"3x the capacity, from clients that wait {IMPATIENT['timeout']} s: less than the backlog would take",
    layout=BUSY,
    seconds=14,
)(functools.partial(bounded, 9, IMPATIENT))
