"""From a deployment and a body to a call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.configs import deployment, settings

from pipeline.catalog import Catalog
from pipeline.errors import InvalidRequest, ModelDisabled
from pipeline.operations import OPERATIONS
from pipeline.settings import Secret
from workers.providers._calls import Call, Calls
from workers.providers._dialect import LocalAnswer, UpstreamRequest
from workers.providers._fields import as_fields
from workers.providers._hosts import read_hosts

CHAT = "chat.completions"
HOSTS = read_hosts()


def prepare(
    model: str = "openai/gpt-4", body: Any = None, environment: dict[str, str] | None = None, **fields: Any
) -> Call:
    calls = Calls(environment if environment is not None else {"OPENAI_API_KEY": "sk-env"})
    return calls.prepare(deployment(model=model, **fields), CHAT, as_fields(body or {"model": "x", "messages": []}))


def sent(call: Call) -> UpstreamRequest:
    assert isinstance(call.request, UpstreamRequest)
    return call.request


def test_the_model_is_the_providers_name_and_defaults_fill_gaps() -> None:
    body = {"model": "x", "temperature": 0.5, "messages": []}
    call = prepare(body=body, defaults={"temperature": 1, "max_tokens": 9, "stream": True, "model": "no"})
    assert json.loads(sent(call).body) == {"temperature": 0.5, "max_tokens": 9, "model": "gpt-4", "messages": []}


def test_only_the_prefix_is_taken_off_a_model_name() -> None:
    assert json.loads(sent(prepare("openrouter/meta/llama-3:free")).body)["model"] == "meta/llama-3:free"
    assert json.loads(sent(prepare("gpt-4o")).body)["model"] == "gpt-4o"


def test_the_key_is_the_deployments_or_its_hosts_variable() -> None:
    assert sent(prepare(api_key=Secret("sk-own"))).headers["Authorization"] == "Bearer sk-own"
    assert sent(prepare(api_key=None)).headers["Authorization"] == "Bearer sk-env"


@pytest.mark.parametrize(
    ("fields", "variable"), [({"api_key": None}, "OPENAI_API_KEY"), ({"api_key": Secret("os.environ/MINE")}, "MINE")]
)
def test_a_missing_key_disables_the_model_and_names_the_variable(fields: dict[str, Any], variable: str) -> None:
    with pytest.raises(ModelDisabled, match=f"the variable {variable} is not set") as caught:
        prepare(environment={}, **fields)
    assert caught.value.fields().status == 503


@pytest.mark.parametrize(
    ("unset", "words"), [(("BASE",), "the variable BASE is not set"), (("A", "B"), "the variables A, B are not set")]
)
def test_a_model_whose_address_is_not_set_is_not_sent_elsewhere(unset: tuple[str, ...], words: str) -> None:
    with pytest.raises(ModelDisabled, match=words) as caught:
        prepare(unset=unset)
    assert ", ".join(unset) in caught.value.hint


def test_a_mocked_model_needs_no_address() -> None:
    assert isinstance(prepare(unset=("BASE",), mock_response="hi").request, LocalAnswer)


def test_hosts_without_keys_and_with_optional_keys_need_none() -> None:
    assert "Authorization" not in sent(prepare("ollama/llama3", api_key=None)).headers
    vllm = sent(prepare("hosted_vllm/m", api_key=None, api_base="http://vllm:8000/v1/"))
    assert "Authorization" not in vllm.headers
    assert vllm.url == "http://vllm:8000/v1/chat/completions"


@pytest.mark.parametrize(
    ("model", "base", "url"),
    [
        ("ollama/llama3", None, "http://127.0.0.1:11434/v1/chat/completions"),
        ("ollama/llama3", "http://gpu:11434", "http://gpu:11434/v1/chat/completions"),
        ("ollama/llama3", "http://gpu:11434/", "http://gpu:11434/v1/chat/completions"),
        ("ollama/llama3", "http://gpu:11434/v1", "http://gpu:11434/v1/chat/completions"),
        ("ollama/llama3", "http://gpu/ollama/v1", "http://gpu/ollama/v1/chat/completions"),
        ("openai/x", "http://gpu:8000", "http://gpu:8000/chat/completions"),
    ],
)
def test_ollamas_bare_address_as_litellm_has_it_leads_to_its_api(model: str, base: str | None, url: str) -> None:
    assert sent(prepare(model, api_base=base)).url == url


def test_an_operators_headers_are_sent_and_replace_ours() -> None:
    headers = sent(prepare(headers={"X-Team": "a", "authorization": "Token t"}, organization="org-1")).headers
    assert headers["X-Team"] == "a"
    assert headers["OpenAI-Organization"] == "org-1"
    assert [value for name, value in headers.items() if name.lower() == "authorization"] == ["Token t"]


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "hosted_vllm/m"},
        {"model": "nobody/m"},
        {"api_base": "ftp://host/v1"},
        {"api_base": "http://"},
        {"api_base": "http://[::1"},
        {"api_base": "http://h:99999999"},
        {"api_base": "http://h/v1?key=1"},
        {"api_base": "http://h/v 1"},
        {"headers": {"X": "a\r\nEvil: b"}},
        {"headers": {"X\n": "a"}},
        {"api_key": Secret("sk-with-line-break\n")},
    ],
)
def test_a_deployment_that_cannot_be_called_is_disabled_with_a_remedy(fields: dict[str, Any]) -> None:
    with pytest.raises(ModelDisabled, match="is not usable") as caught:
        prepare(**fields)
    assert caught.value.hint


def test_a_disabled_deployment_stays_disabled_with_a_fresh_error_each_time() -> None:
    calls = Calls({})
    errors = []
    for _ in range(2):
        with pytest.raises(ModelDisabled) as caught:
            calls.prepare(deployment(api_key=None), CHAT, {})
        errors.append(caught.value)
    assert errors[0] is not errors[1]


def test_a_provider_that_only_a_request_names_is_the_requests_fault_and_not_remembered() -> None:
    calls, anything = Calls({"OPENAI_API_KEY": "sk-env"}), Catalog(settings(deployment("*", "*")))

    def call(name: str) -> Call:
        group = anything.group(name)
        assert group is not None
        return calls.prepare(group.deployments[0], CHAT, {})

    for number in range(100):
        with pytest.raises(InvalidRequest, match=f"there is no provider 'opneai{number}'"):
            call(f"opneai{number}/gpt-4")
    assert json.loads(sent(call("openai/gpt-4")).body)["model"] == "gpt-4"
    assert len(calls._ways) == 1


@pytest.mark.parametrize("name", ["../admin", "a/../b", "http://evil/v1", "a\r\nHost: evil", "a\x00", ""])
def test_a_model_name_that_reads_as_a_path_or_an_address_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        prepare(f"openai/{name}")


def test_credentials_and_address_are_worked_out_once_per_deployment() -> None:
    calls = Calls({})
    first, second = (sent(calls.prepare(deployment(), CHAT, {})) for _ in range(2))
    assert first.headers is second.headers
    assert first.url is second.url


def test_a_mock_response_needs_neither_key_nor_provider() -> None:
    call = prepare("nobody/gpt", environment={}, api_key=None, mock_response="hi there")
    assert isinstance(call.request, LocalAnswer)
    body = json.loads(call.request.body)
    assert body["choices"][0]["message"]["content"] == "hi there"
    assert body["model"] == "gpt"
    assert body["usage"] == {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}


def test_the_hosts_file_holds_known_operations_and_usable_addresses() -> None:
    assert len(HOSTS) <= 8
    for prefix, host in HOSTS.items():
        assert set(host.operations) <= set(OPERATIONS), prefix
        assert host.api_base.startswith("https://") or prefix in {"ollama", "hosted_vllm"}
        assert host.key or prefix == "ollama"
