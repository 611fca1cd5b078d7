"""What a provider's refusal becomes, with nothing secret in it."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from pipeline.errors import (
    OUR_CODES,
    UpstreamAuthFailed,
    UpstreamBusy,
    UpstreamError,
    UpstreamForbidden,
    UpstreamGarbled,
    UpstreamNotApi,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from pipeline.job import ErrorFields
from pipeline.redaction import redact
from workers.providers._dialect import UNDECODABLE, Endpoint

MESSAGE_LIMIT: Final = 2_000
"""Characters of a provider's message that are passed on."""

LONGEST_REST: Final = 3600.0
"""Seconds a provider is left alone at most, whatever it asks for."""

_NAME: Final = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_STATUS: Final = re.compile(r"[45]\d\d", re.ASCII)


class Said(msgspec.Struct, frozen=True):
    """What an error body says, whatever its shape."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str | None = None


_ABSENT: Final = msgspec.Raw()


class _Body(msgspec.Struct):
    error: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    detail: msgspec.Raw = _ABSENT


class _Error(msgspec.Struct):
    message: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    code: msgspec.Raw = _ABSENT
    param: msgspec.Raw = _ABSENT


_decode_body: Final = msgspec.json.Decoder(_Body).decode
_decode_error: Final = msgspec.json.Decoder(_Error).decode
_decode_scalar: Final = msgspec.json.Decoder(str | int | float | None).decode


def said(body: bytes) -> Said:
    """Return what an error body says: OpenAI's shape, a bare `error` text, `message` or `detail`; else nothing."""
    try:
        whole = _decode_body(body)
        if bytes(whole.error) in {b"", b"null"}:
            return Said(message=_text(whole.message) or _text(whole.detail))
        return said_in(bytes(whole.error))
    except UNDECODABLE:
        return Said()


def said_in(error: bytes) -> Said:
    """Return what the value of an `error` field says; it comes out of JSON that was read."""
    if not error.startswith(b"{"):
        return Said(message=_text(msgspec.Raw(error)))
    fields = _decode_error(error)
    return Said(_text(fields.message), _text(fields.type), _text(fields.code), _text(fields.param) or None)


def _text(value: msgspec.Raw) -> str:
    """Return a string or number as text, anything else as nothing."""
    try:
        plain = _decode_scalar(value)
        return "" if plain is None else str(plain)  # Python writes no number of more than 4300 digits
    except UNDECODABLE:
        return ""


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without the deployment's secrets, without anything that looks like one, and not too long."""
    text = redact(text[: 4 * MESSAGE_LIMIT], secrets)
    return text if len(text) <= MESSAGE_LIMIT else text[:MESSAGE_LIMIT] + "…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """
    Return how many seconds to wait: `retry-after-ms`, or `retry-after` in seconds or as an HTTP date.

    None where they say nothing, or that none need be waited: who refuses and says so does not mean it.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 < seconds < math.inf:
            return min(seconds, LONGEST_REST)
    until = _date(headers, "retry-after")
    if until is None:
        return None
    seconds = until - (_date(headers, "date") or time.time())  # by the provider's clock, for ours may be another time
    return min(seconds, LONGEST_REST) if seconds > 0 else None


def _date(headers: Mapping[str, str], name: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(headers[name]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None


def provider_error(status: int, headers: Mapping[str, str], told: Said, endpoint: Endpoint) -> UpstreamError:
    """Return the error for an answer that is not a 200, `told` being what its body says."""
    who = endpoint.prefix
    message = scrubbed(told.message, endpoint.secrets)
    words = f": {message}" if message else ""
    wait = retry_after(headers)
    if status in {401, 402}:
        to_check = "the deployment's `api_key`" if status == 401 else "the credit of the deployment's account"
        return UpstreamAuthFailed(
            f"{who} refused the key of this deployment with {status}{words}",
            hint=f"the key is the gateway's, not yours: the operator must check {to_check}",
            upstream_status=status,
        )
    if status == 403:
        hint = "change the request if that is against the provider's rules; else the operator must check `api_key`"
        return UpstreamForbidden(f"{who} forbids it with {status}{words}", hint=hint, upstream_status=status)
    if status == 429:
        hint = "ask again after `Retry-After`, or add a deployment to the model"
        return UpstreamOverloaded(f"{who} is at its limit{words}", hint=hint, retry_after=wait, upstream_status=status)
    if status in {408, 504}:
        return UpstreamTimeout(f"{who} gave up with {status}{words}", retry_after=wait, upstream_status=status)
    if status in {503, 529}:
        return UpstreamBusy(f"{who} is busy ({status}){words}", retry_after=wait, upstream_status=status)
    if status >= 500 or status in {409, 425}:
        return UpstreamUnavailable(f"{who} answered {status}{words}", retry_after=wait, upstream_status=status)
    if status >= 400:
        return _rejected(status, message, told, endpoint)
    return _unexpected(status, endpoint)


def _rejected(status: int, message: str, told: Said, endpoint: Endpoint) -> UpstreamRejected:
    code = _name(told.code, endpoint)
    wire = ErrorFields(
        status=status,
        type=_name(told.type, endpoint) or "invalid_request_error",
        code=code if code and code not in OUR_CODES else "upstream_rejected",
        message=message or f"{endpoint.prefix} refused the request with {status} and gave no reason",
        param=scrubbed(told.param or "", endpoint.secrets)[:200] or None,
        stage="dispatch",
        should_retry=False,
    )
    return UpstreamRejected(wire.message, wire=wire)


def _name(said: str, endpoint: Endpoint) -> str:
    """Return what was said if it is a name: it goes into logs, where prose could quote what the client said."""
    return said if _NAME.fullmatch(said) and scrubbed(said, endpoint.secrets) == said else ""


def _unexpected(status: int, endpoint: Endpoint) -> UpstreamNotApi:
    if 300 <= status < 400:
        return UpstreamNotApi(
            f"{endpoint.prefix} answered with a redirect ({status}), which is not followed",
            hint="set the deployment's `api_base` to the address it should go to",
            upstream_status=status,
        )
    return UpstreamNotApi(f"{endpoint.prefix} answered with status {status}", upstream_status=status)


def error_under_200(told: Said, endpoint: Endpoint) -> UpstreamError:
    """Return the error for an answer that says 200 and holds an error."""
    if status := _status(told):
        return provider_error(status, {}, told, endpoint)
    message = scrubbed(told.message, endpoint.secrets) or "it gave no reason"
    return UpstreamGarbled(f"{endpoint.prefix} answered 200 with an error: {message}", upstream_status=200)


def error_in_stream(told: Said, endpoint: Endpoint) -> UpstreamError:
    """Return the error a stream reports instead of going on."""
    if status := _status(told):
        return provider_error(status, {}, told, endpoint)
    message = scrubbed(told.message, endpoint.secrets) or "it gave no reason"
    return UpstreamUnavailable(f"{endpoint.prefix} ended the stream with an error: {message}", upstream_status=200)


def _status(told: Said) -> int:
    """Return the HTTP status that some hosts put into an error's `code`; 0 if it is none."""
    return int(told.code) if _STATUS.fullmatch(told.code) else 0
