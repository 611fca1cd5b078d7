"""Chat messages in the dialects of other operations, for managers that speak chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from pipeline.job import encode_json


def to_input(messages: list[Any], passed: list[Any]) -> list[Any]:
    """Return a manager's messages as `input` items; those that were passed in stay exactly as they were."""
    known = {_key(item) for item in passed}
    return [item for message in messages for item in ([message] if _key(message) in known else _items(message))]


def to_text(messages: list[Any]) -> str:
    """Return a manager's messages as one text: what they say in order, a blank line between them."""
    return "\n\n".join(text for message in messages if (text := _text(message.get("content"))))


def _key(item: Any) -> bytes:
    try:
        return encode_json(item)
    except (TypeError, ValueError, msgspec.MsgspecError):  # not plain JSON, so not one of the client's
        return b""


def _items(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the items one chat message stands for; what is an item already, or of no known shape, passes."""
    role = message.get("role")
    if "type" in message or not isinstance(role, str):
        yield message
    elif role == "tool":
        yield {
            "type": "function_call_output",
            "call_id": message.get("tool_call_id"),
            "output": _text(message.get("content")),
        }
    else:
        calls = message.get("tool_calls") or []
        if message.get("content") or not calls:
            yield {"role": role, "content": _content(message.get("content"), role)}
        for call in calls:
            function = call.get("function", {})
            name, arguments = function.get("name"), function.get("arguments")
            yield {"type": "function_call", "call_id": call.get("id"), "name": name, "arguments": arguments}


def _content(content: Any, role: str) -> Any:
    if not isinstance(content, list):
        return content if content is not None else ""
    return [_part(part, role) for part in content]


def _part(part: Any, role: str) -> Any:
    """Return a content part in the Responses dialect."""
    if not isinstance(part, dict):
        return part
    if part.get("type") == "text":
        return {"type": "output_text" if role == "assistant" else "input_text", "text": part.get("text", "")}
    if part.get("type") == "image_url":
        image = part.get("image_url")
        detail = {"detail": image["detail"]} if isinstance(image, dict) and "detail" in image else {}
        return {"type": "input_image", "image_url": image.get("url") if isinstance(image, dict) else image, **detail}
    return part


def _text(content: Any) -> str:
    """Return what a message says as text."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
