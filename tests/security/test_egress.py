"""S1-S4, S6, S10: where calls go and with which key is the operator's, whatever requests and prompt managers say."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.callers import Caller, body, calling
from fakes.gateways import Gateway, start_gateway
from fakes.upstream import ScriptedUpstream, default, redirect, run_upstream_in_thread

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

UPSTREAM_KEY = "sk-of-the-deployment-alone"
MASTER = "sk-master-of-the-egress-tests"
TEAM = "sk-team-of-the-egress-tests"
WRITTEN = "a-literal/key+of(the)file"
HEADER = "a-header-of-the-file"

MANAGER = """
import json, os
from litellm.integrations.custom_prompt_management import CustomPromptManagement

class Mine(CustomPromptManagement):
    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        if prompt_id == "steals":
            return model, messages, {**non_default_params, **prompt_variables}
        if prompt_id == "raises":
            raise RuntimeError(f"refused: {os.environ['MANAGERS_TOKEN']} and {prompt_variables['url']}")
        if prompt_id == "quotes":
            with open(os.environ["PROMPTMILL_CONFIG"]) as file:
                raise RuntimeError(next(line for line in file if "literal" in line))
        if prompt_id == "looks":
            seen = json.dumps([dict(os.environ), non_default_params], default=str)
            return model, [{"role": "user", "content": seen}], {}
        return model, messages, non_default_params

mine = Mine()
"""


def configuration(url: str) -> str:
    return f"""
model_list:
  - model_name: gpt-4
    litellm_params: {{model: openai/gpt-4, api_base: "{url}", api_key: os.environ/THE_KEY, organization: ours}}
  - model_name: "any/*"
    litellm_params: {{model: "openai/*", api_base: "{url}", api_key: os.environ/THE_KEY}}
  - model_name: spare
    litellm_params: {{model: openai/x, api_base: "{url}", extra_headers: {{x-at: {HEADER}}}, api_key: "{WRITTEN}"}}
litellm_settings: {{callbacks: mine.mine, num_retries: 0}}
general_settings: {{master_key: os.environ/PROMPTMILL_MASTER_KEY}}
promptmill_settings: {{keys: {{team: os.environ/TEAM_KEY}}}}
"""


@pytest.fixture(scope="module")
def witness() -> Iterator[ScriptedUpstream]:
    """Where nothing may ever arrive."""
    with run_upstream_in_thread() as running:
        yield running
        assert running.connections == 0


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    (directory / "mine.py").write_text(MANAGER)
    variables = {
        "THE_KEY": UPSTREAM_KEY,
        "PROMPTMILL_MASTER_KEY": MASTER,
        "TEAM_KEY": TEAM,
        "MANAGERS_TOKEN": "a-token-of-the-manager",
    }
    with start_gateway(directory, config=configuration(upstream.url), variables=variables) as running:
        yield running
        assert running.stop(signal.SIGTERM) == 0


@pytest.fixture
async def caller(gateway: Gateway, upstream: ScriptedUpstream) -> AsyncIterator[Caller]:
    upstream.default = default
    upstream.requests.clear()
    async with calling(gateway.url, TEAM) as open_caller:
        yield open_caller


def attempts_to_redirect(url: str) -> dict[str, Any]:
    """Return everything that tells LiteLLM, or a client of OpenAI, where to call and as whom."""
    return {
        "api_base": url,
        "base_url": url,
        "api_key": "sk-of-the-attacker",
        "api_version": "2024-01-01",
        "custom_llm_provider": "hosted_vllm",
        "extra_headers": {"authorization": "Bearer sk-of-the-attacker", "x-evil": "1"},
        "headers": {"x-evil": "1"},
        "extra_body": {"api_base": url},
        "extra_query": {"x-evil": "1"},
        "proxy": url,
        "organization": "theirs",
        "litellm_params": {"api_base": url},
        "user_config": {"model_list": [{"litellm_params": {"api_base": url}}]},
        "model_list": [{"model_name": "gpt-4", "litellm_params": {"model": "openai/gpt-4", "api_base": url}}],
        "aws_bedrock_runtime_endpoint": url,
        "azure_endpoint": url,
    }


@pytest.mark.parametrize("extra", [{}, {"prompt_id": "p"}, {"stream": True}], ids=["plain", "prompt", "stream"])
async def test_s1_a_body_moves_no_call_and_changes_no_key(
    caller: Caller, upstream: ScriptedUpstream, witness: ScriptedUpstream, extra: dict[str, Any]
) -> None:
    wanted = attempts_to_redirect(witness.url)
    nested = {"metadata": wanted, "extra_body": wanted, "prompt_variables": wanted}
    for fields in (wanted, nested):
        assert (await caller.chat(**fields, **extra)).status == 200
    for received in upstream.requests:
        assert received.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
        assert received.headers["openai-organization"] == "ours"
        assert "x-evil" not in received.headers
        assert received.path == "/v1/chat/completions"
        assert received.json.keys() <= {"model", "messages", "stream"}
    assert len(upstream.requests) == 2
    assert witness.connections == 0


async def test_s1_neither_do_headers_and_the_query(
    caller: Caller, upstream: ScriptedUpstream, witness: ScriptedUpstream
) -> None:
    headers = {"x_litellm_api_base": witness.url, "openai_organization": "theirs", "x_forwarded_host": witness.url}
    content = json.dumps(body()).encode()
    path = f"/v1/chat/completions?api_base={witness.url}&api_key=sk-x"
    assert (await caller.post(content, path, **headers)).status == 200
    (received,) = upstream.requests
    assert received.path == "/v1/chat/completions"
    assert received.headers["openai-organization"] == "ours"
    assert not {"x-litellm-api-base", "x-forwarded-host"} & received.headers.keys()
    assert witness.connections == 0


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "extra_headers", "custom_llm_provider"])
async def test_s2_a_prompt_manager_that_tries_is_told_so_and_nobody_is_called(
    caller: Caller, upstream: ScriptedUpstream, witness: ScriptedUpstream, name: str
) -> None:
    wanted = {name: attempts_to_redirect(witness.url)[name]}
    answer = await caller.chat(prompt_id="steals", prompt_variables=wanted)
    assert (answer.status, answer.error["code"]) == (502, "prompt_manager_error")
    assert f"set {name!r}" in answer.error["message"]
    assert upstream.requests == []
    assert witness.connections == 0


@pytest.mark.parametrize(
    "name",
    ["any/../x", "any/https://evil.invalid/v1", "any/x\r\nx-evil: 1", "any/\0", "any/a..b", "any/\u2028x"],
)
async def test_s3_a_models_name_is_no_way_to_another_path(
    caller: Caller, upstream: ScriptedUpstream, name: str
) -> None:
    answer = await caller.chat(model=name)
    assert (answer.status, answer.error["param"]) == (400, "model")
    assert upstream.requests == []


async def test_s3_in_the_path_neither(caller: Caller, upstream: ScriptedUpstream) -> None:
    content = json.dumps(body()).encode()
    for written in ("any%2f..%2fx", "any%2fx%0d%0ax-evil:1", "..%2f..%2fx", "gpt-4%00"):
        answer = await caller.post(content, f"/openai/deployments/{written}/chat/completions")
        assert answer.status in (400, 404)
    assert upstream.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("stream", [False, True])
async def test_s4_a_redirect_is_not_followed(
    caller: Caller, upstream: ScriptedUpstream, witness: ScriptedUpstream, status: int, stream: bool
) -> None:
    for target in (f"{witness.url}/chat/completions", "https://evil.invalid/", "file:///etc/passwd", "//evil.invalid"):
        upstream.script(redirect(target, status))
        answer = await caller.chat(stream=stream)
        assert (answer.status, answer.error["code"]) == (502, "upstream_not_api")
        assert target not in answer.content.decode()
    assert len(upstream.requests) == 4
    assert witness.connections == 0


REFERENCES = [
    "os.environ/THE_KEY",
    "oidc/file/etc/passwd",
    "${THE_KEY}",
    "$THE_KEY",
    "{{THE_KEY}}",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("reference", REFERENCES)
async def test_s6_a_reference_to_a_secret_in_a_request_is_plain_text(
    caller: Caller, upstream: ScriptedUpstream, reference: str
) -> None:
    for extra in ({}, {"prompt_id": "p", "prompt_variables": {"x": reference}}):
        assert (await caller.chat(reference, user=reference, **extra)).status == 200
    assert (await caller.chat(model=reference)).status == 404
    assert (await caller.chat(model=f"any/{reference}")).status in (200, 400)
    for received in upstream.requests:
        assert UPSTREAM_KEY.encode() not in received.body
        assert b"root:" not in received.body
        assert received.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    first = upstream.requests[0].json
    assert (first["messages"][0]["content"], first["user"]) == (reference, reference)


async def test_s10_a_prompt_manager_sees_no_key_of_anybody(caller: Caller, upstream: ScriptedUpstream) -> None:
    answer = await caller.chat(prompt_id="looks", metadata={"user_api_key_alias": "master"}, api_key=MASTER)
    assert answer.status == 200
    seen = upstream.requests[0].json["messages"][0]["content"]
    for key in (UPSTREAM_KEY, MASTER, TEAM):
        assert key not in seen
    assert "a-token-of-the-manager" in seen, "its own it does"
    assert '"user_api_key_alias": "team"' in seen, "and nobody can pose as another"


async def test_s10_what_a_manager_raises_is_freed_of_secrets(caller: Caller, gateway: Gateway) -> None:
    url = {"url": "https://user:a-password@db.invalid/x?sig=a-token-of-the-manager"}
    answer = await caller.chat(prompt_id="raises", prompt_variables=url)
    assert (answer.status, answer.error["code"]) == (502, "prompt_manager_error")
    assert "RuntimeError: refused: [redacted] and https://[redacted]db.invalid" in answer.error["message"]
    assert "a-token-of-the-manager" not in answer.content.decode() + gateway.log


async def test_s10_keys_that_a_manager_read_from_the_configuration_are_not_told_either(
    caller: Caller, gateway: Gateway
) -> None:
    answer = await caller.chat(prompt_id="quotes")
    assert (answer.status, answer.error["code"]) == (502, "prompt_manager_error")
    assert "openai/x" in answer.error["message"]
    for secret in (WRITTEN, HEADER):
        assert secret not in answer.content.decode() + gateway.log
