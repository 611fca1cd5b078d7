"""Answers made here, in OpenAI's shapes, for providers that call nobody."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from pipeline.operations import OPERATIONS
from workers.providers._dialect import UNDECODABLE, Fields, LocalAnswer
from workers.providers._local_texts import text_answer

_encode: Final = msgspec.json.Encoder().encode


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    role: str | None = None
    content: str | list[_Part] | None = None


class _Options(msgspec.Struct):
    include_usage: bool | None = None


_decode_messages: Final = msgspec.json.Decoder(list[_Message]).decode
_decode_options: Final = msgspec.json.Decoder(_Options | None).decode
_decode_text: Final = msgspec.json.Decoder(str | None).decode


def shown_messages(operation: str, fields: Fields) -> str:
    """Return the messages of a body, one per line as `role: content`. Raises what stands in UNDECODABLE."""
    lines = []
    if operation == "responses":
        if (instructions := fields.get("instructions")) and (text := _decode_text(instructions)):
            lines.append(f"system: {text}")
        source = fields.get("input", msgspec.Raw(b"[]"))
        if bytes(source).startswith(b'"'):
            return "\n".join([*lines, f"user: {_decode_text(source)}"])
    else:
        source = fields.get("messages", msgspec.Raw(b"[]"))
    lines.extend(f"{message.role or 'user'}: {_content(message)}" for message in _decode_messages(source))
    return "\n".join(lines)


def _content(message: _Message) -> str:
    if isinstance(message.content, list):
        return "".join(part.text or "" for part in message.content)
    return message.content or ""


def local_answer(operation: str, fields: Fields, text: str, usage: tuple[int, int]) -> LocalAnswer:
    """Return `text` as a whole answer to a body, or as a stream when it asks for one. Raises InvalidRequest."""
    if OPERATIONS[operation].texts:
        return text_answer(operation, fields, text, usage)
    model = msgspec.json.decode(fields["model"], type=str)
    streamed = "stream" in fields and bytes(fields["stream"]) == b"true"
    if operation == "responses":
        if streamed:
            return LocalAnswer(events=tuple(_response_events(model, text, usage)), usage=usage)
        return LocalAnswer(body=_encode(_response(model, text, usage, f"resp_{secrets.token_hex(12)}")), usage=usage)
    if streamed:
        return LocalAnswer(events=tuple(_chunks(model, text, usage, with_usage=_wants_usage(fields))), usage=usage)
    return LocalAnswer(body=_encode(_completion(model, text, usage)), usage=usage)


def _wants_usage(fields: Fields) -> bool:
    try:
        options = _decode_options(fields.get("stream_options", msgspec.Raw(b"null")))
    except UNDECODABLE:
        return False
    return bool(options and options.include_usage)


def _completion(model: str, text: str, usage: tuple[int, int]) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": _chat_usage(usage),
    }


def _chat_usage(usage: tuple[int, int]) -> dict[str, int]:
    return {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}


def _chunks(model: str, text: str, usage: tuple[int, int], *, with_usage: bool) -> Iterator[bytes]:
    """Yield a chunk per line of `text`, the finish, the usage if asked for, and `[DONE]`."""
    head: dict[str, Any] = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
    }
    none_yet = {"usage": None} if with_usage else {}

    def event(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: %s\n\n" % _encode({**head, "choices": [choice], **none_yet})

    yield event({"role": "assistant", "content": ""})
    for piece in text.splitlines(keepends=True):
        yield event({"content": piece})
    yield event({}, "stop")
    if with_usage:
        yield b"data: %s\n\n" % _encode({**head, "choices": [], "usage": _chat_usage(usage)})
    yield b"data: [DONE]\n\n"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _item(response_id: str, text: str | None) -> dict[str, Any]:
    return {
        "id": response_id.replace("resp_", "msg_"),
        "type": "message",
        "role": "assistant",
        "status": "in_progress" if text is None else "completed",
        "content": [] if text is None else [_part(text)],
    }


def _response(model: str, text: str | None, usage: tuple[int, int], response_id: str) -> dict[str, Any]:
    """Return a Response; `text` None: one that has only begun."""
    counted = {
        "input_tokens": usage[0],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage[1],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": sum(usage),
    }
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress" if text is None else "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": [] if text is None else [_item(response_id, text)],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None if text is None else counted,
    }


def _response_events(model: str, text: str, usage: tuple[int, int]) -> Iterator[bytes]:
    """Yield the events of a Response whose output is one text, a delta per line."""
    response_id = f"resp_{secrets.token_hex(12)}"
    begun = _response(model, None, usage, response_id)
    item = {"item_id": response_id.replace("resp_", "msg_"), "output_index": 0, "content_index": 0}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": _item(response_id, None)}),
        ("response.content_part.added", {**item, "part": _part("")}),
        *(
            ("response.output_text.delta", {**item, "delta": piece, "logprobs": []})
            for piece in text.splitlines(keepends=True)
        ),
        ("response.output_text.done", {**item, "text": text, "logprobs": []}),
        ("response.content_part.done", {**item, "part": _part(text)}),
        ("response.output_item.done", {"output_index": 0, "item": _item(response_id, text)}),
        ("response.completed", {"response": _response(model, text, usage, response_id)}),
    ]
    for number, (name, fields) in enumerate(events):
        data = _encode({"type": name, "sequence_number": number, **fields})
        yield b"event: %s\ndata: %s\n\n" % (name.encode(), data)
