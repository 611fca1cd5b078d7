"""Errors as OpenAI's clients expect them: a JSON body, an event of a stream, and the headers that go with them."""

from __future__ import annotations

import math
from typing import Any

from pipeline.errors import ShuttingDown
from pipeline.job import ErrorFields, encode_json

Headers = list[tuple[bytes, bytes]]


def error_body(fields: ErrorFields, request_id: str, **more: Any) -> bytes:
    """Return OpenAI's error object, with `hint`, `stage` and `request_id` beside its own four fields."""
    return encode_json({"error": _error(fields, request_id), **more})


def error_event(fields: ErrorFields, request_id: str, operation: str) -> bytes:
    """Return the error as the last event of a stream whose status is already sent."""
    error = _error(fields, request_id)
    if operation != "responses":
        return b"data: " + encode_json({"error": error}) + b"\n\n"
    # The Responses API has an error event of its own, flat; its SDKs look for `error` as well.
    flat = {"type": "error", "code": fields.code, "message": fields.message, "param": fields.param, "error": error}
    return b"event: error\ndata: " + encode_json(flat) + b"\n\n"


def error_headers(fields: ErrorFields) -> Headers:
    """Return what tells a client whether, and when, to try again."""
    headers: Headers = []
    if fields.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if fields.should_retry else b"false"))
    if fields.retry_after is not None:
        headers.append((b"retry-after", str(math.ceil(fields.retry_after)).encode()))
    return headers


def drained() -> ShuttingDown:
    """Return the last word to a client whose answer outlasts the drain."""
    return ShuttingDown("the gateway is restarting; try again", retry_after=1)


def _error(fields: ErrorFields, request_id: str) -> dict[str, Any]:
    return {
        "message": fields.message,
        "type": fields.type,
        "param": fields.param,
        "code": fields.code,
        "hint": fields.hint,
        "stage": fields.stage,
        "request_id": request_id,
    }
