"""A prompt manager that fetches prompts from a service over HTTP, and keeps each for a minute."""

from __future__ import annotations

import os
import time
from typing import Any
from urllib.parse import quote

import httpx2
from litellm.integrations.custom_prompt_management import CustomPromptManagement

SERVICE = os.environ.get("PROMPT_SERVICE_URL", "http://127.0.0.1:8090")
KEEP = float(os.environ.get("PROMPT_SERVICE_KEEP", "60"))  # seconds
TIMEOUT = 5.0  # seconds; the gateway's own limit is `prompt_timeout`


class RemotePrompts(CustomPromptManagement):
    """Puts the service's messages, with the variables filled in, before those of the client."""

    def __init__(self) -> None:
        super().__init__()
        self._client: httpx2.AsyncClient | None = None
        self._kept: dict[str, tuple[float, dict[str, Any]]] = {}

    async def async_get_chat_completion_prompt(
        self,
        model: str,
        messages: list[Any],
        non_default_params: dict[str, Any],
        prompt_id: str,
        prompt_variables: dict[str, Any] | None,
        dynamic_callback_params: dict[str, Any],
        prompt_version: str | int | None = None,
        **_: Any,
    ) -> tuple[str, list[Any], dict[str, Any]]:
        """Return the prompt's messages before the client's, and the prompt's model if it names one."""
        prompt = await self._prompt(prompt_id, prompt_version)
        template = [{**message, "content": _filled(message, prompt_variables)} for message in prompt["messages"]]
        return prompt.get("model") or model, template + messages, non_default_params

    async def _prompt(self, prompt_id: str, version: str | int | None) -> dict[str, Any]:
        """Return a prompt: a copy that is fresh enough, else the service's, else an old copy."""
        path = f"/prompts/{quote(prompt_id, safe='')}" + (f"?version={quote(str(version))}" if version else "")
        until, prompt = self._kept.get(path, (0.0, {}))
        if time.monotonic() < until:
            return prompt
        try:
            fetched = await self._fetch(path, prompt_id)
        except ConnectionError:
            if not prompt:
                raise
            fetched = prompt  # the service is away: an old prompt is better than none
        self._kept[path] = (time.monotonic() + KEEP, fetched)
        return fetched

    async def _fetch(self, path: str, prompt_id: str) -> dict[str, Any]:
        # Made on first use, for it belongs to the event loop that the gateway runs this code in.
        self._client = self._client or httpx2.AsyncClient(base_url=SERVICE, timeout=TIMEOUT)
        try:
            response = await self._client.get(path)
        except httpx2.TransportError as error:
            raise ConnectionError(f"the prompt service does not answer ({type(error).__name__})") from None
        if response.status_code == 404:
            raise LookupError(f"the prompt service has no prompt {prompt_id!r}")
        if response.status_code != 200:
            raise ConnectionError(f"the prompt service answered with status {response.status_code}")
        prompt: dict[str, Any] = response.json()
        return prompt


def _filled(message: dict[str, Any], variables: dict[str, Any] | None) -> str:
    """Return the text of a message with `{name}` replaced. A variable that is missing is an error."""
    try:
        return str(message["content"]).format(**(variables or {}))
    except KeyError as error:
        raise LookupError(f"the prompt needs a variable {error}; send it in `prompt_variables`") from None


manager = RemotePrompts()
