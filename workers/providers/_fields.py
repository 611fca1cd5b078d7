"""The fields of a body that go upstream, and those that never do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pipeline.body_fields import is_for_gateway
from pipeline.errors import InvalidRequest
from workers.providers._dialect import UNDECODABLE, Fields

_decode_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_strings: Final = msgspec.json.Decoder(dict[str, str]).decode
_encode: Final = msgspec.json.Encoder().encode
_TRUE: Final = msgspec.Raw(b"true")
_FALSE: Final = msgspec.Raw(b"false")


def kept_fields(operation: str, body: bytes, *, stream: bool) -> Fields:
    """Return what of a body goes upstream, `stream` as the ingress read it. Raises InvalidRequest."""
    try:
        fields = _decode_fields(body)
    except UNDECODABLE:
        raise InvalidRequest("the body is not a JSON object", hint="send a JSON object", stage="dispatch") from None
    for name in [name for name in fields if is_for_gateway(name)]:
        del fields[name]
    if (prompt := fields.get("prompt")) is not None and bytes(prompt).startswith(b"{"):
        del fields["prompt"]  # a prompt reference; what it stood for is in the messages by now
    if operation != "responses" and "metadata" in fields and not _metadata_is_stored(fields):
        del fields["metadata"]
    if stream:
        fields["stream"] = _TRUE
    elif "stream" in fields:
        fields["stream"] = _FALSE
    return fields


def _metadata_is_stored(fields: Fields) -> bool:
    """Whether `metadata` is OpenAI's (for stored completions) and not a note to a gateway."""
    if fields.get("store") is None or bytes(fields["store"]) != b"true":
        return False
    try:
        _decode_strings(fields["metadata"])
    except UNDECODABLE:
        return False
    return True


def as_fields(values: Mapping[str, Any]) -> Fields:
    """Return an operator's values as fields, for those a request leaves out."""
    return {name: msgspec.Raw(_encode(value)) for name, value in values.items()}


def encoded(value: Any) -> msgspec.Raw:
    """Return `value` as the raw bytes of a field."""
    return msgspec.Raw(_encode(value))


encode_fields: Final = _encode
