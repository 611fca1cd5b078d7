"""Names of body fields that decide what a prompt manager sees and what it may say."""

from __future__ import annotations

from typing import Final

from pipeline.operations import OPERATIONS

PROMPT_FIELDS: Final = frozenset(
    {"prompt_id", "prompt_variables", "prompt_label", "prompt_version", "prompt_environment"}
)
"""Prompt references. By exact name: `prompt_cache_key` is OpenAI's own."""

GATEWAY_FIELDS: Final = frozenset(
    {
        "cache",
        "drop_params",
        "fallbacks",
        "guardrails",
        "num_retries",
        "stream_timeout",
        "tags",
        "timeout",
    }
)
"""What tells the gateway, not the provider, what to do; `litellm_*` are the others."""

CREDENTIAL_FIELDS: Final = frozenset(
    {
        "api_base",
        "api_key",
        "api_version",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
        "azure_ad_token",
        "base_url",
        "custom_llm_provider",
        "extra_headers",
        "headers",
        "organization",
        "proxies",
        "vertex_credentials",
    }
)
"""What decides where a call goes and who pays: it comes from the deployment, never from a request or a manager."""

VOUCHED_FIELDS: Final = ("user_api_key_alias", "requester_metadata", "headers", "endpoint")
"""Keys the gateway adds to the `metadata` a hook sees; none of them goes upstream."""


def is_gateway_field(name: str) -> bool:
    """Whether a body field is for the gateway."""
    return name in GATEWAY_FIELDS or name.startswith("litellm_")


def messages_field(operation: str) -> str:
    """Return the body field that holds the conversation, or the text that stands for one."""
    return OPERATIONS[operation].content


def is_text(operation: str) -> bool:
    """Whether that field is sent upstream as a text: what a manager says has to become one."""
    return OPERATIONS[operation].texts
