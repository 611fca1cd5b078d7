"""A steady load of whole and streamed requests on one gateway, every one of which must be answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
from fakes.callers import Caller, calling
from fakes.upstream import Answer, Received, ScriptedUpstream, chunk, completion, raw, reply, sse
from fakes.waiting import wait_until

WORDS = 5


def slow(received: Received) -> Answer:
    """Answer with the text that came, after a while; a stream takes as long."""
    if received.json.get("stream"):
        return sse(*(chunk(f"{word} ") for word in range(WORDS)), between=0.06)
    return raw(0.2, *reply(completion(asked(received))).steps)


def asked(received: Received) -> str:
    return str(received.json["messages"][-1]["content"])


class Load:
    """Clients that ask again and again over connections they keep; what went wrong is in `failed`."""

    def __init__(self, caller: Caller, **fields: Any) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._caller = caller
        self._fields = fields
        self._asking = True

    async def ask(self, name: str) -> None:
        """Ask until `stop`, in turn for a whole answer and for a stream."""
        number = 0
        while self._asking:
            number += 1
            text = f"{name}.{number}"
            try:
                problem = await (self._stream(text) if number % 2 else self._whole(text))
            except httpx2.TransportError as error:
                problem = repr(error)
            if problem:
                self.failed.append(f"{text}: {problem}")
            else:
                self.answered += 1

    async def _whole(self, text: str) -> str:
        got = await self._caller.chat(text, **self._fields)
        return "" if got.status == 200 and got.text == text else f"{got.status} {got.content!r}"

    async def _stream(self, text: str) -> str:
        async with self._caller.stream(text, **self._fields) as response:
            got = await response.aread()
        whole = response.status_code == 200 and got.count(b'"content"') == WORDS and b"[DONE]" in got
        return "" if whole else f"{response.status_code} {got!r}"

    def stop(self) -> None:
        """Ask no more."""
        self._asking = False

    async def goes_on(self, count: int = 60) -> None:
        """Wait for so many further answers."""
        before = self.answered
        await wait_until(lambda: self.answered >= before + count or self.failed, timeout=40)
        assert not self.failed, self.failed[:3]


@asynccontextmanager
async def load(url: str, clients: int = 30, key: str = "any", **fields: Any) -> AsyncIterator[Load]:
    """Run a load while the block runs; in the end every request of it must have been answered."""
    async with calling(url, key) as caller:
        running = Load(caller, **fields)
        async with anyio.create_task_group() as tasks:
            for number in range(clients):
                tasks.start_soon(running.ask, f"client {number}")
            try:
                yield running
            finally:
                running.stop()
        assert not running.failed, running.failed[:3]


def called_twice(upstream: ScriptedUpstream) -> dict[str, int]:
    """Return what reached the provider more than once, and how often."""
    return {text: count for text, count in Counter(map(asked, upstream.requests)).items() if count > 1}
