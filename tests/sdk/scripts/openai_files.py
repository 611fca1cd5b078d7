"""Takes a file through its life with openai-python, for each line of standard input, and prints what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import openai


def live(task: dict[str, Any]) -> dict[str, Any]:
    """Upload, list, retrieve, download and delete; every answer is validated against the SDK's own types."""
    with openai.OpenAI(api_key=task["api_key"], base_url=task["base_url"]) as client:
        # Without a name the SDK calls it `upload`, from a path it takes the path's, as a tuple it is free.
        path = Path(task["path"])
        made = [
            client.files.create(file=path, purpose="batch"),
            client.files.create(file=("two.jsonl", path.read_bytes(), "application/jsonl"), purpose="user_data"),
            client.files.create(
                file=path.read_bytes(), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
            ),
        ]
        listed = list(client.files.list(limit=2, order="asc"))  # which follows the pages
        found = client.files.retrieve(made[0].id)
        contents = client.files.content(made[0].id).read()
        for each in (*made, *listed, found):
            type(each).model_validate(each.to_dict(), strict=False)
        deleted = [client.files.delete(each.id).to_dict() for each in made]
        try:
            client.files.retrieve(made[0].id)
        except openai.NotFoundError as error:
            code = error.code
        return {
            "version": openai.__version__,
            "made": [each.to_dict() for each in made],
            "listed": [each.id for each in listed],
            "found": found.to_dict(),
            "contents": contents.decode(),
            "deleted": deleted,
            "code": code,
            "refused": [refusal(client, {"file": path, "purpose": "batch", **wrong}) for wrong in task["wrong"]],
        }


def refusal(client: openai.OpenAI, arguments: dict[str, Any]) -> list[Any]:
    """Return how the SDK raises the error of an upload that is refused."""
    try:
        client.files.create(**{**arguments, "file": Path(arguments["file"])})
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.param]
    raise AssertionError("it was taken")


for line in sys.stdin:
    print(json.dumps(live(json.loads(line))), flush=True)
