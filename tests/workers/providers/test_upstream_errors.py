"""What a provider's refusal becomes."""

from __future__ import annotations

import email.utils
import time

import pytest

from pipeline.errors import (
    UpstreamAuthFailed,
    UpstreamBusy,
    UpstreamForbidden,
    UpstreamNotApi,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from workers.batches.answers import DEAD, PASSING, TOO_LATE
from workers.providers._dialect import Endpoint
from workers.providers._errors import LONGEST_REST, MESSAGE_LIMIT, Said, provider_error, retry_after, said, scrubbed

ENDPOINT = Endpoint(prefix="groq", urls={}, headers={}, secrets=("my+secret",))


@pytest.mark.parametrize(
    ("status", "kind", "shown", "retryable"),
    [
        (401, UpstreamAuthFailed, 502, True),
        (402, UpstreamAuthFailed, 502, True),
        (403, UpstreamForbidden, 502, True),
        (408, UpstreamTimeout, 504, True),
        (409, UpstreamUnavailable, 502, True),
        (425, UpstreamUnavailable, 502, True),
        (429, UpstreamOverloaded, 429, True),
        (500, UpstreamUnavailable, 502, True),
        (502, UpstreamUnavailable, 502, True),
        (503, UpstreamBusy, 503, True),
        (504, UpstreamTimeout, 504, True),
        (529, UpstreamBusy, 503, True),
        (400, UpstreamRejected, 400, False),
        (404, UpstreamRejected, 404, False),
        (422, UpstreamRejected, 422, False),
        (301, UpstreamNotApi, 502, True),
        (204, UpstreamNotApi, 502, True),
    ],
)
def test_each_status_has_its_error(status: int, kind: type, shown: int, retryable: bool) -> None:
    error = provider_error(status, {}, Said(message="words"), ENDPOINT)
    assert type(error) is kind
    assert error.fields().status == shown
    assert error.retryable is retryable
    assert error.upstream_status == status


def test_a_rejection_keeps_the_providers_words() -> None:
    body = b'{"error":{"message":"too long","type":"invalid_request_error","code":"context_length","param":"messages"}}'
    fields = provider_error(400, {}, said(body), ENDPOINT).fields()
    assert (fields.message, fields.type, fields.code, fields.param) == (
        "too long",
        "invalid_request_error",
        "context_length",
        "messages",
    )
    assert fields.should_retry is False


def test_a_rejection_without_words_says_who_and_what() -> None:
    fields = provider_error(422, {}, said(b"<html>"), ENDPOINT).fields()
    assert "groq refused the request with 422" in fields.message
    assert (fields.type, fields.code, fields.param) == ("invalid_request_error", "upstream_rejected", None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":"plain"}', "plain"),
        (b'{"message":"top"}', "top"),
        (b'{"detail":"fastapi"}', "fastapi"),
        (b'{"detail":[{"loc":1}]}', ""),
        (b'{"error":{"message":{"a":1}}}', ""),
        (b'{"error":[1]}', ""),
        (b'{"error":{"message":', ""),
        (b"[]", ""),
        (b"\xff", ""),
    ],
)
def test_errors_of_many_shapes_are_read(body: bytes, message: str) -> None:
    assert said(body).message == message


def test_a_refused_key_is_the_operators_and_says_so() -> None:
    error = provider_error(401, {}, Said(message="Incorrect API key: my+secret"), ENDPOINT)
    assert "refused the key of this deployment" in error.message
    assert "my+secret" not in error.message
    assert "operator" in error.hint
    assert error.fields().code == "upstream_auth_failed"


def test_an_account_without_credit_is_the_operators_as_well() -> None:
    error = provider_error(402, {}, Said(message="Insufficient Balance"), ENDPOINT)
    assert "with 402: Insufficient Balance" in error.message
    assert "the operator must check the credit" in error.hint


@pytest.mark.parametrize(
    "secret",
    ["my+secret", "sk-proj-abcdef123", "Bearer abc.def-123", "gsk_abcdefgh", "AKIAABCDEFGHIJKLMNOP", "sk-abc***wxyz"],
)
def test_whatever_looks_like_a_key_is_redacted(secret: str) -> None:
    assert scrubbed(f"Incorrect API key provided: {secret}.", ("my+secret",)).startswith(
        "Incorrect API key provided: [redacted]"
    )
    assert secret not in scrubbed(f"x {secret} y", ("my+secret",))


def test_ordinary_words_are_not_redacted() -> None:
    text = "the task-based key_of model sk- is risky; max_tokens must be <= 4096"
    assert scrubbed(text, ()) == text


def test_a_short_key_is_taken_out_but_not_of_other_words() -> None:
    text = "key none refused: model nonexistent is not among (none)"
    assert scrubbed(text, ("none",)) == "key [redacted] refused: model nonexistent is not among ([redacted])"


@pytest.mark.parametrize("said", ["my+secret", "sk-abcdefghijk", "words of the user", "a\nline", "x" * 65])
def test_a_rejections_type_and_code_are_names_and_its_param_is_scrubbed(said: str) -> None:
    fields = provider_error(
        400, {}, Said(message="m", type=said, code=said, param=f"my+secret {said}"), ENDPOINT
    ).fields()
    assert (fields.type, fields.code) == ("invalid_request_error", "upstream_rejected")
    assert str(fields.param).startswith("[redacted] ")


@pytest.mark.parametrize("code", sorted(PASSING | DEAD | {TOO_LATE}))
def test_a_rejections_code_is_none_by_which_the_gateway_decides(code: str) -> None:
    fields = provider_error(400, {}, Said(message="m", type=code, code=code), ENDPOINT).fields()
    assert (fields.type, fields.code) == (code, "upstream_rejected")


@pytest.mark.parametrize("code", ["model_not_found", "invalid_api_key", "context_length_exceeded"])
def test_a_rejections_code_may_be_any_other_name(code: str) -> None:
    assert provider_error(400, {}, Said(message="m", code=code), ENDPOINT).fields().code == code


def test_a_long_message_is_cut() -> None:
    assert len(scrubbed("long " * 5000, ())) == MESSAGE_LIMIT + 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "0", "retry-after": "9"}, 9.0),
        ({"retry-after": "86400"}, LONGEST_REST),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_seconds_and_milliseconds(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 27 < (retry_after({"retry-after": soon}) or 0) <= 30
    assert retry_after({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}) == LONGEST_REST
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) is None


def test_a_date_is_counted_from_the_providers_own() -> None:
    until = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert retry_after({"retry-after": until, "date": "Wed, 21 Oct 2015 07:27:30 GMT"}) == 30
    assert retry_after({"retry-after": until, "date": "Wed, 21 Oct 2015 07:28:00 GMT"}) is None
    assert retry_after({"retry-after": until, "date": "today"}) is None
