"""The provider that calls nobody."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.errors import InvalidRequest
from workers.providers._dialect import Endpoint, LocalAnswer
from workers.providers._fields import as_fields
from workers.providers.echo import provider

CHAT = "chat.completions"
ENDPOINT = Endpoint(prefix="echo", urls={}, headers={})
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "image_url"}, {"text": "there"}]},
    {"role": "assistant", "content": None},
    {"content": "anonymous"},
]
SHOWN = "system: Be brief.\nuser: Hi there\nassistant: \nuser: anonymous"


def answer(body: dict[str, Any], operation: str = CHAT) -> LocalAnswer:
    return provider.request(operation, as_fields({"model": "echo-1", **body}), ENDPOINT)


def payloads(events: tuple[bytes, ...]) -> list[Any]:
    lines = b"".join(events).split(b"\n")
    return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]


def test_a_chat_completion_shows_its_messages_one_per_line() -> None:
    body = json.loads(answer({"messages": MESSAGES}).body)
    assert body["object"] == "chat.completion"
    assert body["model"] == "echo-1"
    assert body["choices"][0]["message"]["content"] == SHOWN
    assert body["usage"] == {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}


def test_a_streamed_chat_completion_adds_up_to_the_same() -> None:
    events = answer({"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}).events
    chunks = payloads(events)
    assert events[-1] == b"data: [DONE]\n\n"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == SHOWN
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 18)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, "odd"])
def test_a_stream_has_no_usage_unless_asked(options: Any) -> None:
    chunks = payloads(answer({"messages": [], "stream": True, "stream_options": options}).events)
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"input": "Hi"}, "user: Hi"),
        ({"input": "Hi", "instructions": "Be brief."}, "system: Be brief.\nuser: Hi"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}, "user: Hi"),
        ({"instructions": None}, ""),
    ],
)
def test_a_response_shows_its_input_whole_and_streamed(body: dict[str, Any], shown: str) -> None:
    whole = json.loads(answer(body, "responses").body)
    assert (whole["object"], whole["status"], whole["error"]) == ("response", "completed", None)
    assert whole["output"][0]["content"][0]["text"] == shown
    events = payloads(answer({**body, "stream": True}, "responses").events)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == shown
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == shown


@pytest.mark.parametrize(
    ("operation", "body"), [(CHAT, {"messages": "no"}), (CHAT, {"messages": [1]}), ("responses", {"input": {"a": 1}})]
)
def test_messages_that_are_none_are_the_requests_fault(operation: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="is not a list of messages"):
        answer(body, operation)
