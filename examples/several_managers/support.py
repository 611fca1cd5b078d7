"""Prompts of the support team: every id that begins with `support/`."""

from __future__ import annotations

from typing import Any

from house_rules import with_rules
from litellm.integrations.custom_prompt_management import CustomPromptManagement

PROMPTS = {
    "support/refund": "Help {customer} to get a refund.",
    "support/delivery": "Find out where the parcel of {customer} is.",
}


class SupportPrompts(CustomPromptManagement):
    """Serves the ids it has."""

    def should_run_prompt_management(self, prompt_id: str, dynamic_callback_params: dict[str, Any]) -> bool:
        """Whether the prompt is one of ours."""
        return prompt_id in PROMPTS

    def get_chat_completion_prompt(
        self,
        model: str,
        messages: list[Any],
        non_default_params: dict[str, Any],
        prompt_id: str,
        prompt_variables: dict[str, Any] | None,
        dynamic_callback_params: dict[str, Any],
    ) -> tuple[str, list[Any], dict[str, Any]]:
        """Return the prompt with the customer's name, before the client's messages; answers stay sober."""
        customer = (prompt_variables or {}).get("customer", "the customer")
        return model, with_rules(PROMPTS[prompt_id].format(customer=customer), messages), {"temperature": 0}


manager = SupportPrompts()
