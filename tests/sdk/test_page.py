"""The page's own clients, against a gateway that runs the page's own files."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from itertools import product
from typing import Any

import pytest
from fakes.environments import ROOT, Environments
from fakes.page import SEED, TRANSFORMED, UPSTREAM_KEY, Running

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(400)]

HI = [{"role": "user", "content": "hi"}]
BASES = ("", "/v1")


def check_what_was_sent(running: Running, model: str, count: int) -> None:
    """The provider got the transformed request each time, from the deployment, and nothing of the gateway's own."""
    assert len(running.bodies) == count
    for received in running.upstream.requests:
        body = received.json
        assert received.path == "/v1/chat/completions"
        assert received.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
        assert body.pop("stream", None) in (None, False, True)
        assert body == {"model": model, "messages": TRANSFORMED, "prompt_cache_key": "theirs"}


def test_the_demos_prompt_manager_is_the_pages() -> None:
    assert (ROOT / "pipeline" / "demo" / "custom_prompt.py").read_bytes() == (SEED / "custom_prompt.py").read_bytes()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here; the other clients send the same")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
def test_the_pages_curl_command_has_the_documented_effect(running: Running, path: str) -> None:
    url = f"http://0.0.0.0:{running.gateway.url.rpartition(':')[2]}{path}"  # as on the page, 0.0.0.0 and all
    command = (SEED / "request.sh").read_text().replace("http://0.0.0.0:4000/v1/chat/completions", url)
    assert json.loads(shlex.split(command)[-1]) == json.loads((SEED / "before.json").read_text())
    words = [*shlex.split(command.replace("\\\n", " ")), "--silent", "--show-error", "--noproxy", "*"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "hello"
    (body,) = running.bodies
    expected = json.loads((SEED / "after.json").read_text())
    assert body == {**expected, "model": "gemini-1.5-pro-002"}
    assert expected["messages"] == TRANSFORMED


@pytest.mark.parametrize("sdk", ["openai-2", "openai-3"])
def test_openai_python_gets_an_answer_to_the_transformed_request(
    running: Running, environments: Environments, sdk: str
) -> None:
    arguments: dict[str, Any] = {
        "model": "gemini-1.5-pro",
        "messages": HI,
        "prompt_cache_key": "theirs",
        "extra_body": {"prompt_id": "1234", "tags": ["a"], "litellm_metadata": {"a": 1}},
    }
    calls = [
        {"client": {"base_url": running.gateway.url + base}, "arguments": {**arguments, **streamed}}
        for base, streamed in product(BASES, ({}, {"stream": True}))
    ]
    came = environments.run(sdk, "openai_calls.py", calls)
    assert [answer["text"] for answer in came] == ["hello"] * 4, came
    assert {answer["version"].partition(".")[0] for answer in came} == {sdk[-1]}
    assert [body.get("stream") for body in running.bodies] == [None, True, None, True]
    check_what_was_sent(running, "gemini-1.5-pro-002", 4)


def test_langchain_gets_an_answer_to_the_transformed_request(running: Running, environments: Environments) -> None:
    extra = {"prompt_id": "1234", "prompt_cache_key": "theirs"}
    calls = [
        {
            "options": {"model": "gpt-4", "openai_api_base": running.gateway.url + base, "extra_body": extra},
            "messages": HI,
            "stream": stream,
        }
        for base, stream in product(BASES, (False, True))
    ]
    assert environments.run("langchain", "langchain_calls.py", calls) == ["hello"] * 4
    own = ("stream", "stream_options")  # LangChain asks for the usage of a stream by itself
    sent = [{k: v for k, v in body.items() if k not in own} for body in running.bodies]
    assert sent == [{"model": "gpt-4", "messages": TRANSFORMED, "prompt_cache_key": "theirs"}] * 4
    assert {received.headers["authorization"] for received in running.upstream.requests} == {f"Bearer {UPSTREAM_KEY}"}


def test_langchain_without_messages_sends_the_system_message_alone(
    running: Running, environments: Environments
) -> None:
    """As on the page: its `messages` are empty."""
    options = {"model": "gpt-4", "openai_api_base": running.gateway.url, "extra_body": {"prompt_id": "1234"}}
    assert environments.run("langchain", "langchain_calls.py", [{"options": options, "messages": []}]) == ["hello"]
    assert [body["messages"] for body in running.bodies] == [TRANSFORMED[:1]]
