"""A scenario: what is done to the gateway, and what may come of it."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from chaos.arena import Arena, Layout


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the fault may cost; all that is not named here must be as if nothing had happened."""

    codes: frozenset[str] = frozenset()
    """Error codes that clients may get instead of an answer."""
    cut: bool = False
    """Clients may lose their connections: the ingress that held them died."""
    again: int = 0
    """Provider calls beyond one a request."""
    parts: int = 0
    """Files begun by processes that died: the next sweep removes those older than an hour."""
    letters: int = 0
    """Dead letters that must be there."""
    within: float | None = None
    """Seconds in which every request must have ended."""
    kept: int = 0
    """Bytes a process may keep: what its allocator got for a peak, it need not give back."""
    figures: Mapping[str, Any] = {}
    """What was measured, for the table."""


Run = Callable[[Arena, random.Random], Awaitable[Verdict]]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One fault in one form."""

    name: str
    faults: str
    """Rows of the fault table that it covers: `F1`, `F8 F9`."""
    injected: str
    """What is done, in a few words."""
    run: Run
    layout: Layout = Layout()
    seconds: float = 6
    """About how long it takes: what is short may be drawn for a quick run."""
    fresh: bool = False
    """Leaves the gateway or its server changed: the arena is not used again."""


SCENARIOS: dict[str, Scenario] = {}

QUICK = 15.0
"""Scenarios that take longer are left to the long run."""


def scenario(name: str, faults: str, injected: str, **fields: Any) -> Callable[[Run], Run]:
    """Register a function as a scenario. May be used several times on one function, by way of `functools.partial`."""

    def register(run: Run) -> Run:
        assert name not in SCENARIOS, name
        SCENARIOS[name] = Scenario(name=name, faults=faults, injected=injected, run=run, **fields)
        return run

    return register


def discover() -> dict[str, Scenario]:
    """Return every scenario of `scenarios/`, by name. A new family is one new file."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent / "scenarios")]):
        importlib.import_module(f"chaos.scenarios.{module.name}")
    return dict(sorted(SCENARIOS.items()))


def draw(seed: int, seconds: float) -> list[Scenario]:
    """Return a random order of quick scenarios that fits into `seconds`, those of one layout together."""
    chance = random.Random(seed)
    quick = [found for found in discover().values() if found.seconds <= QUICK]
    chance.shuffle(quick)
    layout = quick[0].layout
    quick.sort(key=lambda found: found.layout != layout)  # most of the time goes into scenarios, not into starts
    drawn: list[Scenario] = []
    left = seconds
    layouts: set[Layout] = set()
    for found in quick:
        cost = found.seconds + (0 if found.layout in layouts and not found.fresh else STARTUP)
        if cost <= left:
            left -= cost
            layouts.add(found.layout)
            drawn.append(found)
    return sorted(drawn, key=lambda found: found.layout != layout)


STARTUP = 5.0
"""Seconds a new arena takes."""
