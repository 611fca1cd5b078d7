"""Runs a batch with openai-python, for each line of standard input, and prints what it saw."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import openai


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Upload, create, poll, download, as OpenAI's guide says; every answer is validated against the SDK's types."""
    with openai.OpenAI(api_key=task["api_key"], base_url=task["base_url"]) as client:
        file = client.files.create(file=("in.jsonl", task["contents"].encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"of": "mine"},
        )
        made = batch.to_dict()
        while batch.status not in ("completed", "failed", "expired", "cancelled"):
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
            type(batch).model_validate(batch.to_dict(), strict=False)
        listed = [each.id for each in client.batches.list(limit=1)]  # which follows the pages
        contents = client.files.content(batch.output_file_id).text if batch.output_file_id else ""
        return {
            "made": made,
            "ended": batch.to_dict(),
            "listed": listed,
            "contents": contents,
            "cancelled": client.batches.cancel(batch.id).to_dict(),
        }


for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)
