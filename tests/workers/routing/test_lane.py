"""The batch lane's routing: refusals are no attempts, long waits are none of a slot's business."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from fakes.configs import deployment

from pipeline.catalog import Group
from pipeline.errors import PipelineError, UpstreamOverloaded, UpstreamTimeout, UpstreamUnavailable
from pipeline.settings import Deployment, RouterSettings
from workers.routing.cooldown import LocalCooldowns
from workers.routing.gate import Postponed
from workers.routing.lane import BatchRouter, Gates
from workers.routing.router import Attempt, Router

pytestmark = pytest.mark.anyio


class Line:
    """Satisfies the router's `Call`; `outcomes` are raised in order, None is a success."""

    def __init__(self, *outcomes: PipelineError | None) -> None:
        self.id = "0-1"
        self.retries: int | None = None
        self.stream = False
        self.started = False
        self.remaining = 60.0
        self.used: list[str] = []
        self._outcomes = list(outcomes)

    def left(self) -> None:
        """Nothing is said."""

    def prepare(self, deployment: Deployment) -> Attempt[str]:
        async def attempt(_: float) -> str:
            self.used.append(deployment.id)
            outcome = self._outcomes.pop(0) if self._outcomes else None
            if outcome is not None:
                raise outcome
            return deployment.id

        return attempt


class Lanes:
    """Both routers of a process, over the same deployments."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.group = Group("gpt-4", tuple(deployment(id=name) for name in names))
        self.pauses: list[float] = []
        chosen, chance = RouterSettings(**settings), random.Random(7)
        self.cooldowns = LocalCooldowns(chosen)
        self.gates = Gates(self.cooldowns, chance, {})
        self.live = Router(chosen, self.cooldowns, chance, self.sleep, self.gates.hold)
        self.batch = BatchRouter(chosen, self.gates, chance, self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


def limited(seconds: float) -> UpstreamOverloaded:
    return UpstreamOverloaded("slow down", retry_after=seconds, upstream_status=429)


async def test_a_refusal_with_a_long_rest_puts_the_line_off() -> None:
    lanes = Lanes("a")
    line = Line(limited(30))
    with pytest.raises(Postponed) as caught:
        await lanes.batch.run(lanes.group, line)
    assert caught.value.seconds == pytest.approx(30, abs=2)
    with pytest.raises(Postponed):
        await lanes.batch.run(lanes.group, line)
    assert line.used == ["a"]


async def test_a_short_rest_is_waited_for_and_takes_none_of_the_retries() -> None:
    lanes = Lanes("a", retries=0)
    line = Line(limited(0.05), limited(0.05))
    began = time.monotonic()
    assert await lanes.batch.run(lanes.group, line) == "a"
    assert line.used == ["a", "a", "a"]
    assert 0.1 < time.monotonic() - began < 2


async def test_while_one_deployment_rests_the_other_serves() -> None:
    lanes = Lanes("a", "b")
    lanes.gates.hold("a", 30)
    for _ in range(10):
        assert await lanes.batch.run(lanes.group, Line()) == "b"
    lanes.gates.hold("b", 20)
    with pytest.raises(Postponed) as caught:
        await lanes.batch.run(lanes.group, Line())
    assert caught.value.seconds == pytest.approx(20, abs=2)


async def test_what_a_batch_met_does_not_keep_live_calls_from_a_deployment() -> None:
    lanes = Lanes("a", "b", allowed_fails=0)
    for error in (limited(30), UpstreamTimeout("slow")):
        line = Line(error)
        line.retries = 0
        with pytest.raises((Postponed, UpstreamTimeout)):
            await lanes.batch.run(lanes.group, line)
    assert {await lanes.live.run(lanes.group, Line()) for _ in range(30)} == {"a", "b"}


async def test_what_a_live_call_met_holds_the_batch_back() -> None:
    lanes = Lanes("a")
    line = Line(limited(30))
    line.retries = 0
    with pytest.raises(UpstreamOverloaded):
        await lanes.live.run(lanes.group, line)
    with pytest.raises(Postponed):
        await lanes.batch.run(lanes.group, Line())


async def test_what_live_calls_of_other_processes_met_holds_the_batch_back_once() -> None:
    lanes = Lanes("a")
    lanes.gates.heed({"a": 30.0, "b": -1.0})
    assert lanes.gates.rests() == {"a": pytest.approx(30, abs=1)}
    lanes.gates.heed({"a": 12.0})
    assert lanes.gates.rests() == {"a": pytest.approx(30, abs=1)}
    with pytest.raises(Postponed):
        await lanes.batch.run(lanes.group, Line())


async def test_a_cooldown_of_live_calls_is_one_for_the_batch_too() -> None:
    lanes = Lanes("a")
    lanes.cooldowns.failed("a", at_once=True, seconds=40)
    with pytest.raises(Postponed) as caught:
        await lanes.batch.run(lanes.group, Line())
    assert caught.value.seconds == pytest.approx(40, abs=2)


async def test_models_that_rest_are_told_with_their_seconds() -> None:
    lanes = Lanes("a", "b", "c")
    assert lanes.gates.resting(lanes.group.deployments) == {}
    lanes.gates.hold("a", 10)
    lanes.gates.hold("b", 30)
    assert lanes.gates.resting(lanes.group.deployments) == {"gpt-4": pytest.approx(30, abs=1)}


async def test_failures_are_retried_after_short_pauses_and_then_given_back() -> None:
    lanes = Lanes("a")
    line = Line(*(UpstreamUnavailable("down", upstream_status=500) for _ in range(20)))
    line.retries = 10
    with pytest.raises(UpstreamUnavailable):
        await lanes.batch.run(lanes.group, line)
    assert all(pause <= 2 for pause in lanes.pauses)
    assert len(line.used) < 11


async def test_failures_that_are_a_deployments_own_count_against_it() -> None:
    lanes = Lanes("a", "b", allowed_fails=0)
    line = Line(UpstreamUnavailable("down", upstream_status=500))
    answered = await lanes.batch.run(lanes.group, line)
    assert {await lanes.live.run(lanes.group, Line()) for _ in range(20)} == {answered}
