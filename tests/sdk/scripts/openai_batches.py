"""Runs a batch with openai-python, for each line of standard input, and prints what it saw."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import openai

ENDED = ("completed", "failed", "expired", "cancelled")


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Upload, create, poll, list, download, cancel: the steps of OpenAI's guide."""
    with openai.OpenAI(api_key=task["api_key"], base_url=task["base_url"]) as client:
        file = client.files.create(file=("in.jsonl", task["contents"].encode()), purpose="batch")
        wanted = {
            "input_file_id": file.id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        made = client.batches.create(**wanted, metadata={"of": "mine"})
        missing = [
            refusal(lambda: client.batches.retrieve("batch_" + "0" * 32)),
            refusal(lambda: client.files.content("file-" + "0" * 32)),
        ]
        ended = end(client, made)
        listed = [each.id for each in client.batches.list(limit=1)]  # which follows the pages
        contents = client.files.content(ended.output_file_id).text if ended.output_file_id else ""
        stopped = client.batches.cancel(client.batches.create(**wanted).id)
        return {
            "file": file.to_dict(),
            "made": made.to_dict(),
            "missing": missing,
            "ended": ended.to_dict(),
            "listed": listed,
            "contents": contents,
            "cancelled": client.batches.cancel(ended.id).to_dict(),
            "stopped": [stopped.to_dict(), end(client, stopped).to_dict()],
        }


def end(client: openai.OpenAI, batch: Any) -> Any:
    """Return the batch once it has ended; every answer is validated against the SDK's types."""
    while batch.status not in ENDED:
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
        type(batch).model_validate(batch.to_dict(), strict=False)
    return batch


def refusal(call: Callable[[], object]) -> list[Any]:
    """Return how the SDK raises the error of a call that is refused."""
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code]
    raise AssertionError("it was taken")


for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)
