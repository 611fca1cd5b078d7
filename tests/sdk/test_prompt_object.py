"""OpenAI's `prompt={"id", "version", "variables"}`, as openai-python sends it, on Responses and on chat."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from fakes import page
from fakes.environments import Environments
from fakes.gateways import start_gateway
from fakes.upstream import run_upstream_in_thread

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(400)]

MANAGER = """
from litellm.integrations.custom_prompt_management import CustomPromptManagement

class Choosing(CustomPromptManagement):
    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params,
        prompt_version=None,
    ):
        text = f"{prompt_id} {prompt_version} {sorted((prompt_variables or {}).items())}"
        return "gpt-4", [{"role": "system", "content": text}, *messages], {**non_default_params, "temperature": 0.5}

prompt_management = Choosing()
"""
PROMPT = {"id": "1234", "version": "2", "variables": {"name": "Ada"}}
RENDERED = "1234 2 [('name', 'Ada')]"


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[page.Running]:
    """The page's configuration with a manager that chooses the model."""
    directory: Path = tmp_path_factory.mktemp("choosing")
    (directory / "custom_prompt.py").write_text(MANAGER)
    with run_upstream_in_thread() as upstream:
        upstream.default = page.answer
        variables = {"OPENAI_API_KEY": page.UPSTREAM_KEY}
        with start_gateway(directory, config=page.config(upstream.url), variables=variables) as gateway:
            yield page.Running(gateway, upstream)


def call_each_way(
    running: page.Running, environments: Environments, sdk: str, method: str, arguments: dict[str, Any]
) -> None:
    """Make the call with and without `/v1`, streamed and not; each must say hello."""
    running.upstream.requests.clear()
    calls = [
        {
            "client": {"base_url": running.gateway.url + base},
            "method": method,
            "arguments": {**arguments, **streamed},
        }
        for base, streamed in product(("", "/v1"), ({}, {"stream": True}))
    ]
    came = environments.run(sdk, "openai_calls.py", calls)
    assert [answer["text"] for answer in came] == ["hello"] * 4, came
    assert {received.headers["authorization"] for received in running.upstream.requests} == {
        f"Bearer {page.UPSTREAM_KEY}"
    }


def sent(running: page.Running) -> list[dict[str, Any]]:
    return [{name: value for name, value in body.items() if name != "stream"} for body in running.bodies]


@pytest.mark.parametrize("sdk", ["openai-2", "openai-3"])
def test_a_response_needs_neither_model_nor_input(choosing: page.Running, environments: Environments, sdk: str) -> None:
    call_each_way(choosing, environments, sdk, "responses.create", {"prompt": PROMPT})
    rendered = [{"role": "system", "content": RENDERED}]
    assert sent(choosing) == [{"model": "gpt-4", "input": rendered, "temperature": 0.5}] * 4
    assert {received.path for received in choosing.upstream.requests} == {"/v1/responses"}


@pytest.mark.parametrize("sdk", ["openai-2", "openai-3"])
def test_chat_takes_the_same_object(choosing: page.Running, environments: Environments, sdk: str) -> None:
    arguments = {"model": "gemini-1.5-pro", "messages": [], "extra_body": {"prompt": PROMPT}}
    call_each_way(choosing, environments, sdk, "chat.completions.create", arguments)
    rendered = [{"role": "system", "content": RENDERED}]
    assert sent(choosing) == [{"model": "gpt-4", "messages": rendered, "temperature": 0.5}] * 4
