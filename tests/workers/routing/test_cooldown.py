"""Rest after failures, with a clock that is passed in."""

from __future__ import annotations

from pipeline.settings import RouterSettings
from workers.providers._errors import LONGEST_REST
from workers.routing.cooldown import WINDOW, LocalCooldowns


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(**fields: float) -> tuple[LocalCooldowns, Clock]:
    clock = Clock()
    settings = RouterSettings(allowed_fails=int(fields.get("allowed_fails", 3)), cooldown=fields.get("cooldown", 5.0))
    return LocalCooldowns(settings, clock), clock


def test_more_failures_than_allowed_begin_a_rest() -> None:
    cooldowns, clock = make(allowed_fails=2)
    for _ in range(2):
        cooldowns.failed("a", at_once=False, seconds=None)
    assert cooldowns.rest("a") == 0
    cooldowns.failed("a", at_once=False, seconds=None)
    assert cooldowns.rest("a") == 5
    assert cooldowns.rest("b") == 0
    clock.now += 5
    assert cooldowns.rest("a") == 0


def test_failures_older_than_a_minute_do_not_count() -> None:
    cooldowns, clock = make(allowed_fails=1)
    cooldowns.failed("a", at_once=False, seconds=None)
    clock.now += WINDOW
    cooldowns.failed("a", at_once=False, seconds=None)
    assert cooldowns.rest("a") == 0
    cooldowns.failed("a", at_once=False, seconds=None)
    assert cooldowns.rest("a") == 5


def test_after_a_rest_the_count_begins_anew() -> None:
    cooldowns, clock = make(allowed_fails=1)
    for _ in range(2):
        cooldowns.failed("a", at_once=False, seconds=None)
    clock.now += 5
    cooldowns.failed("a", at_once=False, seconds=None)
    assert cooldowns.rest("a") == 0


def test_one_failure_is_enough_when_the_provider_is_at_its_limit() -> None:
    cooldowns, _ = make()
    cooldowns.failed("a", at_once=True, seconds=30)
    assert cooldowns.rest("a") == 30


def test_a_rest_is_never_shortened() -> None:
    cooldowns, clock = make()
    cooldowns.failed("a", at_once=True, seconds=30)
    clock.now += 1
    cooldowns.failed("a", at_once=True, seconds=1)
    assert cooldowns.rest("a") == 29


def test_no_provider_sends_its_deployment_to_rest_for_ever() -> None:
    cooldowns, clock = make()
    cooldowns.failed("a", at_once=True, seconds=1e300)
    assert cooldowns.rest("a") == LONGEST_REST
    clock.now += LONGEST_REST
    assert cooldowns.rest("a") == 0
