"""What a line of a batch's input has to be, and what is said about one that is not."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec

from pipeline.body_fields import CREDENTIAL_FIELDS
from pipeline.stores.lines import Line

MAX_CUSTOM_ID: Final = 64

MAX_FIELDS: Final = 10_000
"""Fields a body may have; what is below them does not count."""

# By exact name. On whose behalf a line runs, where to, how urgently and until when is not the line's to say.
GATEWAY_ONLY: Final = CREDENTIAL_FIELDS | {
    *("tenant", "owner", "allowed_models", "user_api_key", "lane", "priority", "deadline"),
    *("timeout", "request_timeout", "stream_timeout"),
}

Fields = dict[str, msgspec.Raw]

_decode_fields: Final = msgspec.json.Decoder(Fields).decode
_decode_text: Final = msgspec.json.Decoder(str).decode
# Controls, ends of lines, and what turns text around. Listed: what counts as printable changes with Python's version.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_NULL: Final = msgspec.Raw(b"null")
_FALSE: Final = msgspec.Raw(b"false")


class LineError(msgspec.Struct, frozen=True):
    """Why a batch cannot run: an entry of its `errors.data`."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchLine(msgspec.Struct, frozen=True):
    """A line that can run. `body` is the request as the client wrote it."""

    custom_id: str
    body: msgspec.Raw
    model: str | None = None


class _Usual(msgspec.Struct, forbid_unknown_fields=True):
    """A line as nearly all are, decoded at once. Whatever is not like this is looked at piece by piece."""

    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CUSTOM_ID)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class _Named(msgspec.Struct):
    custom_id: str = ""


_decode_usual: Final = msgspec.json.Decoder(_Usual).decode
_decode_named: Final = msgspec.json.Decoder(_Named).decode


class _Refused(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.error = (code, message, param)


def check_line(line: Line, endpoint: str) -> BatchLine | LineError:
    """Return the request in a line of a batch for `endpoint`, or the first thing that is wrong with it."""
    try:
        return _checked(line, endpoint)
    except _Refused as refused:
        return LineError(*refused.error, line=line.number)


def name_of(line: Line) -> str:
    """Return the `custom_id` of a line that is known to be valid; empty if it cannot be read any more."""
    try:
        return _decode_named(line.data or b"").custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def duplicate(line: Line) -> LineError:
    """Return the error of a line whose `custom_id` an earlier line has."""
    return LineError("duplicate_custom_id", "An earlier line has the same custom_id.", "custom_id", line.number)


def _checked(line: Line, endpoint: str) -> BatchLine:
    if line.data is None:
        raise _Refused("line_too_long", "This line is longer than max_line_bytes.")
    if usual := _usual(line.data, endpoint):
        return BatchLine(usual.custom_id, usual.body, _model(_body(usual.body)))
    fields = _fields(line.data)
    custom_id = _text(fields, "custom_id")
    if not 0 < len(custom_id) <= MAX_CUSTOM_ID or _CONTROL.search(custom_id):
        message = f"custom_id must have 1 to {MAX_CUSTOM_ID} characters, and no control characters."
        raise _Refused("invalid_custom_id", message, "custom_id")
    if _text(fields, "method") != "POST":
        raise _Refused("invalid_method", "method must be POST.", "method")
    url = _text(fields, "url")
    if url != endpoint:
        code = "mismatched_url" if url.startswith("/v1/") else "invalid_url"
        raise _Refused(code, f"url must be the batch's endpoint, {endpoint}.", "url")
    body = fields.get("body", _NULL)
    if body == _NULL:
        raise _missing("body")
    return BatchLine(custom_id, body, _model(_body(body)))


def _usual(data: bytes, endpoint: str) -> _Usual | None:
    if not data.isascii():
        return None
    try:
        found = _decode_usual(data)
    except (msgspec.DecodeError, RecursionError):
        return None
    return found if found.url == endpoint and found.custom_id.isprintable() and found.body != _NULL else None


def _fields(data: bytes) -> Fields:
    try:
        if not data.isascii():
            str(data, "utf-8")  # the decoder looks only at the keys
        fields = _decode_fields(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _Refused("invalid_json_line", "This line is not parseable as valid JSON.") from None
    _check_names(fields, "")
    return fields


def _body(body: msgspec.Raw) -> Fields:
    try:
        fields = _decode_fields(body)
    except msgspec.DecodeError:  # what it holds was read with its line: it is JSON, but no object
        raise _Refused("invalid_request", "body must be a JSON object.", "body") from None
    if len(fields) > MAX_FIELDS:
        raise _Refused("invalid_request", f"body has more than {MAX_FIELDS} fields.", "body")
    _check_names(fields, "body.")
    if fields.get("stream", _NULL) not in (_NULL, _FALSE):
        raise _Refused("streaming_unsupported", "Lines of a batch cannot be streamed.", "body.stream")
    return fields


def _check_names(fields: Fields, prefix: str) -> None:
    if not GATEWAY_ONLY.isdisjoint(fields):
        name = min(GATEWAY_ONLY.intersection(fields))
        raise _Refused("invalid_request", f"{name} is for the gateway to set; take it out.", prefix + name)


def _text(fields: Fields, name: str) -> str:
    value: Any = fields.get(name, _NULL)
    if value == _NULL:
        raise _missing(name)
    try:
        return _decode_text(value)
    except msgspec.DecodeError:
        raise _Refused("invalid_request", f"{name} must be a text.", name) from None


def _model(fields: Fields) -> str | None:
    return _text(fields, "model") if fields.get("model", _NULL) != _NULL else None


def _missing(name: str) -> _Refused:
    return _Refused("missing_required_parameter", f"{name} is missing.", name)
