"""A client of batches: it makes inputs, runs them, and reads what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx2
from fakes.openai_shapes import check_batch, check_file, check_line
from fakes.uploads import put
from fakes.waiting import wait_until

CHAT = "/v1/chat/completions"
BATCH_KEYS = {
    "id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status", "output_file_id",
    "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at",
    "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage", "metadata", "promptmill",
}  # fmt: skip
"""Every key of OpenAI's batch object, and our own."""

TERMINAL = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, text: str = "hi", **fields: Any) -> bytes:
    """Return a line that asks for a chat completion; further fields go into its body."""
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": text}], **fields}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


def lines(count: int, **fields: Any) -> bytes:
    """Return `count` lines, each with its number as its text."""
    return b"".join(line(f"r{number}", str(number), **fields) for number in range(count))


@dataclass
class Outcome:
    """A batch that has ended, and the lines of its files."""

    batch: dict[str, Any]
    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def texts(self) -> dict[str, str]:
        """Return what was answered, by `custom_id`."""
        return {
            entry["custom_id"]: entry["response"]["body"]["choices"][0]["message"]["content"] for entry in self.output
        }

    def check(self, custom_ids: Iterable[str]) -> None:
        """Fail unless each of them has exactly one outcome, and the counts say so."""
        found = [entry["custom_id"] for entry in [*self.output, *self.errors]]
        wanted = list(custom_ids)
        assert len(found) == len(set(found)), "a line has two outcomes"
        assert set(found) == set(wanted)
        counts = {"total": len(wanted), "completed": len(self.output), "failed": len(self.errors)}
        assert self.batch["request_counts"] == counts


class BatchClient:
    """Runs batches over HTTP."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def create(self, contents: bytes, **fields: Any) -> dict[str, Any]:
        """Upload an input and make a batch of it."""
        file = (await put(self.http, contents)).json()
        check_file(file)
        wanted = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", **fields}
        answer = await self.http.post("/v1/batches", json=wanted)
        assert answer.status_code == 200, answer.text
        check_batch(answer.json())
        return dict(answer.json())

    async def get(self, batch_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/v1/batches/{batch_id}")
        assert answer.status_code == 200, answer.text
        assert set(answer.json()) == BATCH_KEYS
        check_batch(answer.json())
        return dict(answer.json())

    async def done(self, batch_id: str) -> int:
        """Return how many lines have an outcome, as far as the batch tells."""
        counts = (await self.get(batch_id))["request_counts"]
        return int(counts["completed"] + counts["failed"])

    async def status(self, batch_id: str) -> str:
        return str((await self.get(batch_id))["status"])

    async def end(self, batch_id: str, timeout: float = 60) -> Outcome:
        """Wait for the end of a batch and read its files."""

        async def ended() -> bool:
            try:
                return await self.status(batch_id) in TERMINAL
            except httpx2.TransportError:  # the ingress is being replaced
                return False

        await wait_until(ended, timeout=timeout, every=0.1)
        batch = await self.get(batch_id)
        output = await self._lines(batch["output_file_id"], failed=False)
        return Outcome(batch, output, await self._lines(batch["error_file_id"], failed=True))

    async def _lines(self, file_id: str | None, *, failed: bool) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        check_file((await self.http.get(f"/v1/files/{file_id}")).json())
        answer = await self.http.get(f"/v1/files/{file_id}/content")
        assert answer.status_code == 200, answer.text
        found = [json.loads(text) for text in answer.content.splitlines()]
        for entry in found:
            check_line(entry, failed=failed)
        return found
