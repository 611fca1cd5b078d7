"""A delivery as the worker process holds it: the job, how to answer it, and why its work may have to end."""

from __future__ import annotations

import asyncio
import enum
import itertools
import secrets
from typing import TYPE_CHECKING, Final

from pipeline.job import Facts, Frame, Job
from pipeline.transport.clock import ServerClock

if TYPE_CHECKING:
    from pipeline.transport.writer import Writer


_PROCESS: Final = secrets.token_hex(6)
_runs: Final = itertools.count()
"""Runs of this process; behind its random name each is unique, and cheaper than random bytes of its own."""


class End(enum.Enum):
    """Why a delivery's work was cancelled from outside."""

    CANCELLED = "the client left"
    LOST = "another consumer owns it"
    STOPPED = "this process stops"
    EXPIRED = "its deadline passed"
    UNHEARD = "its frames have nowhere to go"
    ORPHANED = "the ingress process that asked is gone"


class Source:
    """Where the entry of a delivery stands in Redis."""

    __slots__ = ("entry", "lane", "reference", "size", "stage")

    def __init__(self, stage: str, lane: str, entry: str, size: int, reference: str) -> None:
        self.stage = stage
        self.lane = lane
        self.entry = entry
        self.size = size
        """Bytes of the body, as counted at admission."""
        self.reference = reference
        """Key of the body when it did not fit into the entry, else empty."""


class HeldDelivery:
    """Satisfies `pipeline.stage.Delivery`; made by the stage stream, ended by the runner."""

    __slots__ = (
        "_clock",
        "_task",
        "_timer",
        "_writer",
        "body",
        "end",
        "fenced",
        "frames",
        "job",
        "number",
        "queued_ms",
        "run",
        "settled",
        "source",
    )

    def __init__(self, job: Job, body: bytes, number: int, source: Source, clock: ServerClock, writer: Writer) -> None:
        self.job = job
        self.body = body
        self.number = number
        self.source = source
        self.run = f"{_PROCESS}{next(_runs):x}"
        self.frames = 0
        """Frames handed to the writer so far."""
        self.end: End | None = None
        self.settled = False
        """Whether its outcome is with the writer; it is held until that is written, so that it is not claimed."""
        self.fenced = True
        """Whether the group knows who owns it; False once the group was lost."""
        self.queued_ms = float(max(0, clock.now() - (job.since or job.admitted)))
        self._clock = clock
        self._writer = writer
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def remaining(self) -> float:
        """Seconds until the job's deadline, by the server's clock."""
        return (self.job.deadline - self._clock.now()) / 1000

    def ended(self) -> bool:
        """Whether its work was cancelled from outside, for the reason in `end`."""
        return self.end is not None

    def begin(self) -> None:
        """
        Let `stop` and the deadline take hold of the calling task, until `finish`.

        Not a cancel scope: with its timer that is 8 µs a delivery, and this is 2.5.
        """
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(self.remaining, self.stop, End.EXPIRED)

    def finish(self) -> None:
        """Let go of the task: nothing cancels it any more."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()

    def stop(self, why: End) -> None:
        """Cancel the work; the first reason stands."""
        if self.end is None:
            self.end = why
            if self._task is not None:
                self._task.cancel()

    async def send(self, data: bytes, facts: Facts | None = None, content_type: str = "") -> None:
        """Hand a frame to the writer; waits only while too many bytes are unsent."""
        if not self.write(data, facts, content_type):
            await self.room()

    def write(self, data: bytes, facts: Facts | None = None, content_type: str = "") -> bool:
        """Hand a frame to the writer; return whether there is room for more."""
        frame = Frame(self.job.id, self.run, self.frames, data, facts, content_type)
        self.frames += 1
        self._writer.frame(self, frame)
        return not self._writer.congested

    async def room(self) -> None:
        """Wait until the writer has room."""
        await self._writer.relieved()
