"""What of a body goes upstream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.errors import InvalidRequest
from workers.providers._fields import encode_fields, kept_fields

CHAT = "chat.completions"


def kept(body: dict[str, Any], operation: str = CHAT, *, stream: bool = False) -> Any:
    return json.loads(encode_fields(kept_fields(operation, json.dumps(body).encode(), stream=stream)))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "prompt_id",
            "prompt_variables",
            "prompt_label",
            "prompt_version",
            "prompt_environment",
            "tags",
            "num_retries",
        ),
        *("fallbacks", "timeout", "stream_timeout", "drop_params", "guardrails", "cache", "litellm_metadata"),
        *("mock_response", "api_key", "api_base", "base_url", "api_version", "organization", "custom_llm_provider"),
        *("extra_headers", "extra_body", "proxy", "user_config", "aws_secret_access_key", "vertex_credentials"),
    ],
)
def test_a_gateways_own_field_never_goes_upstream(name: str) -> None:
    assert kept({"model": "m", name: "x"}) == {"model": "m"}


def test_everything_else_passes_unknown_fields_included() -> None:
    body = {"model": "m", "prompt_cache_key": "k", "user": "u", "foo": [1, {"api_key": "nested"}], "timeouts": 1}
    assert kept(body) == body


def test_values_pass_byte_for_byte() -> None:
    body = b'{"a": 1.10, "b":  {"x" : 1e3,"y":"\\u00e9"}, "n": 123456789012345678901234567890}'
    assert encode_fields(kept_fields(CHAT, body, stream=False)) == (
        b'{"a":1.10,"b":{"x" : 1e3,"y":"\\u00e9"},"n":123456789012345678901234567890}'
    )


def test_a_prompt_reference_is_dropped_and_a_prompt_text_is_not() -> None:
    assert kept({"prompt": {"id": "1"}}) == {}
    assert kept({"prompt": "text"}) == {"prompt": "text"}


def test_duplicate_keys_leave_as_one() -> None:
    body = b'{"model":"a","stream":true,"model":"b","stream":false}'
    assert encode_fields(kept_fields(CHAT, body, stream=False)) == b'{"model":"b","stream":false}'


@pytest.mark.parametrize(("stream", "sent"), [(True, {"stream": True}), (False, {"stream": False})])
def test_whether_to_stream_is_what_the_ingress_read(stream: bool, sent: dict[str, bool]) -> None:
    assert kept({"stream": "yes"}, stream=stream) == sent


@pytest.mark.parametrize(
    ("operation", "body", "passes"),
    [
        ("responses", {"metadata": {"a": 1}}, True),
        (CHAT, {"metadata": {"a": "b"}}, False),
        (CHAT, {"metadata": {"a": "b"}, "store": False}, False),
        (CHAT, {"metadata": {"a": "b"}, "store": True}, True),
        (CHAT, {"metadata": {"a": 1}, "store": True}, False),
    ],
)
def test_metadata_goes_upstream_only_where_openai_stores_it(operation: str, body: dict[str, Any], passes: bool) -> None:
    assert ("metadata" in kept(body, operation)) is passes


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"a":', b'{"\xff":1}', b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"])
def test_a_body_that_is_no_object_is_the_requests_fault(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        kept_fields(CHAT, body, stream=False)
