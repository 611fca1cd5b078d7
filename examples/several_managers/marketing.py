"""Prompts of the marketing team: any id that begins with `marketing/`, by the product's name."""

from __future__ import annotations

from typing import Any

from house_rules import with_rules
from litellm.integrations.custom_prompt_management import CustomPromptManagement

PREFIX = "marketing/"


class MarketingPrompts(CustomPromptManagement):
    """Serves one product per id."""

    def should_run_prompt_management(self, prompt_id: str, dynamic_callback_params: dict[str, Any]) -> bool:
        """Whether the prompt is one of ours."""
        return prompt_id.startswith(PREFIX)

    def get_chat_completion_prompt(
        self,
        model: str,
        messages: list[Any],
        non_default_params: dict[str, Any],
        prompt_id: str,
        prompt_variables: dict[str, Any] | None,
        dynamic_callback_params: dict[str, Any],
    ) -> tuple[str, list[Any], dict[str, Any]]:
        """Return the prompt for a product before the client's messages."""
        product = prompt_id.removeprefix(PREFIX)
        return model, with_rules(f"Write a line that sells {product}.", messages), non_default_params


manager = MarketingPrompts()
