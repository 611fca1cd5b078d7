"""Reading what a hook returned: checked, compared with what was passed, and encoded, all on the user's side."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Final

import msgspec

from pipeline.body_fields import CREDENTIAL_FIELDS, PROMPT_FIELDS
from pipeline.errors import PromptManagerError
from pipeline.job import decode_json
from workers.prompts import fields
from workers.prompts.dialects import to_input, to_text
from workers.prompts.request import HookRequest, copy, is_prompt_object

LARGEST: Final = 32 * 2**20
"""Bytes of JSON a manager may return, as much as a request may hold."""


class HookResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a manager wants of a request, as plain encoded data: nothing of the user's code is left in it."""

    model: str
    body: dict[str, msgspec.Raw | None] = {}
    """Body fields that differ from the client's; None removes the field."""
    changed: bool = False
    """Whether the manager did anything."""


def read_result(request: HookRequest, returned: object) -> HookResult:
    """Return the difference a hook made. Raises PromptManagerError (without its manager's name) saying what came."""
    model, messages, params = _triple(returned)
    body: dict[str, msgspec.Raw | None] = {}
    _add_messages(request, messages, body)
    if params is not None:
        _add_params(request, params, body)
    if (size := sum(len(memoryview(value)) for value in body.values() if value is not None)) > LARGEST:
        raise PromptManagerError(f"it returned {size} bytes of JSON; at most {LARGEST} are taken, return less")
    return HookResult(model=model, body=body, changed=bool(body) or model != request.model)


def _triple(returned: object) -> tuple[str, list[Any], dict[Any, Any] | None]:
    """Return the three elements with their types checked."""
    if not isinstance(returned, tuple) or len(returned) != 3:
        came = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
        raise _wrong(f"it returned {came}")
    model, messages, params = returned
    if not isinstance(model, str):
        raise _wrong(f"the model it returned is a {type(model).__name__}")
    if not isinstance(messages, list):
        raise _wrong(f"the messages it returned are a {type(messages).__name__}")
    if params is not None and not isinstance(params, dict):
        raise _wrong(f"the parameters it returned are a {type(params).__name__}")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong(f"messages[{index}] of what it returned is a {type(message).__name__}, not a dict")
    return str.__str__(model), messages, params


def _wrong(fact: str) -> PromptManagerError:
    return PromptManagerError(f"{fact}; return (model, messages, parameters): a str, a list, and a dict or None")


def _add_messages(request: HookRequest, messages: list[Any], body: dict[str, msgspec.Raw | None]) -> None:
    """Note the conversation if it differs; what the client sent stays as it came."""
    encoded = _encoded(messages, "the messages")
    name = fields.messages_field(request.operation)
    sent = request.raw(name)
    if sent is not None and encoded == sent:  # as most clients write it: no second look needed
        return
    passed = request.messages()
    if encoded == _encoded(passed, name):
        return
    _check(messages, "the messages")
    if fields.is_text(request.operation):
        body[name] = _encoded(to_text(messages), name)
    else:
        body[name] = encoded if name == "messages" else _encoded(to_input(messages, passed), name)


def _add_params(request: HookRequest, params: dict[Any, Any], body: dict[str, msgspec.Raw | None]) -> None:
    """Note the parameters that differ from what was passed; what is missing there stays the client's."""
    for name, value in params.items():
        if not isinstance(name, str):
            raise PromptManagerError(f"the parameters it returned have the key {name!r}; keys are strings")
        name = str.__str__(name)
        encoded = _encoded(value, f"the parameter {name!r}")
        if name == "metadata":
            _add_metadata(request, value, encoded, body)
        elif _is_as_passed(request, name, encoded) or name in PROMPT_FIELDS or is_prompt_object(name, encoded):
            continue
        elif remedy := _remedy(request, name):
            raise PromptManagerError(f"the parameters it returned set {name!r}; {remedy}")
        else:
            _check(value, f"the parameter {name!r}")
            body[name] = None if value is None else encoded


def _remedy(request: HookRequest, name: str) -> str:
    """Return what a manager that sets this parameter should do instead; empty where it may."""
    if name == fields.messages_field(request.operation):
        return _REFUSED["messages"]
    return _CREDENTIAL if name in CREDENTIAL_FIELDS else _REFUSED.get(name, "")


def _add_metadata(request: HookRequest, value: Any, encoded: msgspec.Raw, body: dict[str, msgspec.Raw | None]) -> None:
    """Note metadata the manager changed, without what the gateway vouched for."""
    if encoded == _encoded(request.metadata(), "metadata"):
        return
    _check(value, "metadata")
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in fields.VOUCHED_FIELDS}
        if kept or request.raw("metadata") is not None:
            body["metadata"] = _encoded(kept, "metadata")
    else:
        body["metadata"] = None if value is None else encoded


def _is_as_passed(request: HookRequest, name: str, encoded: msgspec.Raw) -> bool:
    sent = request.body.get(name)
    if sent is None:
        return False
    return encoded == sent or encoded == _encoded(copy(sent), name)


def _encoded(value: Any, what: str) -> msgspec.Raw:
    """Return `value` as JSON. Raises PromptManagerError naming `what` when it has none."""
    try:
        return msgspec.Raw(_encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PromptManagerError(f"{what} cannot be sent as JSON ({error}); return plain values") from None


def _check(value: Any, what: str) -> None:
    """Refuse what is encoded as something else: bytes as base64, NaN as null, a set as a list in any order."""
    if isinstance(value, dict):
        for item in value.values():
            _check(item, what)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, what)
    elif isinstance(value, bytes | bytearray | memoryview | set | frozenset):
        kind = type(value).__name__
        raise PromptManagerError(f"{what} cannot be sent as JSON ({kind} in it); return text as str, a list as list")
    elif isinstance(value, float | Decimal) and not math.isfinite(value):
        raise PromptManagerError(f"{what} cannot be sent as JSON ({value} in it); return a number")


def _plain(value: Any) -> Any:
    """Return what JSON knows of a value it does not know: text of template engines, numbers, pydantic models."""
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(kind.__str__(value)) if kind is str else kind(value)
    if callable(dump := getattr(value, "model_dump", None)):
        dumped = dump(exclude_none=True)
        _check(dumped, f"a {type(value).__name__}")
        return dumped
    raise TypeError(f"a {type(value).__name__} is not a JSON value")


_encode: Final = msgspec.json.Encoder(enc_hook=_plain, decimal_format="number").encode

_CREDENTIAL: Final = "where a call goes and who pays comes from the deployment: remove it"
_REFUSED: Final = {
    "stream": "only the client decides about streaming: remove it",
    "model": "return the model as the first element",
    "messages": "return the messages as the second element",
    "input": "return the messages as the second element",
    "extra_body": "return what is in it beside the other parameters",
}


def merge(body: dict[str, msgspec.Raw], result: HookResult | None) -> dict[str, msgspec.Raw]:
    """Return the body with a manager's changes, and without prompt references."""
    merged: dict[str, msgspec.Raw | None] = {**body, **result.body} if result else {**body}
    return {
        name: value
        for name, value in merged.items()
        if value is not None and name not in PROMPT_FIELDS and not is_prompt_object(name, value)
    }


def is_empty(value: msgspec.Raw | None) -> bool:
    """Whether a conversation or a text is absent, null or empty."""
    return value is None or (len(memoryview(value)) < 16 and not decode_json(value))
