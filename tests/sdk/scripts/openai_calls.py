"""Makes the calls of each line of standard input with openai-python, and prints what came of them."""

from __future__ import annotations

import json
import sys
from operator import attrgetter
from typing import Any

import openai


def call(wanted: dict[str, Any]) -> dict[str, Any]:
    """Make one call: `method` with `arguments`, on a client with `client` as its options."""
    came: dict[str, Any] = {"version": openai.__version__, "text": ""}
    options = {"api_key": "sk-1234", **wanted["client"]}
    with openai.OpenAI(**options) as client:
        method = attrgetter(wanted.get("method", "chat.completions.create"))(client)
        try:
            read(method(**wanted["arguments"]), came)
        except openai.APIError as error:
            came["error"] = type(error).__name__
            came["bases"] = [base.__name__ for base in type(error).__mro__]
            came["message"] = str(error)
            came["code"] = error.code
            came["body"] = error.body
            if isinstance(error, openai.APIStatusError):
                came["status"] = error.status_code
                came["headers"] = dict(error.response.headers)
    return came


def read(answer: Any, came: dict[str, Any]) -> None:
    """Put what an answer says into `came`, that of a stream as it comes; the SDK's types have to hold."""
    if isinstance(answer, openai.Stream):
        for event in answer:
            if getattr(event, "object", "") == "chat.completion.chunk":
                came["text"] += event.choices[0].delta.content or ""
            elif getattr(event, "object", "") == "text_completion":
                came["text"] += event.choices[0].text
            elif event.type == "response.output_text.delta":
                came["text"] += event.delta
        return
    kind = getattr(answer, "object", "moderation")
    if kind in ("text_completion", "list", "moderation"):  # made by us, not by a test's provider
        type(answer).model_validate(answer.to_dict(), strict=False)
    if kind == "response":
        came["text"] = answer.output_text
    elif kind == "text_completion":
        came["text"] = answer.choices[0].text
    elif kind == "list":
        came["vectors"] = [each.embedding for each in answer.data]
    elif kind == "moderation":
        came["flagged"] = [each.flagged for each in answer.results]
    else:
        came["text"] = answer.choices[0].message.content


for line in sys.stdin:
    print(json.dumps([call(wanted) for wanted in json.loads(line)]), flush=True)
