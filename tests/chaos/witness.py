"""The provider of the arena: answers every call after a while, and remembers each by the request it was made for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fakes.upstream import (
    Answer,
    Received,
    ScriptedUpstream,
    chunk,
    completion,
    raw,
    reply,
    run_upstream_in_thread,
    sse,
)

WORDS = 4
"""Events of a streamed answer, before the last."""


class Witness:
    """Every request of a load has a name, which is its last message; a provider call is known by it."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        upstream.default = self._answer
        self.takes = 0.2
        """Seconds until an answer, or for the whole of a streamed one."""

    @property
    def address(self) -> str:
        """Host and port."""
        return self._upstream.url.removeprefix("http://").removesuffix("/v1")

    @property
    def received(self) -> list[Received]:
        """Every call so far."""
        return list(self._upstream.requests)

    @property
    def calls(self) -> Counter[str]:
        """How often each request was sent here."""
        return Counter(named(received) for received in self.received)

    @property
    def left(self) -> list[float]:
        """When a connection was closed before its answer was complete (`time.monotonic()`)."""
        return list(self._upstream.disconnects)

    @property
    def upstream(self) -> ScriptedUpstream:
        """For scenarios that script answers of their own."""
        return self._upstream

    def forget(self) -> None:
        """Start counting anew, and answer by default again."""
        self._upstream.requests.clear()
        self._upstream.disconnects.clear()
        self._upstream.default = self._answer
        self.takes = 0.2

    def begun(self, since: float) -> int:
        """Return how many calls came since `since` (`time.monotonic()`)."""
        return sum(received.time >= since for received in self.received)

    def _answer(self, received: Received) -> Answer:
        name = named(received)
        if received.json.get("stream"):
            events = [chunk(f"{number} ") for number in range(WORDS)]
            return sse(*events, chunk(name), chunk(finish="stop"), between=self.takes / (WORDS + 2))
        return raw(self.takes, *reply(completion(name)).steps)


def named(received: Received) -> str:
    """Return the name of the request that a call was made for."""
    return str(received.json["messages"][-1]["content"]).partition(" ")[0]


def streamed_text(name: str) -> str:
    """Return what a streamed answer adds up to."""
    return "".join(f"{number} " for number in range(WORDS)) + name


@contextmanager
def witness() -> Iterator[Witness]:
    """Run one in a thread of its own."""
    with run_upstream_in_thread() as upstream:
        yield Witness(upstream)


def now() -> float:
    """Return the clock that calls are stamped with."""
    return time.monotonic()
