"""A delivery that keeps what its stage sends, for stages tested without a transport."""

from __future__ import annotations

import time

import msgspec

from pipeline.job import Facts, Job, new_id


def make_job(**changes: object) -> Job:
    """Return a chat job with a minute to live."""
    job = Job(
        id=new_id(),
        operation="chat.completions",
        stages_left=("resolve", "dispatch"),
        deadline=int(time.time() * 1000) + 60_000,
        model="gpt-4",
        endpoint="/v1/chat/completions",
    )
    return msgspec.structs.replace(job, **changes)


class FakeDelivery:
    """Satisfies `pipeline.stage.Delivery`; `sent` holds every frame."""

    def __init__(self, job: Job | None = None, body: bytes = b"{}", number: int = 1, remaining: float = 60.0) -> None:
        self.job = job or make_job()
        self.body = body
        self.number = number
        self.queued_ms = 1.5
        self.sent: list[tuple[bytes, Facts | None, str]] = []
        self.has_room = True
        self.waits = 0
        self._limit = time.monotonic() + remaining

    @property
    def remaining(self) -> float:
        return self._limit - time.monotonic()

    async def send(self, data: bytes, facts: Facts | None = None, content_type: str = "") -> None:
        self.write(data, facts, content_type)

    def write(self, data: bytes, facts: Facts | None = None, content_type: str = "") -> bool:
        self.sent.append((data, facts, content_type))
        return self.has_room

    async def room(self) -> None:
        self.waits += 1
        self.has_room = True
