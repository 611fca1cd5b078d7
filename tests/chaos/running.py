"""Runs scenarios: each on an arena of its layout, its invariants checked, its figures kept."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from chaos.arena import Arena, Layout, open_arena
from chaos.invariants import Footprint, footprints, violations
from chaos.load import percentile
from chaos.scenario import Scenario, Verdict
from fakes.waiting import wait_until

BACK = 5.0
"""Seconds after the end of a fault in which the gateway serves again: one of its connections may notice it late."""

WARM_UP = 60
"""Requests at a time before a baseline is taken: as many as scenarios send, or every pool would seem to leak."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a scenario; `wrong` is empty when all was as it must be."""

    scenario: str
    faults: str
    injected: str
    seconds: float
    wrong: tuple[str, ...] = ()
    figures: dict[str, Any] = {}
    log: str = ""
    """What the gateway wrote, when something was wrong."""


def known_broken() -> frozenset[str]:
    """Return the names on the ratchet."""
    lines = (Path(__file__).parent / "known_broken.txt").read_text().splitlines()
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


async def run(scenarios: Iterable[Scenario], seed: int, tell: Callable[[Result], None]) -> list[Result]:
    """Run scenarios in order and return their results. Neighbours of one layout share an arena while it is well."""
    results: list[Result] = []
    async with AsyncExitStack() as stack:
        arena: Arena | None = None
        baseline: dict[str, Footprint] = {}
        for scenario in scenarios:
            if arena is None or arena.layout != scenario.layout:
                await stack.aclose()
                arena, baseline = await stack.enter_async_context(_warm(scenario.layout, seed))
            result = await _one(scenario, arena, baseline, seed)
            results.append(result)
            tell(result)
            if scenario.fresh or result.wrong:
                await stack.aclose()
                arena = None
    return results


@asynccontextmanager
async def _warm(layout: Layout, seed: int) -> AsyncIterator[tuple[Arena, dict[str, Footprint]]]:
    with tempfile.TemporaryDirectory(prefix="promptmill-chaos-") as directory:
        async with open_arena(layout, Path(directory), random.Random(seed)) as arena:
            await arena.load.burst(WARM_UP)
            await arena.restore()
            yield arena, footprints(arena)


async def _one(scenario: Scenario, arena: Arena, baseline: dict[str, Footprint], seed: int) -> Result:
    chance = random.Random(f"{seed} {scenario.name}")
    arena.begin(chance)
    began = time.monotonic()
    wrong: list[str] = []
    verdict = Verdict()
    try:
        verdict = await scenario.run(arena, chance)
        await arena.restore()
        await wait_until(arena.serves, timeout=BACK, every=0.1)  # what is refused until then must be excused, too
        wrong += await violations(arena, verdict, baseline)
    except* AssertionError as group:
        wrong += [str(error) or repr(error) for error in _leaves(group)]
    figures = {
        "requests": len(arena.load.outcomes),
        "answered": sum(outcome.whole for outcome in arena.load.outcomes),
        **({"errors": dict(arena.load.codes)} if arena.load.codes else {}),
        "calls_again": sum(count - 1 for count in arena.witness.calls.values()),
        "p99_s": round(percentile([o.seconds for o in arena.load.outcomes], 0.99), 2),
        **({"batch_s": [round(b.ended - b.began, 1) for b in arena.batches]} if arena.batches else {}),
        **verdict.figures,
    }
    return Result(
        scenario=scenario.name,
        faults=scenario.faults,
        injected=scenario.injected,
        seconds=round(time.monotonic() - began, 1),
        wrong=tuple(wrong),
        figures=figures,
        log=arena.log if wrong else "",
    )


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
