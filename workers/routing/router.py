"""Which deployment of a group gets an attempt, and what happens after it failed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Final, Protocol, TypeVar

import anyio

from pipeline import metrics
from pipeline.catalog import Group
from pipeline.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelDisabled,
    UpstreamError,
    UpstreamForbidden,
    UpstreamOverloaded,
    UpstreamResting,
    UpstreamTimeout,
)
from pipeline.logs import logger
from pipeline.settings import Deployment, RouterSettings
from workers.providers._remaining import Remaining
from workers.routing.cooldown import Cooldowns

MAX_RETRIES: Final = 10
"""Whatever a client asks for."""
_BACKOFF: Final = 0.5
"""Seconds the first pause before a retry may have; each further one may have twice as many, up to `_MAX_BACKOFF`."""
_MAX_BACKOFF: Final = 8.0
_NOTHING_LEFT: Final = 0.05
"""Seconds to the deadline with which no attempt is worth making; a timeout that close to it is the deadline's."""

_log = logger("routing")

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

Attempt = Callable[[float], Awaitable[T]]
"""One provider call, ready to run within so many seconds: for a stream, until its first byte and between bytes."""


class Call(Protocol[T_co]):
    """What is to be routed: one job, as it is sent to whatever deployment the router picks."""

    id: str
    """The job's, for the log."""
    retries: int | None
    """The client's `num_retries`."""
    stream: bool
    started: bool
    """Bytes have gone to the client, so no other attempt may follow."""

    @property
    def remaining(self) -> float:
        """Seconds until nobody waits any longer."""

    def left(self) -> Remaining | None:
        """Return what the last attempt's answer said is left of the provider's limit."""

    def prepare(self, deployment: Deployment) -> Attempt[T_co]:
        """Return the attempt. Raises ModelDisabled or InvalidRequest when the deployment cannot serve this job."""


class Router:
    """Chooses among deployments as LiteLLM's simple-shuffle does, and retries within the job's deadline."""

    _longest_pause: ClassVar[float] = math.inf

    def __init__(
        self,
        settings: RouterSettings,
        cooldowns: Cooldowns,
        chance: random.Random,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        limited: Callable[[str, float | None], None] = lambda *_: None,
    ) -> None:
        """Make one; `limited` is told of a deployment at its provider's limit, and for how long as far as known."""
        self._settings = settings
        self._cooldowns = cooldowns
        self._chance = chance
        self._sleep = sleep
        self._limited = limited
        self._log = _log.bind()  # said for every attempt, mostly in vain: a logger that is bound costs a tenth

    async def run(self, group: Group, call: Call[T]) -> T:
        """
        Return the first attempt's answer that is one.

        Raises the last attempt's error, DeadlineExceeded, and UpstreamResting when nobody may be asked.
        """
        tried: set[str] = set()
        failures = 0
        deployment, attempt, wait = self._next(group, call, tried)
        if wait:  # waiting would take slots from models that are well, and all who waited would call at once
            raise self._resting(group, deployment, wait)
        while True:
            if wait:
                await self._sleep(wait)
            try:
                answer = await self._make(deployment, attempt, call)
            except UpstreamError as error:
                failures += 1
                tried.add(deployment.id)
                self._note(error, deployment, group, call, failures)
                if call.started or not error.retryable or failures > self._retries(deployment, call):
                    raise
                failed = deployment
                deployment, attempt, wait = self._next(group, call, tried)
                if not error.same_again and deployment.id in tried:
                    raise
                wait = self._pause(error, wait, failures, another=deployment.id not in tried, same=deployment is failed)
                if wait + _NOTHING_LEFT >= call.remaining or wait > self._longest_pause:
                    raise
            else:
                self._log.debug("attempt succeeded", job=call.id, deployment=deployment.id, number=failures + 1)
                return answer

    def _resting(self, group: Group, deployment: Deployment, wait: float) -> Exception:
        """Return what to raise while all rest, `deployment` for the shortest time."""
        return resting(group.name, wait)

    async def _make(self, deployment: Deployment, attempt: Attempt[T], call: Call[T]) -> T:
        began = time.monotonic()
        try:
            answer = await self._try(deployment, attempt, call)
        except UpstreamError as error:
            _count(deployment, began, error.code)
            raise
        _count(deployment, began)
        return answer

    async def _try(self, deployment: Deployment, attempt: Attempt[T], call: Call[T]) -> T:
        remaining = call.remaining
        if remaining <= 0:
            raise DeadlineExceeded("the deadline passed before a provider could be called", stage="dispatch")
        try:
            return await attempt(min(self._timeout(deployment, stream=call.stream), remaining))
        except UpstreamTimeout as error:
            if error.upstream_status or call.remaining > _NOTHING_LEFT:
                raise
            raise DeadlineExceeded(
                "the provider did not answer before the request's deadline",
                hint="raise the request's `timeout`, or `request_timeout`",
                stage="dispatch",
            ) from error

    def _timeout(self, deployment: Deployment, *, stream: bool) -> float:
        limits = (deployment.stream_timeout if stream else None, deployment.timeout, self._settings.timeout)
        return next((limit for limit in limits if limit is not None), math.inf)

    def _retries(self, deployment: Deployment, call: Call[T]) -> int:
        asked = (call.retries, deployment.retries, self._settings.retries)
        return max(0, min(MAX_RETRIES, next(count for count in asked if count is not None)))

    def _note(self, error: UpstreamError, deployment: Deployment, group: Group, call: Call[T], number: int) -> None:
        """Log a failed attempt, and count it against its deployment if the deployment is to blame."""
        self._log.debug(
            "attempt failed",
            job=call.id,
            deployment=deployment.id,
            number=number,
            code=error.code,
            upstream_status=error.upstream_status,
        )
        at_once = isinstance(error, UpstreamOverloaded)
        if at_once:
            self._limited(deployment.id, error.retry_after)
        if not self._to_blame(error) or not self._has_others(deployment, group, call):
            return  # a deployment that is alone never rests: that would only refuse what might be served
        self._cooldowns.failed(deployment.id, at_once=at_once, seconds=error.retry_after)

    def _to_blame(self, error: UpstreamError) -> bool:
        """Whether an error is its deployment's fault; what is forbidden may be so for what this client sends."""
        return error.retryable and not isinstance(error, UpstreamForbidden)

    def _has_others(self, deployment: Deployment, group: Group, call: Call[T]) -> bool:
        for other in group.deployments:
            if other.id != deployment.id:
                try:
                    call.prepare(other)
                except (ModelDisabled, InvalidRequest):
                    continue
                return True
        return False

    def _pause(self, error: UpstreamError, wait: float, failures: int, *, another: bool, same: bool) -> float:
        """Return the seconds before the next attempt; a deployment not tried yet need not be waited for."""
        pause = max(wait, self._settings.retry_after)
        if another:
            return pause
        backoff = self._chance.uniform(0, min(_MAX_BACKOFF, _BACKOFF * 2.0 ** (failures - 1)))
        return max(pause, backoff, (error.retry_after or 0.0) if same else 0.0)

    def _next(self, group: Group, call: Call[T], tried: set[str]) -> tuple[Deployment, Attempt[T], float]:
        """Return a deployment that can serve the call, its attempt, and the seconds it still rests."""
        candidates = group.deployments
        refusals: list[ModelDisabled | InvalidRequest] = []
        while candidates:
            deployment, rest = self._choose(candidates, tried)
            try:
                return deployment, call.prepare(deployment), rest
            except (ModelDisabled, InvalidRequest) as refusal:
                refusals.append(refusal)
                candidates = tuple(other for other in candidates if other is not deployment)
        # What the client can change comes before what only the operator can.
        raise next((refusal for refusal in refusals if isinstance(refusal, InvalidRequest)), refusals[0])

    def _choose(self, candidates: Sequence[Deployment], tried: set[str]) -> tuple[Deployment, float]:
        if len(candidates) == 1:
            return candidates[0], self._cooldowns.rest(candidates[0].id)
        rests = {candidate.id: self._cooldowns.rest(candidate.id) for candidate in candidates}
        awake = [candidate for candidate in candidates if not rests[candidate.id]]
        if not awake:
            soonest = min(candidates, key=lambda candidate: rests[candidate.id])
            return soonest, rests[soonest.id]
        fresh = [candidate for candidate in awake if candidate.id not in tried]
        return self._shuffle(fresh or awake), 0.0

    def _shuffle(self, candidates: Sequence[Deployment]) -> Deployment:
        """Return one by `weight`, else `rpm`, else `tpm` (the first that any of them has), else any."""
        for weights in (
            [candidate.weight for candidate in candidates],
            [candidate.rpm for candidate in candidates],
            [candidate.tpm for candidate in candidates],
        ):
            if any(weights):
                return self._chance.choices(candidates, [weight or 0 for weight in weights])[0]
        return self._chance.choice(candidates)


def resting(model: str, seconds: float) -> UpstreamResting:
    """Return the error of a job for which nobody may be asked before so many seconds are over."""
    return UpstreamResting(
        f"every deployment of model {model!r} rests after failures",
        hint="ask again after `Retry-After`",
        retry_after=seconds,
    )


def _count(deployment: Deployment, began: float, error_code: str = "") -> None:
    """Count one attempt; deployments and codes are from the configuration and the code, so labels have a bound."""
    metrics.ATTEMPTS[deployment.id, "failed" if error_code else "ok"].inc()
    metrics.ATTEMPT_SECONDS[deployment.id,].observe(time.monotonic() - began)
    if error_code:
        metrics.ATTEMPT_ERRORS[deployment.id, error_code].inc()
