"""What is left by the provider's word, as a bound on calls under way."""

from __future__ import annotations

import math

import pytest

from workers.providers._errors import LONGEST_REST
from workers.providers._remaining import Remaining
from workers.routing.allowance import ENOUGH, STALE, Allowance


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def allowance(clock: Clock) -> Allowance:
    return Allowance(clock)


def test_no_more_may_begin_than_are_left_beside_those_that_are_not_answered(allowance: Allowance) -> None:
    calls = [allowance.begin() for _ in range(10)]
    assert allowance.room(10) == math.inf
    allowance.told(calls[3], Remaining(20, None))
    assert allowance.room(6) == 14  # six of the twenty were under way
    allowance.told(calls[2], Remaining(21, None))  # an earlier call's answer knows less
    assert allowance.room(5) == 14
    allowance.told(calls[9], Remaining(5, None))  # others call as well
    assert allowance.room(4) == 5


def test_where_more_comes_back_twice_as_many_may_begin_beside_what_is_left(allowance: Allowance) -> None:
    allowance.told(allowance.begin(), Remaining(ENOUGH, None))
    calls = [allowance.begin() for _ in range(4)]
    assert allowance.room(4) == ENOUGH - 4
    allowance.told(calls[0], Remaining(ENOUGH, None))
    assert allowance.room(3) == ENOUGH - 3 + 2


def test_a_word_ends_with_its_period_or_after_a_while(allowance: Allowance, clock: Clock) -> None:
    for seconds, until in ((7.0, 7.0), (None, STALE), (1e9, LONGEST_REST)):
        allowance.told(allowance.begin(), Remaining(ENOUGH, seconds))
        clock.now += until - 0.1
        assert allowance.room(1) == ENOUGH
        clock.now += 0.2
        assert allowance.room(1) == math.inf


def test_none_that_are_left_are_a_rest_and_without_its_end_one_call_tries(allowance: Allowance) -> None:
    for seconds, rest in ((30.0, 30.0), (None, None), (2 * LONGEST_REST, None)):
        allowance.told(allowance.begin(), Remaining(ENOUGH, seconds))
        assert allowance.told(allowance.begin(), Remaining(0, seconds)) == rest
        assert allowance.room(1) <= 0
        assert allowance.room(0) == 1


def test_none_that_are_left_for_no_time_are_no_rest(allowance: Allowance) -> None:
    allowance.told(allowance.begin(), Remaining(ENOUGH, 0.0))
    assert allowance.told(allowance.begin(), Remaining(0, 0.0)) is None
    assert allowance.room(1) == math.inf


def test_none_that_are_left_twice_in_a_row_means_something_else(allowance: Allowance) -> None:
    assert allowance.told(allowance.begin(), Remaining(0, 30.0)) is None
    assert allowance.room(1) == math.inf
    allowance.told(allowance.begin(), Remaining(ENOUGH, None))
    allowance.told(allowance.begin(), Remaining(0, None))
    assert allowance.room(1) <= 0
    allowance.told(allowance.begin(), Remaining(0, None))
    assert allowance.room(1) == math.inf


def test_what_was_said_before_a_rest_counts_no_longer_after_it(allowance: Allowance) -> None:
    early = allowance.begin()
    allowance.told(allowance.begin(), Remaining(ENOUGH, None))
    allowance.forget()
    assert allowance.room(1) == math.inf
    assert allowance.told(early, Remaining(0, 30.0)) is None
    assert allowance.room(1) == math.inf
