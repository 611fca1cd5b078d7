"""The gate of a deployment: turns, and what becomes of calls whose turn is far away."""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Any

import anyio
import pytest
from fakes.waiting import wait_until

from pipeline.errors import UpstreamBusy, UpstreamOverloaded, UpstreamTimeout, UpstreamUnavailable
from workers.providers._remaining import Remaining
from workers.routing.gate import EARLY, FAR, PATIENCE, Gate, Postponed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Its timers are those of uvloop, which runs in production."""
    return "asyncio", {"use_uvloop": True}


def make() -> Gate:
    return Gate(time.monotonic, random.Random(7))


def limited(seconds: float | None) -> UpstreamOverloaded:
    return UpstreamOverloaded("slow down", retry_after=seconds, upstream_status=429)


async def known(gate: Gate, calls: int, rest: float) -> None:
    """Have a gate whose provider accepted some calls and then asked for a rest."""
    for _ in range(calls):
        gate.leave(await gate.enter())
    gate.leave(await gate.enter(), limited(rest))


async def test_calls_go_straight_through_where_nothing_is_known_but_not_all_at_once() -> None:
    gate = make()
    began = time.monotonic()
    for _ in range(30):
        gate.leave(await gate.enter())
    assert 0.1 < time.monotonic() - began < 1
    assert not gate.pace.known


async def test_a_call_that_meets_a_rest_is_postponed_until_its_turn_after_it() -> None:
    gate = make()
    await known(gate, 20, 20)
    turns = []
    for _ in range(5):
        with pytest.raises(Postponed) as caught:
            await gate.enter()
        assert not caught.value.far
        turns.append(caught.value.seconds)
    spacing = 1 / gate.pace.rate
    assert turns == pytest.approx([20 - EARLY + spacing * (number + 1) for number in range(5)], abs=0.2)


async def test_turns_are_given_out_for_a_minute_and_who_comes_later_asks_again() -> None:
    gate = make()
    await known(gate, 20, 20)
    near, far = [], []
    for _ in range(200):
        postponed = gate.postponed()
        (far if postponed.far else near).append(postponed.seconds)
    assert max(near) < FAR
    assert len(near) == pytest.approx((FAR - 20) * gate.pace.rate, abs=2)
    assert FAR / 2 <= min(far) < FAR / 2 + 2
    assert FAR - 2 < max(far) <= FAR


async def test_those_who_wait_as_the_rest_begins_are_postponed_and_those_near_their_turn_stay() -> None:
    gate = make()
    first = await gate.enter()
    outcomes: list[float] = []

    async def call() -> None:
        try:
            gate.leave(await gate.enter())
            outcomes.append(0.0)
        except Postponed as later:
            outcomes.append(later.seconds)

    async with anyio.create_task_group() as tasks:
        for _ in range(300):
            tasks.start_soon(call)
        await wait_until(lambda: len(outcomes) > 3)
        gate.leave(first, limited(1.9))
    later = [seconds for seconds in outcomes if seconds]
    assert len(outcomes) == 300
    assert len(later) > 3
    assert outcomes.count(0.0) > 3
    assert max(later) > PATIENCE


async def test_of_a_crowd_that_a_refusal_puts_off_who_waited_first_comes_back_first_and_at_once() -> None:
    gate = make()
    first = await gate.enter()
    outcomes: dict[int, float] = {}

    async def call(number: int) -> None:
        try:
            gate.leave(await gate.enter())
        except Postponed as later:
            outcomes[number] = later.seconds

    async with anyio.create_task_group() as tasks:
        for number in range(3000):
            tasks.start_soon(call, number)
        await wait_until(lambda: 0 < len(gate._waiting) < 2990)
        gate.leave(first, limited(1.0))
    put_off = list(outcomes.values())
    assert min(put_off) < 3  # the rest is over then
    assert put_off[:100] == sorted(put_off[:100])


async def test_a_call_that_left_while_it_waited_takes_no_turn() -> None:
    gate = make()
    with anyio.move_on_after(0):
        for _ in range(10):
            await gate.enter()
    entered = gate.limit.in_flight
    gate.leave(await gate.enter())
    assert gate.limit.in_flight == entered


async def test_a_turn_that_comes_as_its_call_is_cancelled_is_given_back() -> None:
    gate = make()
    gate.limit.value = 1
    first = await gate.enter()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(gate.enter())
        await wait_until(lambda: gate._waiting and not gate.pace.wait)
        gate.leave(first)
        assert gate.limit.in_flight == 1
        waiting.cancel()
    assert gate.limit.in_flight == 0


async def test_a_turn_that_is_given_back_is_the_next_ones() -> None:
    gate = make()
    gate.limit.value = 3
    tickets = [await gate.enter() for _ in range(3)]
    async with asyncio.TaskGroup() as tasks:
        leaves, stays = tasks.create_task(gate.enter()), tasks.create_task(gate.enter())
        await wait_until(lambda: len(gate._waiting) == 2 and not gate.pace.wait)
        gate.leave(tickets[0])
        leaves.cancel()
        with anyio.fail_after(5):
            await stays
    assert gate.limit.in_flight == 3


async def test_overloads_leave_room_for_fewer_calls_and_each_end_lets_one_through() -> None:
    gate = make()
    tickets = [await gate.enter() for _ in range(8)]
    for ticket in tickets[:4]:
        gate.leave(ticket, UpstreamBusy("busy", upstream_status=503))
    assert gate.limit.value == 4
    entered = []

    async def call() -> None:
        entered.append(await gate.enter())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        assert not entered
        gate.leave(tickets[4])
    assert len(entered) == 1


async def test_a_call_past_its_timeout_is_no_word_of_the_providers() -> None:
    gate = make()
    for _ in range(3):
        gate.leave(await gate.enter(), UpstreamTimeout("no answer"))
        gate.leave(await gate.enter())
    assert gate.limit.value == math.inf
    gate.leave(await gate.enter(), UpstreamTimeout("gave up", upstream_status=504))
    assert gate.limit.value == 1


async def test_other_failures_say_nothing_of_a_limit() -> None:
    gate = make()
    for _ in range(10):
        gate.leave(await gate.enter(), UpstreamUnavailable("down", upstream_status=500))
    assert not gate.pace.known
    assert gate.limit.room > 100


async def test_a_provider_that_is_busy_and_says_for_how_long_gets_its_rest() -> None:
    gate = make()
    gate.leave(await gate.enter(), UpstreamBusy("busy", retry_after=30, upstream_status=529))
    assert gate.delay() == pytest.approx(30, abs=0.1)


async def test_a_limit_that_the_other_lane_met_holds_calls_back() -> None:
    gate = make()
    gate.hold(12)
    with pytest.raises(Postponed):
        await gate.enter()


async def test_what_the_provider_says_is_left_bounds_calls_while_its_limit_is_not_known() -> None:
    gate = make()
    gate.leave(await gate.enter(), remaining=Remaining(6, None))
    tickets = [await gate.enter() for _ in range(2)]
    gate.leave(tickets[1], remaining=Remaining(0, None))
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(gate.enter())
        await wait_until(lambda: gate.opens() == math.inf)
        assert not waiting.done()
        gate.leave(tickets[0])
        with anyio.fail_after(5):
            await waiting


async def test_none_that_are_left_are_a_rest_that_costs_no_refusal() -> None:
    gate = make()
    for left in range(10, -1, -1):
        gate.leave(await gate.enter(), remaining=Remaining(left, 30.0))
    assert gate.delay() == pytest.approx(30, abs=0.1)
    assert gate.pace.known


async def test_a_refusal_that_does_not_say_how_long_is_waited_for_as_long_as_none_are_left() -> None:
    gate = make()
    gate.leave(await gate.enter(), remaining=Remaining(8, 30.0))
    gate.leave(await gate.enter(), limited(None), Remaining(0, 30.0))
    assert gate.delay() == pytest.approx(30, abs=0.1)
    assert gate.limit.value == math.inf


async def test_where_nothing_was_refused_yet_calls_that_hang_do_not_keep_others_from_beginning() -> None:
    gate = make()
    for _ in range(3):
        gate.leave(await gate.enter())
    with anyio.fail_after(5):
        hanging = [await gate.enter() for _ in range(4)]
    assert gate.limit.in_flight == len(hanging)
