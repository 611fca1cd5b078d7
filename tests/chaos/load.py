"""Clients of the arena: what each asked, and how it was answered."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2
from chaos.witness import streamed_text

PATH = "/v1/chat/completions"
LARGE = 100_000
"""Bytes that push a body out of its stream entry."""

KINDS = ("whole", "stream", "plain", "large")
_WEIGHTS = (4, 3, 2, 1)
_numbers = itertools.count()


@dataclass
class Outcome:
    """One request and its end; `status` 0: the connection was lost before a whole answer."""

    name: str
    kind: str
    began: float
    status: int = 0
    code: str = ""
    """Of the error, whether it came as the response or inside a stream."""
    text: str = ""
    at: float = 0.0
    retry_after: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether the right answer arrived, complete."""
        expected = streamed_text(self.name) if self.kind == "stream" else self.name
        return self.status == 200 and not self.code and self.text == expected

    @property
    def seconds(self) -> float:
        return self.at - self.began

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}): {self.status} {self.code} {self.text[:60]!r} after {self.seconds:.1f} s"


class Load:
    """Requests of all kinds; a name tells its request apart from all others, in the provider's books too."""

    def __init__(self, client: httpx2.AsyncClient, chance: random.Random) -> None:
        self.client = client
        self.chance = chance
        self.outcomes: list[Outcome] = []
        self.under_way = 0

    async def one(self, kind: str = "", **fields: Any) -> Outcome:
        """Send one request and return its end."""
        kind = kind or self.chance.choices(KINDS, _WEIGHTS)[0]
        outcome = Outcome(f"r{next(_numbers)}-{kind}", kind, time.monotonic())
        self.outcomes.append(outcome)
        self.under_way += 1
        try:
            await (self._read if kind == "stream" else self._ask)(outcome, request(outcome.name, kind, **fields))
        except httpx2.TransportError as error:
            outcome.status, outcome.text = 0, repr(error)
        finally:
            self.under_way -= 1
            outcome.at = time.monotonic()
        return outcome

    async def burst(self, count: int, kind: str = "", **fields: Any) -> list[Outcome]:
        """Send `count` requests at the same time and return their ends."""
        before = len(self.outcomes)
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(self._one, kind, fields)
        return self.outcomes[before:]

    async def together(self, *requests: tuple[str, dict[str, Any]]) -> list[Outcome]:
        """Send requests, each a kind and its fields, at the same time; return their ends in that order."""
        ends: dict[int, Outcome] = {}

        async def send(number: int, kind: str, fields: dict[str, Any]) -> None:
            ends[number] = await self.one(kind, **fields)

        async with anyio.create_task_group() as tasks:
            for number, (kind, fields) in enumerate(requests):
                tasks.start_soon(send, number, kind, fields)
        return [ends[number] for number in range(len(requests))]

    async def steady(self, rate: float, until: anyio.Event, kind: str = "", **fields: Any) -> None:
        """Send `rate` requests a second, whatever becomes of them, until the event; return when all have ended."""
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for number in itertools.count():
                with anyio.move_on_after(max(0.0, began + number / rate - time.monotonic())):
                    await until.wait()
                if until.is_set():
                    return
                tasks.start_soon(self._one, kind, fields)

    async def _one(self, kind: str, fields: dict[str, Any]) -> None:
        await self.one(kind, **fields)

    async def _ask(self, outcome: Outcome, body: dict[str, Any]) -> None:
        answer = await self.client.post(PATH, json=body)
        outcome.status, outcome.headers = answer.status_code, dict(answer.headers)
        outcome.retry_after = answer.headers.get("retry-after", "")
        value = answer.json()
        if answer.status_code == 200:
            outcome.text = str(value["choices"][0]["message"]["content"])
        else:
            outcome.code = str(value["error"]["code"])

    async def _read(self, outcome: Outcome, body: dict[str, Any]) -> None:
        async with self.client.stream("POST", PATH, json=body) as answer:
            outcome.headers = dict(answer.headers)
            outcome.retry_after = answer.headers.get("retry-after", "")
            if answer.status_code != 200:
                outcome.code = str(json.loads(await answer.aread())["error"]["code"])
                outcome.status = answer.status_code
                return
            done = False
            async for line in answer.aiter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    done = True
                elif line.startswith("data: "):
                    self._event(outcome, json.loads(data), done)
            outcome.status = 200 if done or outcome.code else 0

    @staticmethod
    def _event(outcome: Outcome, event: dict[str, Any], done: bool) -> None:
        if "error" in event:
            outcome.code = str(event["error"]["code"])
        assert not done, f"{outcome.name}: an event after [DONE]"
        for choice in event.get("choices", ()):
            outcome.text += choice["delta"].get("content") or ""

    @property
    def codes(self) -> Counter[str]:
        """How often each error code was answered; `cut` stands for lost connections."""
        return Counter("cut" if not o.status else o.code for o in self.outcomes if not o.whole)

    @property
    def slowest(self) -> float:
        """Seconds of the longest request."""
        return max((outcome.seconds for outcome in self.outcomes), default=0.0)


def request(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a request."""
    content = name + " " + "x" * (LARGE if kind == "large" else 0)
    body: dict[str, Any] = {"model": "gpt-4", "messages": [{"role": "user", "content": content}], **fields}
    if kind == "stream":
        body["stream"] = True
    if kind != "plain":
        body.setdefault("prompt_id", "p")
    return body


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@asynccontextmanager
async def loading(url: str, key: str, chance: random.Random, timeout: float = 45) -> AsyncIterator[Load]:
    """Open clients of the gateway at `url`, without a limit of connections."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(
        base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=False
    ) as client:
        yield Load(client, chance)
