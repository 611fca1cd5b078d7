"""The ingress's transport without Redis: keeps what was submitted, and answers as a test scripts it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import anyio

from pipeline.errors import Cancelled, PipelineError
from pipeline.job import Facts, Frame, Job, Reply
from pipeline.transport.client import Answer, FleetStatus
from pipeline.transport.overview import Overview, ServerOverview, StageOverview
from pipeline.transport.registry import ProcessInfo

Item = Frame | Answer | PipelineError
Script = Callable[[Job, bytes], Iterable[Item]]

FACTS = Facts(model="gpt-4", deployment="east", attempts=2, queue_ms=1.25, provider_ms=30.0, completion_tokens=7)


def answer(body: bytes = b'{"object":"chat.completion"}', facts: Facts = FACTS, **reply: object) -> Answer:
    """Return a terminal reply; keywords are fields of `Reply`."""
    return Answer(Reply(id="x", facts=facts, **reply), body)  # type: ignore[arg-type]


def frame(data: bytes, seq: int = 0, facts: Facts | None = FACTS, content_type: str = "text/event-stream") -> Frame:
    """Return a frame; the first also carries facts."""
    return Frame("x", "run", seq, data, facts if seq == 0 else None, content_type if seq == 0 else "")


class FakeWaiter:
    """A waiter whose items are put by the test."""

    def __init__(self, job: Job, items: Iterable[Item]) -> None:
        self.id = job.id
        self.cancelled = False
        self.answered = False
        self.closed = False
        self.pushed = self.unread = 0
        self.cut: Callable[[], None] | None = None
        self._items = deque(items)
        self._arrived = anyio.Event()
        self._push: Callable[[bytes], bool] | None = None

    async def next(self, push: Callable[[bytes], bool] | None = None) -> Frame | Answer:
        while not self._items:
            if self.cancelled:
                raise Cancelled("the client left")
            self._arrived = anyio.Event()
            self._push = push
            await self._arrived.wait()
        item = self._items.popleft()
        if isinstance(item, PipelineError):
            raise item
        self.answered = isinstance(item, Answer)
        return item

    def put(self, *items: Item) -> None:
        for item in items:
            if isinstance(item, Frame) and self._push is not None and self._push(item.data):
                self.pushed += 1
            else:
                self._push = None
                self._items.append(item)
        self._arrived.set()

    def close(self) -> None:
        self.closed = True

    def cancel(self) -> None:
        if not self.answered:
            self.cancelled = True
            self._arrived.set()


class FakeTransport:
    """Satisfies what the ingress uses of `TransportClient`; `script` says what comes back, by default one answer."""

    def __init__(self, script: Script | None = None) -> None:
        self.consumer = "ingress-test"
        self.script: Script = script or (lambda _job, _body: [answer()])
        self.jobs: list[Job] = []
        self.bodies: list[bytes] = []
        self.waiters: list[FakeWaiter] = []
        self.checked: list[tuple[Sequence[str], str, int]] = []
        self.refusal: PipelineError | None = None
        self.fleet = FleetStatus(True, {"resolve": 1, "dispatch": 2}, {"dispatch": 3}, {"dispatch": 4}, 0)
        self.samples: list[tuple[str, bytes]] | PipelineError = []

    def now(self) -> int:
        return int(time.time() * 1000)

    def time(self) -> float:
        return time.time()

    def check(self, stages: Sequence[str], lane: str, size: int) -> None:
        self.checked.append((stages, lane, size))
        if self.refusal is not None:
            raise self.refusal

    async def submit(self, job: Job, body: bytes) -> FakeWaiter:
        self.jobs.append(job)
        self.bodies.append(body)
        waiter = FakeWaiter(job, self.script(job, body))
        self.waiters.append(waiter)
        return waiter

    def status(self) -> FleetStatus:
        return self.fleet

    async def overview(self) -> Overview:
        if isinstance(self.samples, PipelineError):
            raise self.samples
        lane = StageOverview(
            stage="dispatch", lane="live", backlog=3, pending=2, delayed=1, oldest_seconds=9, lag_seconds=8, bytes=7
        )
        worker = ProcessInfo(consumer="w", role="worker", stages=("dispatch",))
        server = ServerOverview(name="valkey", memory=1000, memory_limit=2000)
        return Overview(processes=(worker,), stages=(lane,), dead=4, server=server)

    async def process_metrics(self) -> list[tuple[str, bytes]]:
        if isinstance(self.samples, PipelineError):
            raise self.samples
        return self.samples

    @property
    def job(self) -> Job:
        """The one job that was submitted."""
        assert len(self.jobs) == 1, f"{len(self.jobs)} jobs"
        return self.jobs[0]
