"""Concurrency that is halved by overloads and found again."""

from __future__ import annotations

import math

from workers.routing.limit import SLOW, Limit


def begin(limit: Limit, count: int) -> list[int]:
    return [limit.begin() for _ in range(count)]


def end(limit: Limit, cohorts: list[int], overload: float = 0.0) -> None:
    for cohort in cohorts:
        limit.end(cohort, overload)


def use(limit: Limit) -> None:
    """End a round of calls in which each is followed by the next: the limit stays used."""
    for cohort in begin(limit, int(limit.value)):
        limit.end(cohort)
        limit.begin()
    limit.in_flight = 0


def test_there_is_no_limit_until_the_first_overload() -> None:
    limit = Limit()
    for _ in range(3):
        end(limit, begin(limit, 500))
    assert limit.value == math.inf


def test_calls_that_were_in_flight_together_halve_it_once() -> None:
    limit = Limit()
    end(limit, begin(limit, 100), overload=1.0)
    assert limit.value == 49  # of 98: two in a hundred may be
    assert limit.in_flight == 0
    end(limit, begin(limit, 49), overload=1.0)
    assert limit.value == 24


def test_it_never_falls_below_one() -> None:
    limit = Limit()
    for _ in range(5):
        end(limit, begin(limit, 1), overload=1.0)
    assert limit.value == 1
    assert limit.room == 1


def test_a_few_overloads_among_many_successes_change_nothing() -> None:
    limit = Limit()
    for _ in range(20):
        calls = begin(limit, 200)
        end(limit, calls[:3], overload=1.0)
        end(limit, calls[3:])
    assert limit.value == math.inf


def test_after_the_first_overload_it_is_doubled_and_a_thousand_are_found_within_ten_rounds() -> None:
    limit = Limit()
    end(limit, begin(limit, 1), overload=1.0)
    assert limit.value == 1
    for _ in range(10):
        use(limit)
    assert limit.value == 1024


def test_where_it_was_halved_again_it_grows_by_one_more_with_every_round_in_which_it_was_used() -> None:
    limit = Limit()
    end(limit, begin(limit, 50), overload=1.0)
    use(limit)
    end(limit, begin(limit, int(limit.value)), overload=1.0)
    found = limit.value
    for _ in range(3):
        end(limit, begin(limit, int(limit.value)), overload=1.0)
    values = [limit.value]
    while values[-1] < found + 10:
        use(limit)
        values.append(limit.value)
    doubled, added = [found // 8, found // 4, found // 2], [found + count for count in (0, 1, 3, 6, 10)]
    assert values == doubled + added


def test_long_answers_that_run_past_their_timeout_lower_it_only_where_they_are_many() -> None:
    limit = Limit()
    for _ in range(5):
        calls = begin(limit, 100)
        end(limit, calls[:15], overload=SLOW)
        end(limit, calls[15:])
        end(limit, begin(limit, 1), overload=SLOW)
    assert limit.value == math.inf
    end(limit, begin(limit, 100), overload=SLOW)
    assert limit.value < 100


def test_it_does_not_grow_while_little_of_it_is_used() -> None:
    limit = Limit()
    end(limit, begin(limit, 40), overload=1.0)
    before = limit.value
    for _ in range(50):
        end(limit, begin(limit, 3))
    assert limit.value == before
