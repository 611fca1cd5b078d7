"""How a batch comes along, for those who watch it: its clients read it in the batch, under the key `promptmill`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Latency(msgspec.Struct, frozen=True):
    """Provider time of recent answers, in milliseconds."""

    p50: float
    p99: float


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner of a batch knew when it wrote its record the last time."""

    open: int = 0
    """Lines under way or resting."""
    resting: int = 0
    """Lines that wait for a later try."""
    dead: int = 0
    """Lines that are dead letters: they may be replayed until the others are done."""
    retries: int = 0
    """How often a line was fed again."""
    latency_ms: Latency | None = None
    waiting: Mapping[str, int] = {}
    """Lines of any batch that wait for a worker, by stage."""
    backing_off: Mapping[str, float] = {}
    """Seconds for which models rest whose provider is at its limit."""
    causes: Mapping[str, int] = {}
    """How often a line was put off, by the code of the error."""
    failures: Mapping[str, int] = {}
    """Lines that failed, by the code of the error."""
    paused: str | None = None
    """Why no lines are fed at present."""
