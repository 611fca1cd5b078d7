"""Makes the calls of each line of standard input with LangChain's `ChatOpenAI`, and prints the answers' texts."""

from __future__ import annotations

import json
import sys
from typing import Any

from langchain_openai import ChatOpenAI


def call(wanted: dict[str, Any]) -> str:
    """Make one call: `messages` to a model with `options`, streamed when asked."""
    model = ChatOpenAI(openai_api_key="sk-1234", **wanted["options"])
    if wanted.get("stream"):
        return "".join(part.text for part in model.stream(wanted["messages"]))
    return model.invoke(wanted["messages"]).text


for line in sys.stdin:
    print(json.dumps([call(wanted) for wanted in json.loads(line)]), flush=True)
