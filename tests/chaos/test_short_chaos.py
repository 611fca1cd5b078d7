"""A few drawn scenarios in every test run, and the harness itself: that it finds what is wrong."""

from __future__ import annotations

import random
import re
from pathlib import Path

import msgspec
import pytest
from chaos import running, scenario
from chaos.arena import Arena, Layout, open_arena
from chaos.invariants import footprints, violations
from chaos.load import Outcome, percentile
from chaos.scenario import Scenario, Verdict, discover, draw

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

SEED = 20261127
SECONDS = 30.0


@pytest.mark.timeout(300)
async def test_drawn_scenarios_lose_nothing() -> None:
    results = await running.run(draw(SEED, SECONDS), SEED, lambda result: print(result.scenario, result.figures))
    assert len(results) >= 3
    assert {result.scenario: result.wrong for result in results if result.wrong} == {}


def test_the_same_seed_draws_the_same_scenarios() -> None:
    assert draw(7, 55) == draw(7, 55)
    assert len({tuple(s.name for s in draw(seed, 55)) for seed in range(20)}) > 10


def test_every_quick_scenario_is_drawn_by_some_seed() -> None:
    quick = {name for name, found in discover().items() if found.seconds <= scenario.QUICK}
    assert {found.name for seed in range(1000) for found in draw(seed, 55)} == quick


def test_nothing_is_known_to_be_broken() -> None:
    assert running.known_broken() == frozenset()


@pytest.mark.timeout(120)
async def test_the_invariants_notice_what_is_lost_doubled_or_left_behind(tmp_path: Path) -> None:
    async with open_arena(Layout(resolve=1, dispatch=1), tmp_path, random.Random(1)) as arena:
        await arena.load.burst(4)
        baseline = footprints(arena)
        assert await violations(arena, Verdict(), baseline) == []
        await _planted(arena)
        found = "\n".join(await violations(arena, Verdict(), baseline))
        for wrong in (
            "I1 lost",
            "I1 a-stream",
            "I3 calls made again: {'twice'",
            "I7 refused",
            "I2 never",
            "I6 pm:{0}:x",
        ):
            assert wrong in found, found
        assert "1 dead letters" in found


async def _planted(arena: Arena) -> None:
    """Leave a trace of everything that must not be."""
    upstream = arena.witness.upstream
    (one, *_) = upstream.requests
    for name in ("twice", "twice", "refused"):
        body = msgspec.json.encode({"messages": [{"role": "user", "content": name}]})
        upstream.requests.append(type(one)(one.method, one.path, one.headers, body))
    arena.load.outcomes += [
        Outcome("lost", "whole", 0.0),
        Outcome("a-stream", "stream", 0.0, status=200, text="0 1 "),
        Outcome("refused", "plain", 0.0, status=429, code="backlog_full"),
        Outcome("never", "plain", 0.0, status=200, text="never"),
    ]
    await arena.redis(("SET", "pm:{0}:x", "1"), ("XADD", "pm:{0}:dead", "*", "reason", "planted"))


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([], 0.99) == 0.0


def test_scenarios_cover_what_they_say() -> None:
    for found in discover().values():
        assert isinstance(found, Scenario)
        assert found.injected
        assert all(word[0] in "FM" and word[1:].isdecimal() for word in found.faults.split()), found.faults


def test_the_guarantees_name_every_scenario_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text()
    promises = text.partition("| promise | scenarios |")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z][\w.-]+)`", promises))
    families = {name for name in named if name.endswith("-")}
    known = set(discover())
    assert named - families <= known
    assert {name for name in known - named if not name.startswith(tuple(families))} == set()


def test_every_fault_has_a_scenario() -> None:
    elsewhere = {28, 10, 29, 33}  # a million lines beside requests; replicas, tenants and soaks
    covered = {word for found in discover().values() for word in found.faults.split()}
    assert {f"F{number}" for number in range(1, 36) if number not in elsewhere} - covered == set()
