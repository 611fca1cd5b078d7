"""What is written about a line: its answer, its error, or that it never ran; and what that says when it is read."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pipeline.errors import (
    ConfigMismatch,
    DeadlineExceeded,
    InternalError,
    ModelDisabled,
    NoWorker,
    PromptManagerError,
    PromptTimeout,
    PromptWorkerLost,
    TransportUnavailable,
    UpstreamAuthFailed,
    UpstreamCut,
    UpstreamForbidden,
    UpstreamNotApi,
    UpstreamOverloaded,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from pipeline.job import ErrorFields, Facts, Reply, encode_json
from pipeline.stores.batch_records import Usage

PASSING: Final = frozenset(
    error.code
    for error in (
        UpstreamOverloaded,
        UpstreamUnavailable,
        UpstreamTimeout,
        UpstreamCut,
        UpstreamNotApi,
        UpstreamAuthFailed,
        UpstreamForbidden,
        ModelDisabled,
        PromptManagerError,
        PromptTimeout,
        NoWorker,
        TransportUnavailable,
        ConfigMismatch,
    )
)
"""Codes of errors that are not about the line itself, or for the operator to mend: it is fed again later."""

FAILING: Final = frozenset(
    error.code
    for error in (
        UpstreamUnavailable,
        UpstreamTimeout,
        UpstreamCut,
        UpstreamNotApi,
        UpstreamForbidden,
        PromptManagerError,
        PromptTimeout,
    )
)
"""Those among them that one line may meet each time, although others are served."""

DEAD: Final = frozenset((InternalError.code, PromptWorkerLost.code))
"""Codes of errors that come with a dead letter."""

TOO_LATE: Final = DeadlineExceeded.code


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    input_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class _Response(msgspec.Struct):
    body: _Body


class _Mark(msgspec.Struct):
    line: int


class _Written(msgspec.Struct):
    promptmill: _Mark
    response: msgspec.Raw = msgspec.Raw(b"null")


class _Said(msgspec.Struct):
    code: str


class _ErrorBody(msgspec.Struct):
    error: _Said


class _ErrorResponse(msgspec.Struct):
    body: _ErrorBody


class _Refused(msgspec.Struct):
    promptmill: _Mark
    error: _Said | None = None
    response: _ErrorResponse | None = None


_decode_body: Final = msgspec.json.Decoder(_Body).decode
_decode_written: Final = msgspec.json.Decoder(_Written).decode
_decode_refused: Final = msgspec.json.Decoder(_Refused).decode
_decode_response: Final = msgspec.json.Decoder(_Response).decode


def answered(batch: str, number: int, custom_id: str, reply: Reply, body: bytes) -> bytes:
    """Return the line of an output file."""
    if b"\n" in body or b"\r" in body:  # between values only: in a text of JSON they are escaped
        body = body.replace(b"\n", b" ").replace(b"\r", b" ")
    if not body.isascii():
        body = body.decode(errors="replace").encode()  # one broken character would keep clients from reading the file
    return b'{"id":%b,"custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null,%b}\n' % (
        encode_json(_id(batch, number)),
        encode_json(custom_id),
        reply.status,
        encode_json(f"req_{reply.id}"),
        body or b"null",
        _mark(number, reply.facts),
    )


def refused(batch: str, number: int, custom_id: str, error: ErrorFields, facts: Facts | None = None) -> bytes:
    """Return the line of an error file for a request that was answered with an error."""
    said = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    if error.hint:
        said["hint"] = error.hint
    response = {"status_code": error.status, "request_id": f"req_{batch}_{number}", "body": {"error": said}}
    return _line(batch, number, custom_id, response, None, facts)


def unrun(batch: str, number: int, custom_id: str, code: str, message: str) -> bytes:
    """Return the line of an error file for a request that has no answer because its batch ended."""
    return _line(batch, number, custom_id, None, {"code": code, "message": message}, None)


def used(body: bytes) -> Usage:
    """Return the tokens that an answer says it took."""
    try:
        return _usage(_decode_body(body).usage)
    except msgspec.DecodeError:  # a provider's dialect of its own
        return Usage()


def read_result(line: bytes) -> tuple[int, Usage]:
    """Return the number of the input line that a written result is of, and its tokens. Raises ValueError."""
    written = _decode_written(line)
    try:
        return written.promptmill.line, _usage(_decode_response(written.response).body.usage)
    except msgspec.DecodeError:
        return written.promptmill.line, Usage()  # it says none


def read_error(line: bytes) -> tuple[int, str]:
    """Return the number of the input line that a written error is of, and its code. Raises ValueError."""
    written = _decode_refused(line)
    error = written.error or (written.response and written.response.body.error)
    return written.promptmill.line, error.code if error else ""


def _usage(said: _Usage | None) -> Usage:
    if said is None:
        return Usage()
    given = said.input_tokens_details or said.prompt_tokens_details
    made = said.output_tokens_details or said.completion_tokens_details
    return Usage(
        input_tokens=said.input_tokens or said.prompt_tokens or 0,
        output_tokens=said.output_tokens or said.completion_tokens or 0,
        cached_tokens=(given.cached_tokens or 0) if given else 0,
        reasoning_tokens=(made.reasoning_tokens or 0) if made else 0,
    )


def _line(batch: str, number: int, custom_id: str, response: Any, error: Any, facts: Facts | None) -> bytes:
    head = encode_json(
        {"id": _id(batch, number), "custom_id": custom_id, "response": response, "error": error},
    )
    return b"%b,%b}\n" % (head[:-1], _mark(number, facts or Facts()))


def _id(batch: str, number: int) -> str:
    return f"batch_req_{batch}_{number}"


def _mark(number: int, facts: Facts) -> bytes:
    """Return what we add to a line: where it comes from and how it went."""
    told = {
        "line": number,
        "prompt_id": facts.prompt_id or None,
        "prompt": facts.prompt or None,
        "deployment": facts.deployment or None,
        "attempts": facts.attempts,
    }
    return b'"promptmill":' + encode_json(told)
