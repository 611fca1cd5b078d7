"""Makes the calls that standard input lists with LangChain's `ChatOpenAI`, and prints each answer's text as JSON."""

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


print(json.dumps([call(wanted) for wanted in json.load(sys.stdin)]))
