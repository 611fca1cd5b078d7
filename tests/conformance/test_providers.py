"""Every provider file, found by discovery, against the same recorded JSON."""

from __future__ import annotations

import json

import pytest
from fakes.configs import deployment
from fakes.upstream import completion

from pipeline import plugins
from pipeline.errors import InvalidRequest, UpstreamError, UpstreamGarbled
from pipeline.operations import OPERATIONS
from workers import providers
from workers.providers._dialect import Endpoint, LocalAnswer, Provider, UpstreamRequest
from workers.providers._fields import as_fields

FOUND: dict[str, Provider] = plugins.load_all(providers, "provider")
CASES = [(provider, prefix) for provider in FOUND.values() for prefix in provider.prefixes]

pytestmark = pytest.mark.parametrize(("provider", "prefix"), CASES, ids=[prefix for _, prefix in CASES])


def endpoint(provider: Provider, prefix: str) -> Endpoint:
    placed = deployment(model=f"{prefix}/m", api_base="https://upstream.example/v1")
    return provider.endpoint(prefix, placed, {})


def test_a_prefix_belongs_to_one_provider(provider: Provider, prefix: str) -> None:
    assert [found for found, name in CASES if name == prefix] == [provider]
    assert "/" not in prefix


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_request_goes_to_the_deployments_address_or_nowhere(provider: Provider, prefix: str, operation: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    fields = as_fields({"model": "m", "messages": messages, "input": "hi", "prompt": "hi"})
    try:
        request = provider.request(operation, fields, endpoint(provider, prefix))
    except InvalidRequest:
        return  # it does not speak this operation, and says so
    if isinstance(request, UpstreamRequest):
        assert request.url.startswith("https://upstream.example/v1/")
        assert json.loads(request.body)["model"] == "m"
    else:
        assert isinstance(request, LocalAnswer)
        assert json.loads(request.body)["model"] == "m"


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503, 504, 529])
def test_an_error_is_ours_and_shows_no_key(provider: Provider, prefix: str, status: int) -> None:
    for body in (b"", b"<html>", b'{"error":{"message":"key sk-upstream","code":7}}', b'{"error":null}'):
        error = provider.error(status, {"retry-after": "1"}, body, endpoint(provider, prefix))
        assert isinstance(error, UpstreamError)
        assert 400 <= error.fields().status < 600
        assert error.fields().status not in {401, 403}
        assert error.message
        assert "sk-upstream" not in json.dumps([error.message, error.hint])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_answer_that_is_no_json_is_garbled(provider: Provider, prefix: str, operation: str) -> None:
    for body in (b"", b"<html>", b'{"choices":'):
        with pytest.raises(UpstreamGarbled):
            provider.response(operation, body, endpoint(provider, prefix))


def test_an_answer_has_its_tokens_counted(provider: Provider, prefix: str) -> None:
    answer = provider.response("chat.completions", json.dumps(completion()).encode(), endpoint(provider, prefix))
    assert json.loads(answer.body)["object"] == "chat.completion"
    assert answer.usage == (3, 2)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_stream_that_ends_at_once_is_garbled(provider: Provider, prefix: str, operation: str) -> None:
    reader = provider.stream(operation, endpoint(provider, prefix))
    with pytest.raises(UpstreamGarbled):
        reader.close()
