"""Body fields that a prompt manager sees under other names, or beside the client's."""

from __future__ import annotations

from typing import Final

from pipeline.operations import OPERATIONS

VOUCHED_FIELDS: Final = ("user_api_key_alias", "requester_metadata", "headers", "endpoint")
"""Keys the gateway adds to the `metadata` a hook sees; none of them goes upstream."""


def messages_field(operation: str) -> str:
    """Return the body field that holds the conversation, or the text that stands for one."""
    return OPERATIONS[operation].content


def is_text(operation: str) -> bool:
    """Whether that field is sent upstream as a text: what a manager says has to become one."""
    return OPERATIONS[operation].texts
