"""The batch lane's router: it calls at the pace that providers bear, and never waits for long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Final, TypeVar

from pipeline import metrics
from pipeline.catalog import Group
from pipeline.errors import (
    DeadlineExceeded,
    PipelineError,
    UpstreamBusy,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamTimeout,
)
from pipeline.settings import Deployment
from workers.routing.cooldown import Cooldowns
from workers.routing.gate import PATIENCE, Gate
from workers.routing.router import Attempt, Call, Router

T = TypeVar("T")

_OVERLOADS: Final = (UpstreamOverloaded, UpstreamBusy, UpstreamTimeout)
"""What too many calls cause: live calls, which are few, need not rest for it."""


NEWS: Final = 0.5
"""Seconds by which a rest is longer than the known one that another process tells of something new."""


class Gates(dict[str, Gate]):
    """The gates of all deployments, by id; satisfies `Cooldowns` for the batch lane."""

    def __init__(
        self,
        cooldowns: Cooldowns,
        chance: random.Random,
        limits: Mapping[str, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make one; `limits` are those configured, in calls a minute, by the deployment's id."""
        super().__init__()
        self._limits = limits
        self._cooldowns = cooldowns
        self._chance = chance
        self._clock = clock

    def __missing__(self, deployment_id: str) -> Gate:
        gate = self[deployment_id] = Gate(self._clock, self._chance, self._limits.get(deployment_id))
        metrics.BATCH_PACE[deployment_id,].set_function(lambda: gate.pace.rate)
        metrics.BATCH_LIMIT[deployment_id,].set_function(lambda: gate.limit.value)
        metrics.BATCH_REST_SECONDS[deployment_id,].set_function(lambda: gate.pace.rest)
        return gate

    def rest(self, deployment_id: str) -> float:
        """Return the seconds until a batch call may begin; 0 when it can wait for it in its slot."""
        delay = self[deployment_id].delay()
        return max(delay if delay > PATIENCE else 0.0, self._cooldowns.rest(deployment_id))

    def failed(self, deployment_id: str, *, at_once: bool, seconds: float | None) -> None:
        """Count a failure."""
        self._cooldowns.failed(deployment_id, at_once=at_once, seconds=seconds)

    def resting(self, deployments: Iterable[Deployment]) -> dict[str, float]:
        """Return the models of which a deployment rests, and for how many seconds."""
        found: dict[str, float] = {}
        for deployment in deployments:
            gate = self.get(deployment.id)
            if gate is not None and (rest := gate.pace.rest):
                found[deployment.model_name] = max(round(rest, 1), found.get(deployment.model_name, 0.0))
        return found

    def rests(self) -> dict[str, float]:
        """Return the deployments that rest, by id, and for how many seconds."""
        return {name: rest for name, gate in self.items() if (rest := gate.pace.rest)}

    def heed(self, resting: Mapping[str, float]) -> None:
        """Hold the batch lane back for so many seconds: live calls of other processes met the provider's limit."""
        for name, seconds in resting.items():
            if seconds > self[name].pace.rest + NEWS:
                self.hold(name, seconds)

    def hold(self, deployment_id: str, retry_after: float | None) -> None:
        """Hold the batch lane back: a live call met the provider's limit."""
        self[deployment_id].hold(retry_after)


class BatchRouter(Router):
    """
    Routes calls of the batch lane: each attempt goes through its deployment's gate.

    Who would have to wait for long gets Postponed. A refusal (429) takes none of the retries: it leads to a rest.
    """

    _longest_pause: ClassVar[float] = PATIENCE
    _cooldowns: Gates

    def _resting(self, group: Group, deployment: Deployment, wait: float) -> Exception:
        return self._cooldowns[deployment.id].postponed(wait)

    async def _make(self, deployment: Deployment, attempt: Attempt[T], call: Call[T]) -> T:
        gate = self._cooldowns[deployment.id]
        while True:  # after a refusal it waits at its gate once more
            ticket = await gate.enter()
            error: PipelineError | None = None  # what the gate learns from; nothing from who was cancelled
            try:
                return await super()._make(deployment, attempt, call)
            except UpstreamOverloaded as refused:
                error = refused
            except (UpstreamError, DeadlineExceeded) as failed:
                error = failed
                raise
            finally:
                gate.leave(ticket, error, call.left())

    def _to_blame(self, error: UpstreamError) -> bool:
        return super()._to_blame(error) and not isinstance(error, _OVERLOADS)
