"""HTTP bodies become jobs: the order of the checks, prompt references, deadlines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fakes.configs import deployment
from fakes.configs import settings as make_settings
from fakes.edges import CHAT, KEYS, MASTER, TEAM, calling
from fakes.transport import FakeTransport

from pipeline.errors import BacklogFull, NoWorker, TransportUnavailable
from pipeline.job import PromptRef
from pipeline.settings import IngressSettings, RouterSettings

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


async def post(transport: FakeTransport, body: Any, settings: Any = None, key: str = "", **kwargs: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    path = kwargs.pop("path", PATH)
    async with calling(transport, settings, key) as client:
        return await client.post(path, content=content, **kwargs)


async def refused(transport: FakeTransport, body: Any, settings: Any = None, key: str = "", **kwargs: Any) -> Any:
    response = await post(transport, body, settings, key, **kwargs)
    assert transport.jobs == [], "a refused request must not reach the pipeline"
    return response.status_code, response.json()["error"]


async def test_a_chat_request_becomes_a_job_for_dispatch(transport: FakeTransport) -> None:
    content = json.dumps(CHAT | {"stream": False, "num_retries": 3}).encode()
    settings = make_settings(keys=KEYS, digest="abc")
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    response = await post(transport, content, settings, TEAM, headers={"traceparent": trace, "x-secret": "1"})
    assert response.status_code == 200, response.text
    job = transport.job
    assert transport.bodies == [content], "the client's bytes go on untouched"
    assert (job.operation, job.stages_left, job.lane) == ("chat.completions", ("dispatch",), "live")
    assert (job.model, job.stream, job.prompt, job.retries) == ("gpt-4", False, None, 3)
    assert (job.tenant, job.allowed_models, job.config) == ("team", ("gpt-4", "cheap-*"), "abc")
    assert (job.endpoint, job.reply_to, job.traceparent) == (PATH, "ingress-test", trace)
    assert job.headers == {}, "headers travel only for a prompt manager"
    assert job.admitted == job.since
    assert 595_000 < job.deadline - transport.now() <= 600_000


async def test_the_response_carries_the_jobs_id_whatever_the_client_sent(transport: FakeTransport) -> None:
    response = await post(transport, CHAT, headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == transport.job.id


@pytest.mark.parametrize(
    ("extra", "headers", "expected"),
    [
        ({"prompt_id": "p"}, {}, PromptRef(id="p")),
        (
            {"prompt_id": "p", "prompt_version": 3, "prompt_label": "prod", "prompt_variables": {"a": 1}},
            {"x-promptmill-prompt-id": "other"},
            PromptRef(id="p", version=3, label="prod"),
        ),
        ({"prompt": {"id": "o", "version": "2", "variables": {}}}, {}, PromptRef(id="o", version="2", source="object")),
        ({"prompt_id": "p", "prompt": {"id": "p", "version": "2"}}, {}, PromptRef(id="p")),
        ({"prompt_id": None, "prompt": None}, {"x-promptmill-prompt-id": "h"}, PromptRef(id="h", source="header")),
        (
            {},
            {
                "x-promptmill-prompt-id": "h",
                "x-promptmill-prompt-version": "v1",
                "x-promptmill-prompt-label": "blue",
            },
            PromptRef(id="h", version="v1", label="blue", source="header"),
        ),
    ],
)
async def test_the_first_place_that_references_a_prompt_wins(
    transport: FakeTransport, extra: dict[str, Any], headers: dict[str, str], expected: PromptRef
) -> None:
    response = await post(transport, CHAT | extra, headers=headers)
    assert response.status_code == 200, response.text
    assert transport.job.prompt == expected
    assert transport.job.stages_left == ("resolve", "dispatch")


@pytest.mark.parametrize("prompt", ["a text", {"version": "1"}, ["x"]])
async def test_a_prompt_that_is_no_object_with_an_id_is_the_providers_business(
    transport: FakeTransport, prompt: Any
) -> None:
    await post(transport, CHAT | {"prompt": prompt})
    assert transport.job.stages_left == ("dispatch",)


async def test_a_model_groups_own_prompt_is_referenced_last(transport: FakeTransport) -> None:
    settings = make_settings(deployment(prompt_id="g", prompt_version=1, prompt_label="prod"))
    await post(transport, CHAT, settings)
    assert transport.job.prompt == PromptRef(id="g", version=1, label="prod", source="model")


async def test_a_request_may_choose_another_version_of_the_model_groups_prompt(transport: FakeTransport) -> None:
    settings = make_settings(deployment(prompt_id="g", prompt_version=1, prompt_label="prod"))
    await post(transport, CHAT | {"prompt_version": 2, "prompt_label": "next"}, settings)
    assert transport.job.prompt == PromptRef(id="g", version=2, label="next", source="model")


async def test_with_a_prompt_neither_model_nor_messages_nor_a_known_model_is_needed(transport: FakeTransport) -> None:
    assert (await post(transport, {"prompt_id": "p"})).status_code == 200
    assert transport.job.model == ""
    assert (await post(transport, {"prompt_id": "p", "model": "nobody-knows"})).status_code == 200


async def test_a_prompt_manager_sees_the_clients_headers_but_no_credentials(transport: FakeTransport) -> None:
    secrets = {"x-api-key": "a", "api-key": "b", "cookie": "c", "proxy-authorization": "d", "x-goog-api-key": "e"}
    settings = make_settings(keys=KEYS)
    await post(transport, CHAT | {"prompt_id": "p"}, settings, MASTER, headers={"x-team": "blue", **secrets})
    assert transport.job.headers["x-team"] == "blue"
    assert not {"authorization", *secrets} & set(transport.job.headers)


async def test_headers_beyond_sixteen_kilobytes_are_left_out(transport: FakeTransport) -> None:
    headers = {f"x-{number}": "v" * 4096 for number in range(8)}
    await post(transport, CHAT | {"prompt_id": "p"}, headers=headers)
    assert sum(len(k) + len(v) for k, v in transport.job.headers.items()) <= 16 * 1024
    assert "x-0" in transport.job.headers


async def test_a_garbled_traceparent_is_dropped(transport: FakeTransport) -> None:
    await post(transport, CHAT, headers={"traceparent": "00-zz"})
    assert transport.job.traceparent == ""


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (CHAT | {"prompt_id": 1234}, "prompt_id"),
        (CHAT | {"prompt_id": ""}, "prompt_id"),
        (CHAT | {"prompt_id": "x" * 513}, "prompt_id"),
        (CHAT | {"prompt_id": "p", "prompt_variables": "str"}, "prompt_variables"),
        (CHAT | {"prompt_id": "p", "prompt_version": 1.5}, "prompt_version"),
        (CHAT | {"prompt_id": "p", "prompt_version": True}, "prompt_version"),
        (CHAT | {"prompt_id": "p", "prompt_version": 10**30}, "prompt_version"),
        (CHAT | {"prompt_id": "p", "prompt_label": 1}, "prompt_label"),
        (CHAT | {"prompt_id": "p", "prompt": {"id": "q"}}, "prompt_id"),
        (CHAT | {"prompt": {"id": 1}}, "prompt.id"),
        (CHAT | {"prompt": {"id": "p", "variables": []}}, "prompt.variables"),
        (CHAT | {"prompt": {"id": "p", "version": []}}, "prompt.version"),
        (CHAT | {"messages": "hi"}, "messages"),
        (CHAT | {"messages": None}, "messages"),
        ({"model": "gpt-4"}, "messages"),
        ({"messages": []}, "model"),
        (CHAT | {"model": ""}, "model"),
        (CHAT | {"model": ["gpt-4"]}, "model"),
        (CHAT | {"model": "m" * 513}, "model"),
        (CHAT | {"stream": "true"}, "stream"),
        (CHAT | {"timeout": 0}, "timeout"),
        (CHAT | {"timeout": "soon"}, "timeout"),
        (CHAT | {"num_retries": -1}, "num_retries"),
        (CHAT | {"n": [1]}, "n"),
        (CHAT | {"max_tokens": "many"}, "max_tokens"),
        (CHAT | {"stop": 4}, "stop"),
        (CHAT | {"stop": ["a", 4]}, "stop"),
    ],
)
async def test_a_wrong_field_is_refused_by_name(transport: FakeTransport, body: Any, param: str) -> None:
    status, error = await refused(transport, body)
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error"), error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'"text"',
        b'{"model":"gpt-4"} x',
        b'{"model":NaN}',
        b'{"x":NaN,"model":"gpt-4","messages":[]}',
        b'{"timeout":1e999,"model":"gpt-4","messages":[]}',
        b'{"model":"\xff"}',
        b'{"model":"gpt-4","messages":[],"x":"\xff"}',
        b'{"model":"\\ud800"}',
        json.dumps(CHAT).encode("utf-16"),
        b"[" * 200_000,
        b'{"x":' * 200_000,
        b'{"messages":' + b"[" * 200_000,
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_what_is_not_a_json_object_is_a_400(transport: FakeTransport, body: bytes) -> None:
    status, error = await refused(transport, body)
    assert (status, error["code"], error["stage"]) == (400, "invalid_request", "ingress")


async def test_a_prompt_object_nested_too_deeply_is_a_400(transport: FakeTransport) -> None:
    body = b'{"prompt":{"id":"p","variables":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}}"
    assert (await refused(transport, body))[0] == 400


async def test_of_a_key_that_comes_twice_the_last_counts(transport: FakeTransport) -> None:
    await post(transport, b'{"model":"secret","model":"gpt-4","messages":[],"stream":true,"stream":false}')
    assert (transport.job.model, transport.job.stream) == ("gpt-4", False)


async def test_other_content_types_and_charsets_change_nothing(transport: FakeTransport) -> None:
    body = json.dumps(CHAT | {"user": "zoë"}, ensure_ascii=False).encode()
    await post(transport, body, headers={"content-type": "text/plain; charset=utf-16"})
    assert transport.bodies == [body]


async def test_an_unknown_model_is_a_404_that_names_the_known_ones(transport: FakeTransport) -> None:
    status, error = await refused(transport, CHAT | {"model": "gemini-1.5-pro"})
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "gpt-4" in error["message"]


async def test_a_key_learns_no_model_it_may_not_use(transport: FakeTransport) -> None:
    settings = make_settings(deployment(), deployment("gpt-4-secret"), keys=KEYS)
    _, error = await refused(transport, CHAT | {"model": "gpt-4-secre"}, settings, TEAM)
    assert "gpt-4-secret" not in error["message"].replace("gpt-4-secre'", "")


async def test_a_model_of_other_keys_is_a_403(transport: FakeTransport) -> None:
    settings = make_settings(deployment(), deployment("o3"), keys=KEYS)
    status, error = await refused(transport, CHAT | {"model": "o3"}, settings, TEAM)
    assert (status, error["type"], error["code"]) == (403, "permission_error", "model_not_allowed")


async def test_a_key_may_use_an_alias_of_its_model(transport: FakeTransport) -> None:
    settings = make_settings(keys=KEYS, router=RouterSettings(aliases={"fast": "gpt-4"}))
    assert (await post(transport, CHAT | {"model": "fast"}, settings, TEAM)).status_code == 200


async def test_the_model_of_the_path_wins_over_the_bodys(transport: FakeTransport) -> None:
    settings = make_settings(deployment("openai/*", "openai/*"))
    path = "/openai/deployments/openai/gpt-4o/chat/completions"
    await post(transport, CHAT, settings, path=path)
    assert transport.job.model == "openai/gpt-4o"
    assert transport.job.endpoint == path


async def test_responses_need_no_messages(transport: FakeTransport) -> None:
    response = await post(transport, {"model": "gpt-4", "input": "hi"}, path="/v1/responses")
    assert response.status_code == 200
    assert transport.job.operation == "responses"


@pytest.mark.parametrize(
    ("extra", "headers", "seconds"),
    [
        ({"timeout": 5}, {}, 5),
        ({"timeout": 50}, {"x-litellm-timeout": "7.5"}, 7.5),
        ({}, {"x-stainless-read-timeout": "9"}, 9),
        ({"stream": True}, {"x-stainless-read-timeout": "9"}, 600),
        ({"timeout": 1e300}, {}, 600),
    ],
)
async def test_the_deadline_is_the_least_that_anybody_named(
    transport: FakeTransport, extra: dict[str, Any], headers: dict[str, str], seconds: float
) -> None:
    await post(transport, CHAT | extra, headers=headers)
    assert seconds * 1000 - 2000 < transport.job.deadline - transport.job.admitted <= seconds * 1000


async def test_no_deadline_is_later_than_the_operators_limit(transport: FakeTransport) -> None:
    limits = IngressSettings(request_timeout=900, max_request_timeout=100)
    await post(transport, CHAT, make_settings(ingress=limits))
    assert transport.job.deadline - transport.job.admitted == 100_000


@pytest.mark.parametrize("name", ["x-litellm-timeout", "x-stainless-read-timeout"])
@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf"])
async def test_a_timeout_header_that_is_no_number_of_seconds_is_a_400(
    transport: FakeTransport, name: str, value: str
) -> None:
    status, error = await refused(transport, CHAT, headers={name: value})
    assert (status, error["param"]) == (400, name)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
async def test_a_compressed_body_is_a_415(transport: FakeTransport, encoding: str) -> None:
    status, error = await refused(transport, CHAT, headers={"content-encoding": encoding})
    assert (status, error["code"]) == (415, "unsupported_encoding")


async def test_identity_is_no_compression(transport: FakeTransport) -> None:
    assert (await post(transport, CHAT, headers={"content-encoding": "Identity"})).status_code == 200


@pytest.mark.parametrize(
    "error", [BacklogFull("full", retry_after=2.1), NoWorker("none"), TransportUnavailable("away")]
)
async def test_the_transport_refuses_before_the_body_is_read(transport: FakeTransport, error: Any) -> None:
    transport.refusal = error
    status, body = await refused(transport, b"not even json")
    assert (status, body["code"]) == (error.status, error.code)
    assert transport.checked == [(("dispatch",), "live", 13)]


async def test_a_full_backlog_says_when_to_come_back(transport: FakeTransport) -> None:
    transport.refusal = BacklogFull("full", retry_after=2.1)
    response = await post(transport, CHAT)
    assert response.headers["retry-after"] == "3"
    assert "x-should-retry" not in response.headers


async def test_permits_are_given_back_however_a_request_ends(transport: FakeTransport) -> None:
    async with calling(transport) as client:
        for content in (json.dumps(CHAT).encode(), b"{", json.dumps(CHAT | {"model": "no"}).encode()):
            await client.post(PATH, content=content)
        transport.refusal = NoWorker("none")
        await client.post(PATH, content=b"{}")
        permits = client.edge.permits  # type: ignore[attr-defined]
    assert (permits.requests, permits.held) == (0, 0)


@pytest.mark.parametrize("name", ["x-promptmill-prompt-id", "x-promptmill-prompt-version", "x-promptmill-prompt-label"])
async def test_a_prompt_reference_in_headers_is_bounded_as_in_a_body(transport: FakeTransport, name: str) -> None:
    headers = {"x-promptmill-prompt-id": "1", name: "a" * 513}
    status, error = await refused(transport, CHAT, headers=headers)
    assert (status, error["param"]) == (400, name)


async def test_a_models_name_in_the_path_is_bounded_as_in_a_body(transport: FakeTransport) -> None:
    path = f"/openai/deployments/{'m' * 513}/chat/completions"
    response = await post(transport, CHAT, path=path)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert "mmm" not in str(response.headers)


async def test_without_memory_for_a_body_the_request_is_refused_and_its_bytes_are_free_again(
    transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" "

    async with calling(transport) as client:
        permits = client.edge.permits  # type: ignore[attr-defined]
        hold = permits.hold

        def starved(size: int) -> None:
            if permits.held:
                raise MemoryError
            hold(size)

        monkeypatch.setattr(permits, "hold", starved)
        response = await client.post(PATH, content=pieces())
        assert (response.status_code, response.json()["error"]["code"]) == (429, "backlog_full")
        assert response.headers["retry-after"] == "1"
        assert permits.held == 0
    assert transport.jobs == []
