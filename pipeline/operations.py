"""What clients can ask for, and what a body that asks for it holds."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple


class Operation(NamedTuple):
    """One kind of call in OpenAI's dialect."""

    path: str
    """Below `/v1`, here and at providers."""
    content: str
    """Body field that holds what is asked."""
    required: bool = True
    """Whether that field has to be there once the prompt is resolved."""
    texts: bool = False
    """Whether that field is a text, or a list of them, and no conversation."""
    streams: bool = True
    model: str = ""
    """The model of a request that names none."""


OPERATIONS: Final = MappingProxyType(
    {
        "chat.completions": Operation("/chat/completions", "messages"),
        "completions": Operation("/completions", "prompt", texts=True),
        "embeddings": Operation("/embeddings", "input", texts=True, streams=False),
        # OpenAI's SDKs leave the model out, and this is its default.
        "moderations": Operation("/moderations", "input", texts=True, streams=False, model="omni-moderation-latest"),
        # A Response may go on from an earlier one, or from a conversation.
        "responses": Operation("/responses", "input", required=False),
    }
)
"""Every operation, under the name that a job carries."""
