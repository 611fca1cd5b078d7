"""Batches of the arena: what each asked, every state it was seen in, and what came of it."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2
from fakes.batches import TERMINAL, BatchClient, line
from fakes.waiting import wait_until

LINES = 2000
WINDOW = 200
"""Lines under way at a time, as the arena configures it: what one fault may have run twice."""

POLL = 0.075
"""Seconds between two looks at a batch."""

LASTING = 10
"""Looks at a batch that has ended: nothing of it may change any more."""

ENDS = 100.0
"""Seconds in which a batch must end, far below `batch_line_timeout`: no line may need that one to be found."""

NEXT = {
    "validating": ("in_progress", "failed", "expired", "cancelling"),
    "in_progress": ("finalizing", "expired", "cancelling"),
    "finalizing": ("completed", "cancelling"),
    "cancelling": ("cancelled",),
}
"""OpenAI's state machine; whoever looks now and then may miss a state."""

TIMES = ("created_at", "in_progress_at", "finalizing_at", "cancelling_at")
UNDONE = {"cancelled": "batch_cancelled", "expired": "batch_expired"}
"""Code of the lines that have no answer, by what a batch came to; one that is completed has none."""

_numbers = itertools.count()


@dataclass
class Batch:
    """One batch. Its lines have names, as requests of a load do; `wanted` is what it must come to."""

    client: BatchClient
    names: list[str]
    wanted: str = "completed"
    began: float = field(default_factory=time.monotonic)
    id: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    """Every state that differed from the one before."""
    ended: float = 0.0
    answers: list[tuple[str, str]] = field(default_factory=list)
    """Of the output file: name, and what was answered."""
    errors: list[tuple[str, str]] = field(default_factory=list)
    """Of the error file: name and code."""

    @property
    def now(self) -> dict[str, Any]:
        """The batch as it was seen last."""
        return self.seen[-1]

    @property
    def hex(self) -> str:
        """Its id without the prefix."""
        return self.id.removeprefix("batch_")

    @property
    def done(self) -> int:
        """How many lines have an outcome, as far as the batch tells."""
        return outcomes(self.now)

    async def reaches(self, share: float) -> None:
        """Wait until that share of the lines is done."""
        await wait_until(lambda: self.done >= share * len(self.names), timeout=ENDS)

    async def cancel(self) -> float:
        """Cancel it; return when."""
        answer = await self.client.http.post(f"/v1/batches/{self.id}/cancel")
        assert answer.status_code == 200, answer.text
        return time.monotonic()

    async def watch(self, seconds: float) -> None:
        """Look at it all the time, for so long at most, until some while after its end; then read its files."""
        lasting, limit = LASTING, time.monotonic() + seconds
        while lasting:
            try:
                state = await self.client.get(self.id)
            except httpx2.TransportError:  # the ingress is being replaced
                state = self.now
            if state != self.now:
                self.seen.append(state)
            if state["status"] in TERMINAL:
                self.ended = self.ended or time.monotonic()
                lasting -= 1
            assert self.ended or time.monotonic() < limit, f"the batch did not end: {self.now}"
            await anyio.sleep(POLL)
        self.answers = [(name, text) async for name, text in self._read("output_file_id", _answer)]
        self.errors = [(name, code) async for name, code in self._read("error_file_id", _code)]

    async def _read(self, file: str, what: Any) -> AsyncIterator[tuple[str, str]]:
        if self.now[file] is not None:
            answer = await self.client.http.get(f"/v1/files/{self.now[file]}/content")
            assert answer.status_code == 200, answer.text
            for text in answer.content.splitlines():
                entry = json.loads(text)
                yield entry["custom_id"], what(entry)

    def violations(self, calls: Counter[str]) -> Iterator[str]:
        """Yield what is wrong with it, given how often the provider was called for each line."""
        if self.now["status"] != self.wanted:
            yield f"I1 {self.id} is {self.now['status']}, not {self.wanted}: {self.now['errors']}"
        found = Counter(name for name, _ in [*self.answers, *self.errors])
        begun = self.now["request_counts"]["total"] or self.wanted == "completed"
        twice, wanted = [name for name, count in found.items() if count > 1], set(self.names if begun else ())
        if twice or found.keys() != wanted:
            lost, more = len(wanted - found.keys()), len(found.keys() - wanted)
            yield f"I2 {self.id}: {len(twice)} lines twice, {lost} missing, {more} never asked: {twice[:3]}"
        if wrong := [name for name, text in self.answers if text != name or not calls[name]]:
            yield f"I2 {self.id}: {len(wrong)} wrong answers, as that to {wrong[0]}"
        if codes := {code for _, code in self.errors} - {UNDONE.get(self.wanted)}:
            yield f"I1 {self.id}: lines failed with {codes}"
        if self.now["status"] != "failed":
            counts = {"total": len(wanted), "completed": len(self.answers), "failed": len(self.errors)}
            if self.now["request_counts"] != counts:
                yield f"I4 {self.id} tells {self.now['request_counts']}, its files {counts}"
        yield from self._transitions()

    def _transitions(self) -> Iterator[str]:
        for before, after in itertools.pairwise(self.seen):
            if before["status"] in TERMINAL:
                yield f"I5 {self.id} changed after its end: {before} {after}"
            elif after["status"] not in (before["status"], *_ways(before["status"])):
                yield f"I5 {self.id} went from {before['status']} to {after['status']}"
            if outcomes(after) < outcomes(before) or completed(after) < completed(before):
                yield f"I5 {self.id} counts backwards: {before['request_counts']} {after['request_counts']}"
        times = [self.now[name] for name in (*TIMES, f"{self.now['status']}_at") if self.now[name] is not None]
        if times != sorted(times):
            yield f"I5 {self.id} goes back in time: {self.now}"


def outcomes(state: dict[str, Any]) -> int:
    """Return how many lines have an outcome."""
    return completed(state) + int(state["request_counts"]["failed"])


def completed(state: dict[str, Any]) -> int:
    """Return how many lines have an answer."""
    return int(state["request_counts"]["completed"])


def _ways(status: str) -> set[str]:
    """Return the states that may follow, sooner or later."""
    ways = set(NEXT.get(status, ()))
    return ways.union(*(_ways(way) for way in ways))


def _answer(entry: dict[str, Any]) -> str:
    return str(entry["response"]["body"]["choices"][0]["message"]["content"])


def _code(entry: dict[str, Any]) -> str:
    error = entry["error"] if entry["response"] is None else entry["response"]["body"]["error"]
    return str(error["code"])


def new_batch(http: httpx2.AsyncClient, count: int, wanted: str = "completed") -> Batch:
    """Return a batch that is not made yet."""
    number = next(_numbers)
    return Batch(BatchClient(http), [f"b{number}.{at}" for at in range(count)], wanted)


def contents(batch: Batch) -> bytes:
    """Return its input; every second line has a prompt."""
    return b"".join(line(name, name, **({"prompt_id": "p"} if at % 2 else {})) for at, name in enumerate(batch.names))


@asynccontextmanager
async def watched(batch: Batch, made: dict[str, Any], seconds: float) -> AsyncIterator[None]:
    """Watch a batch that was `made`; on the way out wait for its end, for so long at most."""
    batch.id, batch.seen = made["id"], [made]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batch.watch, seconds)
        yield
