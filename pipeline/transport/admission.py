"""Admission: jobs that arrive while one flush is under way go out together in the next, each exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
import msgspec
from redis.exceptions import OutOfMemoryError

from pipeline.errors import BacklogFull, PipelineError, TransportError, TransportFull, TransportUnavailable
from pipeline.job import LANES, Job, encode
from pipeline.settings import IngressSettings
from pipeline.transport import keyspace
from pipeline.transport.connection import ADMIT, ANSWER_TIMEOUT, Backoff, Command, Link, server_full
from pipeline.transport.pace import Pace
from pipeline.transport.writes import INLINE

FLUSH_JOBS: Final = 256
FLUSH_BYTES: Final = 1024 * 1024
TRIES: Final = 3
RETRY_PAUSE: Final = 0.25
"""Longest pause between tries: a client waits for all of them before it is refused."""

LOOK_AGAIN: Final = 0.05
"""Seconds between two looks at how full the stages are while jobs are refused: nothing else would tell of room."""

WAIT_SHARE: Final = 0.5
"""Share of its time a job may wait for its turn; the rest is for the work, or its provider call would be in vain."""


class Load(msgspec.Struct):
    """Jobs that wait for a stage's lane, and the bytes of bodies it holds."""

    backlog: int = 0
    held_bytes: int = 0


class _Waiting:
    """A job on its way into Redis."""

    __slots__ = ("batch", "body", "done", "entry", "error", "job")

    def __init__(self, job: Job, body: bytes) -> None:
        self.job = job
        self.body = body
        self.done = asyncio.Event()  # one a job, and anyio's costs 2 µs more
        self.entry = ""
        self.batch = 0
        self.error: PipelineError | None = None


class Admission:
    """A process's one way onto the stage streams: that of requests at an ingress, and of lines at a feed."""

    def __init__(
        self,
        link: Link,
        consumer: str,
        stages: Sequence[str],
        limits: IngressSettings,
        lost: Callable[[int], None],
    ) -> None:
        self._link = link
        self._lost = lost
        """Called with the last batch that is still there when the server turns out to have lost later ones."""
        self._consumer = consumer
        self._limits = limits
        self._pairs = [(stage, lane) for stage in stages for lane in LANES]
        self.loads = {pair: Load() for pair in self._pairs}
        """What the stages hold, as last heard."""
        self._unsent = {pair: Load() for pair in self._pairs}
        """What this process holds for them."""
        self.pace = Pace()
        self.processes = 1
        """Ingress processes that share the pipeline."""
        self._refused = anyio.Event()
        self._server_full = False
        self._queue: list[_Waiting] = []
        self._wake = anyio.Event()
        self._batch = 0
        self._admitted = 0
        self._backoff = Backoff(most=RETRY_PAUSE)

    def check(self, stages: Sequence[str], lane: str, size: int, seconds: float) -> None:
        """
        Raise BacklogFull when a stage on the way is full, or a job with `seconds` left would wait for too long.

        Raises TransportFull while the server is known to be full.
        """
        if self._server_full:
            self._refused.set()
            raise server_full()
        waiting = 0
        for stage in stages:
            heard = self.loads.get((stage, lane))
            if heard is None:
                continue
            unsent = self._unsent[stage, lane]
            backlog, held = heard.backlog + unsent.backlog, heard.held_bytes + unsent.held_bytes
            if backlog >= self._limits.max_backlog:
                raise self._full(stage, f"{backlog} jobs wait", "max_backlog", backlog)
            if held + size > self._limits.max_backlog_bytes:
                raise self._full(stage, f"{held} bytes are held", "max_backlog_bytes", backlog)
            waiting += backlog
        wait = self.pace.beyond(seconds * WAIT_SHARE, waiting, self.processes)
        if wait:
            raise self._refusal(
                f"{waiting} jobs wait before it, and its turn would come too late for a request of {seconds:.0f} s",
                "Nothing ran; try again later, or give it a longer `timeout`. More workers shorten the wait.",
                wait,
                stages[-1],
            )

    def _full(self, stage: str, fact: str, setting: str, backlog: int) -> BacklogFull:
        wait = self.pace.wait(backlog, self.processes)
        return self._refusal(
            f"the {stage} stage is full: {fact}",
            f"Nothing ran; try again later. More workers (`--scale {stage}=N`) or `{setting}` raise the limit.",
            self.pace.waited if wait is None else wait,
            stage,
        )

    def _refusal(self, message: str, hint: str, seconds: float, stage: str) -> BacklogFull:
        self._refused.set()
        return BacklogFull(message, hint=hint, retry_after=min(60.0, max(1.0, seconds)), stage=stage)

    async def watch(self) -> None:
        """Look how full the stages are while jobs are refused, for ever."""
        while True:
            await self._refused.wait()
            self._refused = anyio.Event()
            await anyio.sleep(LOOK_AGAIN)
            try:
                await self.refresh()
            except TransportUnavailable:
                continue  # the beat finds out

    async def add(self, job: Job, body: bytes) -> tuple[str, int]:
        """
        Put a job on its first stage's stream; return its entry id, '' when that got lost, and its batch's number.

        Raises TransportFull when nothing ran, TransportUnavailable when Redis cannot be reached.
        """
        waiting = _Waiting(job, body)
        self._count(waiting, 1)
        self._queue.append(waiting)
        self._wake.set()
        try:
            await waiting.done.wait()
        except BaseException:  # the client left; what is not under way yet need not run at all
            if waiting in self._queue:
                self._queue.remove(waiting)
                self._count(waiting, -1)
            raise
        if waiting.error is not None:
            raise waiting.error
        return waiting.entry, waiting.batch

    async def add_all(self, jobs: Sequence[tuple[Job, bytes]]) -> list[int]:
        """Put jobs on their first stages' streams; return each one's batch, 0 where it is not known to have got in."""
        added = [_Waiting(job, body) for job, body in jobs]
        for waiting in added:
            self._count(waiting, 1)
        self._queue += added
        self._wake.set()
        for waiting in added:
            await waiting.done.wait()
        return [0 if waiting.error is not None else waiting.batch for waiting in added]

    def _count(self, waiting: _Waiting, sign: int) -> None:
        unsent = self._unsent[waiting.job.stages_left[0], waiting.job.lane]
        unsent.backlog += sign
        unsent.held_bytes += sign * len(waiting.body)

    async def run(self) -> None:
        """Flush what waits, for ever."""
        while True:
            if self._queue:
                await self._flush(self._take())
            else:
                self._wake = anyio.Event()
                await self._wake.wait()

    def _take(self) -> list[_Waiting]:
        size = 0
        for count, waiting in enumerate(self._queue, start=1):
            size += len(waiting.body)
            if count == FLUSH_JOBS or size > FLUSH_BYTES:
                break
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken

    async def _flush(self, taken: list[_Waiting]) -> None:
        error: PipelineError | None = None
        try:
            entries = await self._send(taken)
        except TransportError as failure:
            error, entries = failure, [""] * len(taken)
            self._server_full = isinstance(failure, TransportFull)
        for waiting, entry in zip(taken, entries, strict=True):
            self._count(waiting, -1)
            waiting.entry, waiting.batch = entry, self._batch
            waiting.error = waiting.error or error
            waiting.done.set()

    async def _send(self, taken: list[_Waiting]) -> list[str]:
        """Send a batch under its number: a retry after a lost reply finds it admitted and adds nothing."""
        bodies, arguments = _arguments(taken, self._pairs)
        self._batch += 1
        replies = await self._converse((*(command for _, command in bodies), self._command(len(taken), arguments)))
        try:
            _raise_refusal(replies[-1])
        except TransportError:
            await self._unlink(bodies)
            raise
        for (waiting, _), stored in zip(bodies, replies, strict=False):
            if isinstance(stored, Exception):  # the memory limit stood between the body and the job
                waiting.error = server_full()
        last, *rest = replies[-1]
        self._remember(last, self._batch)
        self._learn(rest[len(taken) :])
        return [entry.decode() for entry in rest[: len(taken)]]

    async def _converse(self, commands: tuple[Command, ...]) -> list[Any]:
        limit = anyio.current_time() + ANSWER_TIMEOUT  # what answers nothing at all is not asked three times
        for left in reversed(range(TRIES)):
            try:
                replies = await self._link.call(*commands)
            except TransportUnavailable:
                await self._backoff.pause()  # also after the last try: clients that come meanwhile must not spin
                if not left or anyio.current_time() > limit:
                    raise
            else:
                self._backoff.reset()
                break
        return replies

    async def _unlink(self, bodies: list[tuple[_Waiting, Command]]) -> None:
        """Remove the bodies of refused jobs."""
        if bodies:
            try:
                await self._link.call(("UNLINK", *(command[1] for _, command in bodies)))
            except TransportUnavailable:
                return  # they expire

    async def refresh(self) -> None:
        """Ask how full every stage is, adding nothing. Raises TransportUnavailable."""
        try:
            last, *rest = await self._link.run(self._command(0, []))
        except TransportFull:  # there: what is known of the stages stands until it takes jobs again
            self._server_full = True
            return
        self._remember(last, last)
        self._learn(rest)

    def _remember(self, last: int, batch: int) -> None:
        """Take note that the server remembers `batch`; before, it remembered `last`."""
        if last < self._admitted:  # flushed, or restarted without its last second
            self._lost(last)
        self._admitted = batch

    def _command(self, count: int, arguments: list[Any]) -> Command:
        keys = [keyspace.admitted(self._consumer)]
        for stage, lane in self._pairs:
            keys += [keyspace.jobs(stage, lane), keyspace.held_bytes(stage, lane)]
        return ADMIT(keys, self._batch, keyspace.ADMITTED_TTL_MS, count, *arguments)

    def _learn(self, numbers: list[int]) -> None:
        self._server_full = False
        for pair, backlog, held in zip(self._pairs, numbers[::2], numbers[1::2], strict=True):
            self.loads[pair] = Load(max(0, int(backlog)), max(0, int(held)))


def _arguments(taken: list[_Waiting], pairs: list[tuple[str, str]]) -> tuple[list[tuple[_Waiting, Command]], list[Any]]:
    """Return the commands that store large bodies, each with whose it is, and the script's arguments."""
    bodies: list[tuple[_Waiting, Command]] = []
    arguments: list[Any] = []
    for waiting in taken:
        job, body, reference = waiting.job, waiting.body, ""
        if len(body) > INLINE:
            reference = keyspace.body(job.id, "0")
            lifetime = max(0, job.deadline - job.admitted) + keyspace.BODY_EXTRA_MS
            bodies.append((waiting, ("SET", reference, body, "PX", lifetime)))
        index = pairs.index((job.stages_left[0], job.lane)) + 1
        arguments += [index, encode(job), b"" if reference else body, reference, len(body)]
    return bodies, arguments


def _raise_refusal(reply: Any) -> None:
    if isinstance(reply, Exception):
        if isinstance(reply, OutOfMemoryError):
            raise server_full()
        raise TransportUnavailable(f"Redis refused the admission: {reply}", retry_after=1.0)
