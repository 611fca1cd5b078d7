"""What a stage is: it takes a delivery and returns an outcome."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from pipeline.errors import PipelineError
from pipeline.job import Facts, Job
from pipeline.resting import Resting
from pipeline.rotation import Rotation

if TYPE_CHECKING:
    from pipeline.catalog import Catalog
    from pipeline.settings import Settings


_MAX_DEFERRALS: Final = 16


class Delivery(Protocol):
    """One handing of a job to this process. Its work runs under the job's deadline and is cancelled with the job."""

    job: Job
    body: bytes
    number: int
    """How many times the job has been delivered to this stage, this one included."""

    @property
    def remaining(self) -> float:
        """Seconds until the job's deadline."""

    @property
    def queued_ms(self) -> float:
        """Milliseconds the job waited for this stage."""

    async def send(self, data: bytes, facts: Facts | None = None, content_type: str = "") -> None:
        """
        Stream `data` to the waiting client; the first call of a delivery carries `facts` and the content type.

        Returns at once unless the process has too many unsent bytes. When nobody listens any more the delivery is
        cancelled.
        """

    def write(self, data: bytes, facts: Facts | None = None, content_type: str = "") -> bool:
        """Do as `send` does, without waiting; return False when the process has too many unsent bytes: await `room`."""

    async def room(self) -> None:
        """Wait until there is room for more bytes."""


class Forward(msgspec.Struct, frozen=True):
    """Hand the job on to the next stage of its slip, with this body."""

    job: Job
    body: bytes


class Done(msgspec.Struct, frozen=True):
    """The job is answered. After streaming, `body` is empty: the frames were the answer."""

    body: bytes = b""
    facts: Facts = Facts()
    status: int = 200
    content_type: str = "application/json"


class Defer(msgspec.Struct, frozen=True):
    """Put the job off for `seconds`; it comes back to this stage as a first delivery."""

    seconds: float
    job: Job
    otherwise: PipelineError | None = None
    """What its client gets where as many are put off as may be; None: the workers do not know the job's model."""


class Fail(msgspec.Struct, frozen=True):
    """The job ends in an error the stage foresaw."""

    error: PipelineError
    facts: Facts = Facts()


Outcome = Forward | Done | Defer | Fail


class Stage(Protocol):
    """
    One step of a job's way.

    A stage is built once per process and handles many deliveries at a time, so it keeps no per-job state. It
    returns an outcome for everything it foresees; what it raises is a bug, and ends in the dead letters.
    """

    async def handle(self, delivery: Delivery) -> Outcome:
        """Do the stage's work on one delivery."""


class StageContext(msgspec.Struct, frozen=True):
    """What a stage is built from; all of it is read once, at start, but for keys."""

    settings: Settings
    catalog: Catalog
    consumer: str
    """Name of this process in the stage's consumer group."""
    restart: Callable[[str], None]
    """Ask for a drain and a restart of this process, saying why."""
    rotation: Rotation = msgspec.field(default_factory=Rotation)
    """Tells who holds keys that they changed."""
    resting: Resting = msgspec.field(default_factory=Resting)
    """Takes what says which models rest for their provider, and hears of other processes."""


class StageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A stage as its one file exports it, under the name `stage`."""

    name: str
    max_deliveries: int
    """After this many deliveries without an outcome the job is a dead letter."""
    slots: Callable[[Settings], int]
    """How many deliveries one process handles at a time."""
    open: Callable[[StageContext], AbstractAsyncContextManager[Stage]]
    poisoned: Callable[[str], PipelineError]
    """The error for a job that took its process down every time; the argument is the job's id."""


def put_off(job: Job) -> Defer | None:
    """
    Return a job to its stage, for a worker whose configuration knows its model; None when it has waited for 15 s.

    Often, for of workers old and new any may be the next to get it, and at odd times: in step with the reads of the
    stream, the same worker would get it again and again.
    """
    if job.deferrals >= _MAX_DEFERRALS:
        return None
    pause = min(1.0, 0.25 * 2.0**job.deferrals) * random.uniform(0.5, 1.5)  # noqa: S311 - spreads, keeps no secret
    return Defer(pause, msgspec.structs.replace(job, deferrals=job.deferrals + 1))
