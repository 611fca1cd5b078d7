"""The fields of a body that go upstream, and those that never do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pipeline.errors import InvalidRequest
from workers.providers._dialect import UNDECODABLE, Fields

# By exact name, never by prefix: OpenAI's own `prompt_cache_key` passes.
_PROMPT: Final = frozenset({"prompt_id", "prompt_variables", "prompt_label", "prompt_version", "prompt_environment"})
_CONTROLS: Final = frozenset(
    """
    tags num_retries max_retries fallbacks context_window_fallbacks content_policy_fallbacks disable_fallbacks
    default_fallbacks timeout request_timeout stream_timeout drop_params additional_drop_params allowed_openai_params
    guardrails policies cache caching ttl no-log mock_response mock_timeout mock_tool_calls mock_delay
    mock_testing_fallbacks mock_testing_context_fallbacks mock_testing_content_policy_fallbacks model_list model_info
    user_config router_settings_override rpm tpm max_parallel_requests cooldown_time custom_prompt_dict
    prompt_spec ignore_prompt_manager_model ignore_prompt_manager_optional_params proxy_server_request
    enable_json_schema_validation configurable_clientside_auth_params
    """.split()  # noqa: SIM905 - as quoted strings, one a line, they would be harder to read
)
# Where a call goes and with whose credentials is the operator's decision, whatever a request says.
_CREDENTIALS: Final = frozenset(
    """
    api_key api_base base_url api_version api_type organization custom_llm_provider extra_headers extra_body
    extra_query headers proxy client ssl_verify ssl_certificate deployment_id azure_ad_token azure_ad_token_provider
    azure_endpoint azure_scope azure_username azure_password tenant_id client_id client_secret region_name
    aws_access_key_id aws_secret_access_key aws_session_token aws_region_name aws_session_name aws_profile_name
    aws_role_name aws_web_identity_token aws_sts_endpoint aws_external_id aws_bedrock_runtime_endpoint
    vertex_project vertex_location vertex_credentials vertex_ai_project vertex_ai_location vertex_ai_credentials
    watsonx_region_name wx_credentials use_xai_oauth bucket_name gcs_bucket_name s3_bucket_name
    langfuse_public_key langfuse_secret langfuse_secret_key langfuse_host langfuse_prompt_version
    langsmith_api_key langsmith_project langsmith_base_url
    """.split()  # noqa: SIM905 - as quoted strings, one a line, they would be harder to read
)
_DROPPED: Final = _PROMPT | _CONTROLS | _CREDENTIALS

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
    for name in [name for name in fields if name in _DROPPED or name.startswith("litellm_")]:
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
