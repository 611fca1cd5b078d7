"""Concurrency that is halved by overloads and found again."""

from __future__ import annotations

import math

from workers.routing.limit import Limit


def begin(limit: Limit, count: int) -> list[int]:
    return [limit.begin() for _ in range(count)]


def end(limit: Limit, cohorts: list[int], *, overloaded: bool = False) -> None:
    for cohort in cohorts:
        limit.end(cohort, overloaded=overloaded)


def test_there_is_no_limit_until_the_first_overload() -> None:
    limit = Limit()
    for _ in range(3):
        end(limit, begin(limit, 500))
    assert limit.value == math.inf


def test_calls_that_were_in_flight_together_halve_it_once() -> None:
    limit = Limit()
    end(limit, begin(limit, 100), overloaded=True)
    assert limit.value == 49  # of 98: two in a hundred may be
    assert limit.in_flight == 0
    end(limit, begin(limit, 49), overloaded=True)
    assert limit.value == 24


def test_it_never_falls_below_one() -> None:
    limit = Limit()
    for _ in range(5):
        end(limit, begin(limit, 1), overloaded=True)
    assert limit.value == 1
    assert limit.room == 1


def test_a_few_overloads_among_many_successes_change_nothing() -> None:
    limit = Limit()
    for _ in range(20):
        calls = begin(limit, 200)
        end(limit, calls[:3], overloaded=True)
        end(limit, calls[3:])
    assert limit.value == math.inf


def test_it_grows_by_one_more_with_every_round_in_which_it_was_used() -> None:
    limit = Limit()
    end(limit, begin(limit, 20), overloaded=True)
    values = []
    for _ in range(4):
        size = int(limit.value)
        calls = begin(limit, size)
        for cohort in calls:  # each is followed by the next: the limit stays used
            limit.end(cohort, overloaded=False)
            limit.begin()
        values.append(limit.value - size)
        limit.in_flight = 0
    assert values == [1, 2, 3, 4]


def test_it_does_not_grow_while_little_of_it_is_used() -> None:
    limit = Limit()
    end(limit, begin(limit, 40), overloaded=True)
    before = limit.value
    for _ in range(50):
        end(limit, begin(limit, 3))
    assert limit.value == before
