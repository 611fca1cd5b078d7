"""Clients of a whole gateway, many at a time, and a look at what is left in its streams."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
from fakes.gateways import Gateway

from pipeline.errors import TransportError
from pipeline.startup import embedded_url
from pipeline.transport.client import STAGES
from pipeline.transport.overview import Overview, read_overview

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Response:
    """An answer; `at` is when it was complete (`time.monotonic()`)."""

    status: int
    headers: httpx2.Headers
    content: bytes
    at: float

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.content)

    @property
    def text(self) -> str:
        """The content of the first choice."""
        return str(self.json["choices"][0]["message"]["content"])

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which has OpenAI's fields and ours, whatever went wrong."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code", "hint", "stage", "request_id"}, error
        assert error["message"], error
        assert error["request_id"] == self.headers["x-request-id"]
        return dict(error)


class Caller:
    """Calls one gateway over as many connections as it takes."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client

    async def post(self, content: bytes, path: str = PATH, **headers: str) -> Response:
        """Post a body as it is; `_` in the names of headers stands for `-`."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        got = await self.client.post(path, content=content, headers={"content-type": "application/json", **names})
        return Response(got.status_code, got.headers, got.content, time.monotonic())

    async def chat(self, text: str = "hi", **fields: Any) -> Response:
        """Send a chat request with one user message, and further fields."""
        return await self.post(json.dumps(body(text, **fields)).encode())

    async def gather(self, *requests: dict[str, Any]) -> list[Response]:
        """Send chat requests at the same time and return their answers, in the order of the requests."""
        answers: dict[int, Response] = {}

        async def ask(number: int, fields: dict[str, Any]) -> None:
            answers[number] = await self.chat(**fields)

        async with anyio.create_task_group() as tasks:
            for number, fields in enumerate(requests):
                tasks.start_soon(ask, number, fields)
        return [answers[number] for number in range(len(requests))]

    @asynccontextmanager
    async def stream(self, text: str = "hi", **fields: Any) -> AsyncIterator[httpx2.Response]:
        """Open a streamed answer."""
        async with self.client.stream("POST", PATH, json=body(text, stream=True, **fields)) as response:
            yield response

    async def read(self, text: str = "hi", **fields: Any) -> bytes:
        """Return all bytes of a streamed answer."""
        async with self.stream(text, **fields) as response:
            assert response.status_code == 200, await response.aread()
            return await response.aread()


def body(text: str = "hi", **fields: Any) -> dict[str, Any]:
    """Return a chat request with one user message."""
    return {"model": "gpt-4", "messages": [{"role": "user", "content": text}], **fields}


@asynccontextmanager
async def calling(url: str, key: str = "any", timeout: float = 40) -> AsyncIterator[Caller]:
    """Open a client of the gateway at `url`, without a limit of connections."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(
        base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=False
    ) as client:
        yield Caller(client)


async def overview(directory: Path) -> Overview | None:
    """Return the state of the gateway whose configuration is in `directory`; None while its server is away."""
    try:
        return await read_overview(embedded_url(directory / ".promptmill"), STAGES)
    except TransportError:
        return None


async def drained(directory: Path) -> bool:
    """Whether nothing waits, runs or is put off in any stream of the gateway."""
    found = await overview(directory)
    return found is not None and not any(s.backlog + s.pending + s.delayed + s.bytes for s in found.stages)


def parts(gateway: Gateway) -> dict[str, int]:
    """Return the gateway's processes by what they do, as far as they run."""
    found = {part: gateway.child(words) for part, words in PARTS.items()}
    return {part: pid for part, pid in found.items() if pid}


PARTS = {
    "ingress": "pipeline ingress",
    "resolve": "pipeline worker resolve",
    "dispatch": "pipeline worker dispatch",
    "feed": "pipeline feed",
    "server": "-server ",
}
