"""OpenAI's dialect, from recorded bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.upstream import chunk, completion

from pipeline.errors import (
    InvalidRequest,
    UpstreamAuthFailed,
    UpstreamBusy,
    UpstreamGarbled,
    UpstreamNotApi,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamUnavailable,
)
from workers.providers._dialect import Endpoint
from workers.providers._fields import as_fields
from workers.providers.openai import provider

CHAT = "chat.completions"
ENDPOINT = Endpoint(
    prefix="openai", urls={CHAT: "https://host/v1/chat/completions"}, headers={"a": "b"}, secrets=("hush-hush",)
)


def event(data: Any, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"


def test_a_request_is_the_fields_at_the_operations_url() -> None:
    request = provider.request(CHAT, as_fields({"model": "gpt-4", "messages": []}), ENDPOINT)
    assert (request.method, request.url, request.headers) == ("POST", "https://host/v1/chat/completions", {"a": "b"})
    assert request.body == b'{"model":"gpt-4","messages":[]}'


def test_an_operation_the_host_does_not_speak_is_the_requests_fault() -> None:
    with pytest.raises(InvalidRequest, match="does not speak `responses`") as caught:
        provider.request("responses", {}, ENDPOINT)
    assert "chat.completions" in caught.value.hint


def test_neither_endpoint_nor_request_shows_its_key() -> None:
    endpoint = Endpoint(
        prefix="openai", urls={CHAT: "https://h"}, headers={"Authorization": "hush-hush"}, secrets=("hush-hush",)
    )
    assert "hush" not in repr(endpoint)
    assert "hush" not in repr(provider.request(CHAT, as_fields({"prompt": "hush"}), endpoint))


@pytest.mark.parametrize(
    ("operation", "body", "usage"),
    [
        (CHAT, completion(), (3, 2)),
        (CHAT, {"choices": [], "usage": None, "error": None}, (0, 0)),
        (CHAT, {"choices": [], "usage": {"prompt_tokens": "three"}}, (0, 0)),
        ("responses", {"object": "response", "usage": {"input_tokens": 7, "output_tokens": 1}, "error": None}, (7, 1)),
        ("responses", {"object": "response", "status": "failed", "error": {"code": "server_error"}}, (0, 0)),
    ],
)
def test_an_answer_passes_untouched_and_its_tokens_are_read(operation: str, body: Any, usage: tuple[int, int]) -> None:
    raw = json.dumps(body, indent=1).encode()
    answer = provider.response(operation, raw, ENDPOINT)
    assert answer.body == raw
    assert answer.usage == usage


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not a JSON object"),
        (b"<html>", "not a JSON object"),
        (b'{"choices": [', "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b'{"error": {"message": "no hush-hush for you"}}', r"with an error: no \[redacted\] for you"),
        (b'{"error": "overloaded", "usage": {"prompt_tokens": "x"}}', "with an error: overloaded"),
        (b'{"error": {}}', "gave no reason"),
        (b'{"pad": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "not a JSON object"),
    ],
)
def test_a_200_that_is_no_answer_is_garbled(body: bytes, said: str) -> None:
    with pytest.raises(UpstreamGarbled, match=said) as raised:
        provider.response(CHAT, body, ENDPOINT)
    assert isinstance(raised.value, UpstreamNotApi) is not body.startswith(b"{")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (429, UpstreamOverloaded),
        ("429", UpstreamOverloaded),
        (402, UpstreamAuthFailed),
        (502, UpstreamUnavailable),
        (400, UpstreamRejected),
        (200, UpstreamGarbled),
        ("rate_limit", UpstreamGarbled),
    ],
)
def test_an_error_under_200_is_what_its_code_says_if_that_is_a_status(code: int | str, kind: type) -> None:
    body = json.dumps({"error": {"message": "words", "code": code}}).encode()
    with pytest.raises(kind) as raised:
        provider.response(CHAT, body, ENDPOINT)
    assert type(raised.value) is kind
    assert type(provider.error(200, {}, body, ENDPOINT)) is kind


def test_a_200_that_should_have_been_a_stream_is_garbled_or_its_error() -> None:
    whole = provider.error(200, {}, json.dumps(completion()).encode(), ENDPOINT)
    assert isinstance(whole, UpstreamGarbled)
    assert "without a stream" in whole.message
    assert "with an error: quota" in provider.error(200, {}, b'{"error":{"message":"quota"}}', ENDPOINT).message


def test_a_chat_stream_passes_byte_for_byte_until_done() -> None:
    call = {"index": 0, "function": {"arguments": '{"a\\n": "\u00e9'}}
    stream = (
        event(chunk("a"))
        + b": keep-alive\n\n"
        + b'data: {"choices":[{"index":0,"delta":{"tool_calls":['
        + json.dumps(call).encode()
        + b"]}}]}\n\n"
        + event(chunk(finish="stop", usage={"prompt_tokens": 5, "completion_tokens": 6}))
        + b"data: [DONE]\n\n"
    )
    reader = provider.stream(CHAT, ENDPOINT)
    assert reader.feed(stream + event({"late": 1})) == stream
    assert reader.finished
    assert reader.usage == (5, 6)
    assert reader.close() == b""


def test_done_is_added_for_a_host_that_leaves_it_out_after_every_choice_finished() -> None:
    reader = provider.stream(CHAT, ENDPOINT)
    two = chunk("a")
    two["choices"].append({"index": 1, "delta": {}, "finish_reason": "stop"})
    reader.feed(event(two) + event(chunk(finish="stop")) + event(chunk(choices=[], usage={"prompt_tokens": 1})))
    assert reader.close() == b"data: [DONE]\n\n"


@pytest.mark.parametrize("stream", [b"", event(chunk("a")), event(chunk("a")) + b'data: {"choices"'])
def test_a_stream_that_ends_before_its_answer_is_garbled(stream: bytes) -> None:
    reader = provider.stream(CHAT, ENDPOINT)
    reader.feed(stream)
    with pytest.raises(UpstreamGarbled):
        reader.close()
    assert not reader.finished


def test_a_stream_with_one_choice_still_open_is_garbled() -> None:
    reader = provider.stream(CHAT, ENDPOINT)
    other = chunk("b")
    other["choices"][0]["index"] = 1
    reader.feed(event(other) + event(chunk(finish="stop")))
    with pytest.raises(UpstreamGarbled, match="ended before its answer did"):
        reader.close()


def test_a_last_event_without_its_blank_line_still_counts() -> None:
    reader = provider.stream(CHAT, ENDPOINT)
    assert reader.feed(event(chunk("a")) + b"data: [DONE]\n") == event(chunk("a"))
    assert reader.close().strip() == b"data: [DONE]"
    assert reader.finished
    response = provider.stream("responses", ENDPOINT)
    assert response.feed(b'data: {"type":"response.completed"}') == b""
    assert response.close() == b'data: {"type":"response.completed"}\n\n'


def test_a_stream_cut_within_an_event_is_cut_and_no_matter_of_the_address() -> None:
    reader = provider.stream(CHAT, ENDPOINT)
    assert reader.feed(event(chunk("a")) + b'data: {"choices": [{"ind') == event(chunk("a"))
    with pytest.raises(UpstreamGarbled, match="ended before its answer did"):
        reader.close()


def test_an_error_in_a_stream_ends_it_after_the_events_before() -> None:
    reader = provider.stream(CHAT, ENDPOINT)
    error = event({"error": {"message": "lost hush-hush", "code": "boom"}})
    assert reader.feed(event(chunk("a")) + error + event(chunk("b"))) == event(chunk("a"))
    assert isinstance(reader.failure, UpstreamUnavailable)
    assert reader.failure.message == "openai ended the stream with an error: lost [redacted]"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "m", "code": 429}, UpstreamOverloaded),
        ({"message": "m", "code": "503"}, UpstreamBusy),
        ({"message": "m", "code": 7}, UpstreamUnavailable),
        ("plain words", UpstreamUnavailable),
    ],
)
def test_an_error_in_a_stream_may_carry_an_http_status(error: Any, kind: type) -> None:
    reader = provider.stream(CHAT, ENDPOINT)
    assert reader.feed(event({"error": error})) == b""
    assert type(reader.failure) is kind


def test_an_error_as_the_unfinished_last_event_is_raised_at_the_end() -> None:
    for operation in (CHAT, "responses"):
        reader = provider.stream(operation, ENDPOINT)
        reader.feed(b'data: {"error":{"message":"late"}}')
        with pytest.raises(UpstreamUnavailable, match="late"):
            reader.close()


@pytest.mark.parametrize("operation", [CHAT, "responses"])
def test_an_event_of_unknown_shape_passes_and_one_that_is_no_json_does_not(operation: str) -> None:
    reader = provider.stream(operation, ENDPOINT)
    odd = event({"choices": "none", "type": 5})
    assert reader.feed(odd) == odd
    with pytest.raises(UpstreamGarbled):
        reader.feed(b"data: {oops\n\n")


@pytest.mark.parametrize("last", ["response.completed", "response.failed", "response.incomplete"])
def test_a_response_stream_ends_with_its_last_word(last: str) -> None:
    reader = provider.stream("responses", ENDPOINT)
    begin = event({"type": "response.created", "response": {"object": "response"}}, "response.created")
    usage = {"input_tokens": 4, "output_tokens": 9}
    end = event({"type": last, "response": {"object": "response", "usage": usage}}, last)
    assert reader.feed(begin) == begin
    assert not reader.finished
    assert reader.feed(end) == end
    assert reader.finished
    assert reader.usage == (4, 9)
    assert reader.close() == b""


def test_a_response_stream_without_its_last_word_is_garbled_even_after_done() -> None:
    reader = provider.stream("responses", ENDPOINT)
    assert reader.feed(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"
    with pytest.raises(UpstreamGarbled):
        reader.close()


@pytest.mark.parametrize(
    "data",
    [{"type": "error", "message": "m1"}, {"type": "error", "error": {"message": "m1"}}, {"error": {"message": "m1"}}],
)
def test_an_error_event_ends_a_response_stream(data: Any) -> None:
    reader = provider.stream("responses", ENDPOINT)
    assert reader.feed(event(data)) == b""
    assert reader.failure is not None
    assert reader.failure.message.endswith("m1")


@pytest.mark.parametrize(
    ("told", "counted"), [(-5, 0), (10**30, 2**53), (7, 7)], ids=["negative", "beyond all numbers", "sane"]
)
def test_a_host_that_counts_its_tokens_wrongly_has_still_answered(told: int, counted: int) -> None:
    usage = {"prompt_tokens": told, "completion_tokens": told}
    whole = json.dumps(completion(usage=usage)).encode()
    assert provider.response(CHAT, whole, ENDPOINT).usage == (counted, counted)
    reader = provider.stream(CHAT, ENDPOINT)
    assert reader.feed(event(chunk(finish="stop", usage=usage)))
    assert reader.close() == b"data: [DONE]\n\n"
    assert reader.usage == (counted, counted)
