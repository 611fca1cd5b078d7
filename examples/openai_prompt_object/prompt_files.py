"""A prompt manager that reads prompts from files, `prompts/ID/VERSION.md`, and fills in their `{{variables}}`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from litellm.integrations.custom_prompt_management import CustomPromptManagement

PROMPTS = Path(__file__).with_name("prompts")
MODEL = "gpt-4.1"  # for requests that name none, as those with a hosted prompt do


class PromptFiles(CustomPromptManagement):
    """Serves every prompt there is a directory for."""

    def should_run_prompt_management(self, prompt_id: str, dynamic_callback_params: dict[str, Any]) -> bool:
        """Whether there is such a prompt; an id is a name, never a path."""
        return re.fullmatch(r"[\w-]+", prompt_id) is not None and (PROMPTS / prompt_id).is_dir()

    def get_chat_completion_prompt(
        self,
        model: str,
        messages: list[Any],
        non_default_params: dict[str, Any],
        prompt_id: str,
        prompt_variables: dict[str, Any] | None,
        dynamic_callback_params: dict[str, Any],
        prompt_version: str | int | None = None,
    ) -> tuple[str, list[Any], dict[str, Any]]:
        """Return the prompt as a system message before the client's own."""
        text = _filled(_text(prompt_id, prompt_version), prompt_variables or {})
        return model or MODEL, [{"role": "system", "content": text}, *messages], non_default_params


def _text(prompt_id: str, version: str | int | None) -> str:
    """Return the text of a version; of the newest when none is asked for."""
    versions = {int(path.stem): path for path in (PROMPTS / prompt_id).glob("*.md") if path.stem.isdecimal()}
    wanted = max(versions) if version is None else int(version) if str(version).isdecimal() else 0
    if wanted not in versions:
        known = ", ".join(map(str, sorted(versions)))
        raise LookupError(f"prompt {prompt_id} has no version {version}; there is {known}")
    return versions[wanted].read_text(encoding="utf-8").strip()


def _filled(text: str, variables: dict[str, Any]) -> str:
    """Return `text` with each `{{name}}` replaced; a value is text, or OpenAI's `{"type": "input_text", "text": …}`."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in variables:
            raise LookupError(f"the prompt needs a variable {found[1]!r}; send it in `prompt.variables`")
        given = variables[found[1]]
        return str(given["text"] if isinstance(given, dict) else given)

    return re.sub(r"\{\{\s*(\w+)\s*\}\}", value, text)


manager = PromptFiles()
