"""The few fields of a body that decide its way; the rest is never decoded before a stage needs it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Final, TypeVar

import msgspec

from pipeline.errors import InvalidRequest

MAX_NAME: Final = 512
"""Characters of a model's name, and of a prompt's id, version or label; log lines and response headers hold them."""

MAX_FIELDS: Final = 10_000
"""Fields a body may have outside of what stays encoded: dispatch takes each one out, at half a microsecond."""

SHORT: Final = 64 * 1024
"""Bytes of a body that has no room for too many fields."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Version = Text | Integer
Count = Annotated[int, msgspec.Meta(ge=0, le=1000)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]

ABSENT: Final = msgspec.Raw()


class PromptObject(msgspec.Struct, frozen=True):
    """OpenAI's `prompt`, where it is an object."""

    id: Name | None = None
    version: Version | None = None
    variables: msgspec.Raw = ABSENT


class View(msgspec.Struct, frozen=True):
    """What decides a request's way. An explicit null means the same as leaving the field out."""

    model: Text | None = None
    stream: bool | None = None
    messages: msgspec.Raw = ABSENT
    prompt_id: Name | None = None
    prompt_version: Version | None = None
    prompt_label: Text | None = None
    prompt_variables: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    timeout: Seconds | None = None
    num_retries: Count | None = None
    n: Integer | None = None
    max_tokens: Integer | None = None
    max_completion_tokens: Integer | None = None
    max_output_tokens: Integer | None = None
    stop: str | list[str] | None = None


class Encoded(msgspec.Struct, frozen=True):
    """Fields that may hold any number of others; on their way to a provider they stay as they came."""

    messages: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    instructions: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    functions: msgspec.Raw = ABSENT
    response_format: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT
    prediction: msgspec.Raw = ABSENT
    logit_bias: msgspec.Raw = ABSENT
    documents: msgspec.Raw = ABSENT
    prompt_variables: msgspec.Raw = ABSENT


NAMED: Final = (b'":', b" :", b"\t:", b"\n:", b"\r:")
"""The ends of a field's name: a colon after anything else is one of a text."""

T = TypeVar("T")

_decode_view: Final = msgspec.json.Decoder(View).decode
_decode_prompt: Final = msgspec.json.Decoder(PromptObject).decode
_decode_encoded: Final = msgspec.json.Decoder(Encoded).decode
_KINDS: Final = {b"": "", b"n": "", b"{": "object", b"[": "array"}
_WHERE: Final = re.compile(r"^(?P<what>.*) - at `\$\.(?P<field>[a-z_]+)[^`]*`$", re.DOTALL)


def decode_view(body: bytes) -> View:
    """Return the view of a body; of a key that comes twice, the last. Raises InvalidRequest, with `param` if it can."""
    if not body.isascii():
        _check_utf8(body)  # the decoder looks only into the strings it was asked for; a provider looks into all
    view = _decoded(_decode_view, body, "")
    if kind(view.messages) not in ("", "array"):
        raise InvalidRequest("`messages` must be an array of messages", param="messages")
    if kind(view.prompt_variables) not in ("", "object"):
        raise InvalidRequest("`prompt_variables` must be an object", param="prompt_variables")
    if len(body) > SHORT and body.count(b":") > MAX_FIELDS:
        _check_fields(body, view)
    return view


def decode_prompt(view: View) -> PromptObject | None:
    """Return the body's `prompt` if it is an object; other kinds are not ours to judge. Raises InvalidRequest."""
    if kind(view.prompt) != "object":
        return None
    found = _decoded(_decode_prompt, view.prompt, "prompt.")
    if kind(found.variables) not in ("", "object"):
        raise InvalidRequest("`prompt.variables` must be an object", param="prompt.variables")
    return found


def kind(raw: msgspec.Raw) -> str:
    """Return what a value is, by its first byte: `object`, `array`, `other`, or nothing for null and absent."""
    if raw is ABSENT:
        return ""
    return _KINDS.get(bytes(memoryview(raw)[:1]), "other")


def _decoded(decode: Callable[[bytes | msgspec.Raw], T], data: bytes | msgspec.Raw, prefix: str) -> T:
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error), prefix) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply; flatten it") from None


def _check_fields(body: bytes, view: View) -> None:
    """Refuse more fields than are worth taking apart; those in other fields and in quoted JSON count as well."""
    encoded = _decode_encoded(body)
    prompt = decode_prompt(view)
    large = [getattr(encoded, name) for name in Encoded.__struct_fields__]
    large += [prompt.variables] if prompt is not None else []
    if _names(body) - sum(_names(bytes(value)) for value in large) > MAX_FIELDS:
        known = ", ".join(f"`{name}`" for name in Encoded.__struct_fields__)
        raise InvalidRequest(f"the body has over {MAX_FIELDS} fields outside of {known}; send fewer")


def _names(text: bytes) -> int:
    """Return how many fields `text` has at most."""
    return sum(text.count(end) for end in NAMED)


def _check_utf8(body: bytes) -> None:
    try:
        str(body, "utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8; JSON always is") from None


def _wrong_type(message: str, prefix: str) -> InvalidRequest:
    """Return the decoder's words with the field as `param`; they name types and limits, never the value."""
    found = _WHERE.match(message)
    if found is None:
        return InvalidRequest(f"the body must be a JSON object: {message[:1].lower()}{message[1:]}")
    field = prefix + found["field"]
    return InvalidRequest(f"`{field}` is not valid: {found['what'][:1].lower()}{found['what'][1:]}", param=field)
