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
    """Put the text of an answer into `came`, that of a stream as it comes."""
    if isinstance(answer, openai.Stream):
        for event in answer:
            if getattr(event, "object", "") == "chat.completion.chunk":
                came["text"] += event.choices[0].delta.content or ""
            elif event.type == "response.output_text.delta":
                came["text"] += event.delta
    elif answer.object == "response":
        came["text"] = answer.output_text
    else:
        came["text"] = answer.choices[0].message.content


for line in sys.stdin:
    print(json.dumps([call(wanted) for wanted in json.loads(line)]), flush=True)
