"""How long a job would wait, reckoned from what was answered while others waited."""

from __future__ import annotations

import pytest

from pipeline.transport.pace import Pace


def seen(*ticks: tuple[int, float, float]) -> Pace:
    """Return a pace that saw (answered, longest wait, seconds), one after another."""
    pace = Pace()
    for answered, waited, seconds in ticks:
        pace.saw(answered, waited, seconds)
    return pace


def test_the_wait_is_the_backlog_over_what_is_answered_meanwhile() -> None:
    pace = seen(*[(50, 2.0, 0.25)] * 40)
    assert pace.wait(1000, 1) == pytest.approx(5.0, rel=0.01)
    assert pace.wait(1000, 4) == pytest.approx(1.25, rel=0.01), "three other ingress processes are answered as well"
    assert pace.wait(1000, 0) == pace.wait(1000, 1), "before the first look at the registry"


@pytest.mark.parametrize(
    "ticks",
    [
        [],
        [(5, 0.004, 0.25)] * 100,  # nobody waits: this is how fast clients ask
        [(0, 0.0, 0.25)] * 100,  # a burst of slow calls, and none is answered yet
        [(500, 3.0, 0.25)] * 4,  # one second is too short
        [(1, 3.0, 1.0)] * 10,  # ten answers are too few
    ],
)
def test_what_was_seen_too_little_of_says_nothing(ticks: list[tuple[int, float, float]]) -> None:
    pace = seen(*ticks)
    assert pace.wait(10_000, 1) is None
    assert pace.beyond(1.0, 10_000, 1) == 0.0


def test_a_tick_without_an_answer_counts_while_jobs_wait() -> None:
    pace = seen(*[(100, 2.0, 0.25), (0, 0.0, 0.25)] * 20)
    assert pace.wait(1000, 1) == pytest.approx(5.0, rel=0.02)


def test_an_overload_of_long_ago_is_forgotten() -> None:
    pace = seen(*[(50, 2.0, 0.25)] * 40, *[(5, 0.001, 0.25)] * 1000)
    assert pace.wait(1000, 1) is None


def test_a_wait_beyond_the_limit_is_believed_once_jobs_have_waited_long() -> None:
    burst, overload = seen(*[(50, 0.5, 0.25)] * 40), seen(*[(50, 4.0, 0.25)] * 40)
    assert burst.beyond(30.0, 8000, 1) == 0.0
    assert overload.beyond(30.0, 8000, 1) == pytest.approx(40.0, rel=0.02)
    assert overload.beyond(30.0, 1000, 1) == 0.0
