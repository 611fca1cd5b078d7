"""Choosing, retrying and resting, with a scripted call and a clock that is passed in."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from fakes.configs import deployment

from pipeline.catalog import Group
from pipeline.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelDisabled,
    PipelineError,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamForbidden,
    UpstreamGarbled,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamResting,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from pipeline.job import ErrorFields
from pipeline.settings import Deployment, RouterSettings
from workers.routing.cooldown import LocalCooldowns
from workers.routing.router import MAX_RETRIES, Attempt, Router

pytestmark = pytest.mark.anyio


class ScriptedCall:
    """Satisfies the router's `Call`: `outcomes` are raised in order (None: success), each taking `takes` seconds."""

    def __init__(self, *outcomes: PipelineError | None, seconds: float = 60.0, takes: float = 0.0) -> None:
        self.id = "0-1"
        self.retries: int | None = None
        self.stream = False
        self.started = False
        self.now = 0.0
        self.attempts: list[tuple[str, float, float]] = []
        self.refuses: dict[str, PipelineError] = {}
        self._outcomes = list(outcomes)
        self._seconds = seconds
        self._takes = takes

    @property
    def remaining(self) -> float:
        return self._seconds - self.now

    def left(self) -> None:
        """Nothing is said."""

    def prepare(self, deployment: Deployment) -> Attempt[str]:
        if deployment.id in self.refuses:
            raise self.refuses[deployment.id]

        async def attempt(timeout: float) -> str:
            self.attempts.append((deployment.id, self.now, timeout))
            self.now += self._takes
            outcome = self._outcomes.pop(0) if self._outcomes else None
            if outcome is not None:
                raise outcome
            return deployment.id

        return attempt

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def used(self) -> list[str]:
        return [name for name, _, _ in self.attempts]


def group(*names: str, **fields: Any) -> Group:
    return Group("gpt-4", tuple(deployment(id=name, **fields) for name in names))


def router_for(call: ScriptedCall, **settings: Any) -> Router:
    chosen = RouterSettings(**settings)
    cooldowns = LocalCooldowns(chosen, lambda: call.now)
    return Router(chosen, cooldowns, random.Random(7), call.sleep)


def unavailable() -> UpstreamError:
    return UpstreamUnavailable("down", upstream_status=500)


def rejected() -> UpstreamError:
    return UpstreamRejected("no", wire=ErrorFields(status=400, type="t", code="c", message="no"))


async def test_the_first_answer_is_the_answer() -> None:
    call = ScriptedCall()
    assert await router_for(call).run(group("a"), call) == "a"
    assert call.used == ["a"]


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        ([{"weight": 3.0}, {"weight": 1.0}], 0.75),
        ([{"rpm": 9}, {"rpm": 1}], 0.9),
        ([{"tpm": 1000}, {"tpm": 4000}], 0.2),
        ([{"weight": 1.0, "rpm": 1}, {"rpm": 99}], 1.0),
        ([{"weight": 0.0}, {"weight": 0.0}], 0.5),
        ([{}, {}], 0.5),
    ],
)
async def test_deployments_share_by_weight_then_rpm_then_tpm(weights: list[dict[str, Any]], share: float) -> None:
    call = ScriptedCall()
    router = router_for(call)
    members = Group("g", tuple(deployment(id=str(i), **fields) for i, fields in enumerate(weights)))
    for _ in range(2000):
        await router.run(members, call)
    assert Counter(call.used)["0"] / 2000 == pytest.approx(share, abs=0.05)


async def test_a_retry_goes_to_another_deployment_at_once() -> None:
    call = ScriptedCall(unavailable(), unavailable())
    await router_for(call).run(group("a", "b", "c"), call)
    assert sorted(call.used) == ["a", "b", "c"]
    assert call.now == 0


async def test_retries_of_a_lone_deployment_back_off_exponentially_with_full_jitter() -> None:
    pauses: list[list[float]] = []
    for seed in range(40):
        call = ScriptedCall(*(unavailable() for _ in range(6)), seconds=1000)
        call.retries = 6
        settings = RouterSettings()
        await Router(settings, LocalCooldowns(settings), random.Random(seed), call.sleep).run(group("a"), call)
        times = [time for _, time, _ in call.attempts]
        pauses.append([b - a for a, b in itertools.pairwise(times)])
    for number, limit in enumerate([0.5, 1, 2, 4, 8, 8]):
        column = [row[number] for row in pauses]
        assert max(column) <= limit
        assert sum(column) / len(column) == pytest.approx(limit / 2, rel=0.3)


@pytest.mark.parametrize(
    ("asked", "own", "attempts"),
    [(None, None, 3), (None, 1, 2), (0, 5, 1), (4, 1, 5), (99, None, MAX_RETRIES + 1), (-3, None, 1)],
)
async def test_how_often_is_the_clients_then_the_deployments_then_the_routers_word(
    asked: int | None, own: int | None, attempts: int
) -> None:
    call = ScriptedCall(*(unavailable() for _ in range(20)), seconds=1000)
    call.retries = asked
    with pytest.raises(UpstreamUnavailable):
        await router_for(call, retries=2).run(group("a", retries=own), call)
    assert len(call.attempts) == attempts


async def test_a_rejected_request_is_not_retried_and_blames_no_deployment() -> None:
    call = ScriptedCall(*(rejected() for _ in range(9)))
    router = router_for(call, allowed_fails=0)
    for _ in range(9):
        with pytest.raises(UpstreamRejected):
            await router.run(group("a", "b"), call)
    assert set(call.used) == {"a", "b"}
    assert call.now == 0


async def test_nothing_is_retried_once_bytes_went_to_the_client() -> None:
    call = ScriptedCall(UpstreamGarbled("cut"))
    call.started = True
    with pytest.raises(UpstreamGarbled):
        await router_for(call).run(group("a", "b"), call)
    assert len(call.attempts) == 1


async def test_what_a_provider_forbids_to_one_client_puts_no_deployment_to_rest() -> None:
    members, now = group("a", "b"), ScriptedCall()
    router = router_for(now)
    for _ in range(20):
        refused = ScriptedCall(UpstreamForbidden("moderated"), UpstreamForbidden("moderated"))
        with pytest.raises(UpstreamForbidden):
            await router.run(members, refused)
        assert sorted(refused.used) == ["a", "b"]
    assert await router.run(members, now) in {"a", "b"}


@pytest.mark.parametrize(
    "error", [UpstreamGarbled("paid for"), UpstreamAuthFailed("wrong key"), UpstreamForbidden("not you")]
)
async def test_what_the_same_deployment_would_do_again_goes_to_another_or_ends(error: UpstreamError) -> None:
    alone = ScriptedCall(error)
    with pytest.raises(type(error)):
        await router_for(alone).run(group("a"), alone)
    assert len(alone.attempts) == 1
    both = ScriptedCall(error, error)
    with pytest.raises(type(error)):
        await router_for(both).run(group("a", "b"), both)
    assert sorted(both.used) == ["a", "b"]


async def test_retry_after_is_waited_for() -> None:
    call = ScriptedCall(UpstreamOverloaded("slow down", retry_after=20))
    await router_for(call).run(group("a"), call)
    assert [time for _, time, _ in call.attempts] == [0, 20]


async def test_a_retry_after_beyond_the_deadline_fails_now_and_is_told() -> None:
    call = ScriptedCall(UpstreamOverloaded("slow down", retry_after=70), seconds=60)
    with pytest.raises(UpstreamOverloaded) as caught:
        await router_for(call).run(group("a"), call)
    assert caught.value.retry_after == 70
    assert call.now == 0


async def test_the_configured_least_pause_holds_for_every_retry() -> None:
    call = ScriptedCall(unavailable())
    await router_for(call, retry_after=3.0).run(group("a", "b"), call)
    assert call.now == 3


async def test_a_disabled_deployment_is_skipped_and_costs_no_attempt() -> None:
    for _ in range(10):
        call = ScriptedCall(unavailable(), unavailable())
        call.refuses["a"] = ModelDisabled("no key")
        assert await router_for(call).run(group("a", "b", "c"), call) in {"b", "c"}
        assert "a" not in call.used


async def test_when_none_can_serve_the_clients_own_fault_is_told_first() -> None:
    call = ScriptedCall()
    call.refuses = {"a": ModelDisabled("no key"), "b": InvalidRequest("not spoken")}
    with pytest.raises(InvalidRequest):
        await router_for(call).run(group("a", "b"), call)
    call.refuses = {"a": ModelDisabled("no key")}
    with pytest.raises(ModelDisabled):
        await router_for(call).run(group("a"), call)


async def test_a_deployment_at_its_limit_rests_at_once_and_the_others_serve() -> None:
    call = ScriptedCall(UpstreamOverloaded("429"))
    router = router_for(call, cooldown=5.0)
    other = await router.run(group("a", "b"), call)
    limited = call.used[0]
    assert other != limited
    for _ in range(20):
        assert await router.run(group("a", "b"), call) == other
    call.now += 5
    await router.run(group("a", "b"), call)
    used = {await router.run(group("a", "b"), call) for _ in range(20)}
    assert used == {"a", "b"}


async def test_a_deployment_rests_after_more_failures_than_allowed() -> None:
    call = ScriptedCall(*(unavailable() for _ in range(4)))
    router = router_for(call, allowed_fails=1)
    call.retries = 0
    failed = []
    for _ in range(3):  # of two deployments, one has failed twice by now
        with pytest.raises(UpstreamUnavailable):
            await router.run(group("a", "b"), call)
        failed.append(call.used[-1])
    resting = max(set(failed), key=failed.count)
    call._outcomes.clear()
    assert resting not in {await router.run(group("a", "b"), call) for _ in range(20)}


async def test_a_lone_deployment_never_rests() -> None:
    call = ScriptedCall(*(UpstreamOverloaded("429") for _ in range(5)))
    call.retries = 0
    router = router_for(call, allowed_fails=0)
    for _ in range(5):
        with pytest.raises(UpstreamOverloaded):
            await router.run(group("a"), call)
    assert await router.run(group("a"), call) == "a"
    assert call.now == 0


async def test_a_deployment_whose_fellows_are_disabled_is_alone_too() -> None:
    call = ScriptedCall(*(UpstreamOverloaded("429") for _ in range(2)))
    call.refuses["b"] = ModelDisabled("no key")
    call.retries = 0
    router = router_for(call, allowed_fails=0)
    for _ in range(2):
        with pytest.raises(UpstreamOverloaded):
            await router.run(group("a", "b"), call)
    assert await router.run(group("a", "b"), call) == "a"
    assert call.now == 0


async def test_when_all_rest_a_retry_waits_for_the_one_that_recovers_soonest() -> None:
    call = ScriptedCall(UpstreamOverloaded("429", retry_after=30), UpstreamOverloaded("429", retry_after=10))
    router = router_for(call, retries=2)
    await router.run(group("a", "b"), call)
    assert call.used[2] == call.used[1]
    assert call.now == 10


async def test_when_all_rest_nobody_is_asked_and_the_client_is_told_at_once_when_to_come_back() -> None:
    call = ScriptedCall(UpstreamOverloaded("429", retry_after=30), UpstreamOverloaded("429", retry_after=10))
    router = router_for(call, retries=1)
    with pytest.raises(UpstreamOverloaded, match="429"):
        await router.run(group("a", "b"), call)
    with pytest.raises(UpstreamResting, match="every deployment of model 'gpt-4' rests") as caught:
        await router.run(group("a", "b"), call)
    assert (caught.value.retry_after, caught.value.fields().should_retry) == (10, None)
    assert (len(call.attempts), call.now) == (2, 0)


@pytest.mark.parametrize(
    ("own", "router", "stream", "limit"),
    [
        ({}, {}, False, 60.0),
        ({"timeout": 9.0}, {"timeout": 20.0}, False, 9.0),
        ({}, {"timeout": 20.0}, False, 20.0),
        ({"timeout": 900.0}, {}, False, 60.0),
        ({"stream_timeout": 4.0, "timeout": 9.0}, {}, True, 4.0),
        ({"stream_timeout": 4.0, "timeout": 9.0}, {}, False, 9.0),
        ({"timeout": 9.0}, {}, True, 9.0),
    ],
)
async def test_an_attempt_has_the_least_of_its_limits(
    own: dict[str, float], router: dict[str, float], stream: bool, limit: float
) -> None:
    call = ScriptedCall()
    call.stream = stream
    await router_for(call, **router).run(group("a", **own), call)
    assert call.attempts[0][2] == limit


async def test_a_timeout_at_the_deadline_is_the_deadlines() -> None:
    call = ScriptedCall(UpstreamTimeout("slow"), seconds=5, takes=5)
    with pytest.raises(DeadlineExceeded):
        await router_for(call).run(group("a", "b"), call)
    assert len(call.attempts) == 1


@pytest.mark.parametrize("error", [UpstreamTimeout("slow"), UpstreamTimeout("504", upstream_status=504)])
async def test_a_timeout_before_it_is_retried(error: UpstreamTimeout) -> None:
    call = ScriptedCall(error, takes=5)
    await router_for(call).run(group("a", "b"), call)
    assert len(call.attempts) == 2


async def test_no_provider_is_called_after_the_deadline() -> None:
    call = ScriptedCall(seconds=0)
    with pytest.raises(DeadlineExceeded):
        await router_for(call).run(group("a"), call)
    assert call.attempts == []


async def test_a_retry_that_would_begin_at_the_deadline_is_not_made() -> None:
    call = ScriptedCall(unavailable(), seconds=5, takes=4.98)
    with pytest.raises(UpstreamUnavailable):
        await router_for(call).run(group("a", "b"), call)
    assert len(call.attempts) == 1
