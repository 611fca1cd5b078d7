"""Which deployments rest after failures, as far as this process knows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from pipeline import metrics
from pipeline.logs import logger
from pipeline.settings import RouterSettings
from workers.providers._errors import LONGEST_REST

WINDOW: Final = 60.0
"""Seconds for which a failure counts."""

_log = logger("routing")


class Cooldowns(Protocol):
    """Remembers failures. A shared one may be fed by other workers' too; asking it never waits."""

    def rest(self, deployment_id: str) -> float:
        """Return the seconds a deployment still rests; 0 when it may be used."""

    def failed(self, deployment_id: str, *, at_once: bool, seconds: float | None) -> None:
        """Count a failure. `at_once`: one is enough to rest; `seconds`: what the provider asked for."""


class LocalCooldowns:
    """Cooldowns in this process's memory: one worker's failures, forgotten when it ends."""

    def __init__(self, settings: RouterSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowed = settings.allowed_fails
        self._seconds = settings.cooldown
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}
        self._until: dict[str, float] = {}

    def rest(self, deployment_id: str) -> float:
        """Return the seconds a deployment still rests; 0 when it may be used."""
        until = self._until.get(deployment_id)
        if until is None:
            return 0.0
        left = until - self._clock()
        if left <= 0:
            del self._until[deployment_id]
            return 0.0
        return left

    def failed(self, deployment_id: str, *, at_once: bool, seconds: float | None) -> None:
        """Count a failure; more than `allowed_fails` within a minute begin a rest, and so does `at_once`."""
        now = self._clock()
        failures = self._failures.setdefault(deployment_id, deque())
        failures.append(now)
        while failures[0] <= now - WINDOW:
            failures.popleft()
        if not at_once and len(failures) <= self._allowed:
            return
        rest = self._seconds if seconds is None else max(min(seconds, LONGEST_REST), self._seconds)
        failures.clear()
        if now + rest > self._until.get(deployment_id, 0.0):
            self._until[deployment_id] = now + rest
            metrics.COOLDOWNS[deployment_id,].inc()
            _log.warning("deployment cools down", deployment=deployment_id, seconds=round(rest, 3))
