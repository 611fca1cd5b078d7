"""Names of body fields that are for the gateway: none of them goes to a provider as it came."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PROMPT_FIELDS: Final = _words("prompt_id prompt_variables prompt_label prompt_version prompt_environment")
"""Prompt references. By exact name, as all here: `prompt_cache_key` is OpenAI's own."""

CONTROL_FIELDS: Final = _words("""
    tags num_retries max_retries fallbacks context_window_fallbacks content_policy_fallbacks disable_fallbacks
    default_fallbacks timeout request_timeout stream_timeout drop_params additional_drop_params allowed_openai_params
    guardrails policies cache caching ttl no-log mock_response mock_timeout mock_tool_calls mock_delay
    mock_testing_fallbacks mock_testing_context_fallbacks mock_testing_content_policy_fallbacks model_list model_info
    user_config router_settings_override rpm tpm max_parallel_requests cooldown_time custom_prompt_dict
    prompt_spec ignore_prompt_manager_model ignore_prompt_manager_optional_params proxy_server_request
    enable_json_schema_validation configurable_clientside_auth_params langfuse_prompt_version langsmith_project
    extra_body extra_query
""")
"""What tells the gateway, not the provider, what to do; `litellm_*` are the others."""

CREDENTIAL_FIELDS: Final = _words("""
    api_key api_base base_url api_version api_type organization custom_llm_provider extra_headers headers
    proxy proxies client ssl_verify ssl_certificate deployment_id azure_ad_token azure_ad_token_provider
    azure_endpoint azure_scope azure_username azure_password tenant_id client_id client_secret
    region_name aws_access_key_id aws_secret_access_key aws_session_token aws_region_name aws_session_name
    aws_profile_name aws_role_name aws_web_identity_token aws_sts_endpoint aws_external_id aws_bedrock_runtime_endpoint
    vertex_project vertex_location vertex_credentials vertex_ai_project vertex_ai_location vertex_ai_credentials
    watsonx_region_name wx_credentials use_xai_oauth bucket_name gcs_bucket_name s3_bucket_name
    langfuse_public_key langfuse_secret langfuse_secret_key langfuse_host langsmith_api_key langsmith_base_url
""")
"""What decides where a call goes and who pays: it comes from the deployment, never from a request or a manager."""

_ALL: Final = PROMPT_FIELDS | CONTROL_FIELDS | CREDENTIAL_FIELDS


def is_for_gateway(name: str) -> bool:
    """Whether neither a provider nor a prompt manager gets this field."""
    return name in _ALL or name.startswith("litellm_")
