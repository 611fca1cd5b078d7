"""Completions, embeddings and moderations that nobody is called for."""

from __future__ import annotations

import base64
import json
import math
import struct
import time
from typing import Any

import pytest
from fakes.configs import deployment

from pipeline.errors import InvalidRequest
from workers.providers._calls import Calls
from workers.providers._dialect import Endpoint, LocalAnswer
from workers.providers._fields import as_fields
from workers.providers.echo import provider

ENDPOINT = Endpoint(prefix="echo", urls={}, headers={})


def answer(operation: str, **body: Any) -> LocalAnswer:
    return provider.request(operation, as_fields({"model": "echo-1", **body}), ENDPOINT)


def read(operation: str, **body: Any) -> Any:
    return json.loads(answer(operation, **body).body)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [("hi there", ["hi there"]), (["a", "b"], ["a", "b"]), ([1, 2], ["1 2"]), ([[1, 2], [3]], ["1 2", "3"])],
)
def test_a_completion_has_a_choice_for_each_prompt(prompt: Any, texts: list[str]) -> None:
    whole = read("completions", prompt=prompt)
    assert (whole["object"], whole["model"]) == ("text_completion", "echo-1")
    assert [choice["text"] for choice in whole["choices"]] == texts
    assert [choice["index"] for choice in whole["choices"]] == list(range(len(texts)))
    assert {choice["finish_reason"] for choice in whole["choices"]} == {"stop"}
    assert whole["usage"]["total_tokens"] == 2 * sum(len(text.split()) for text in texts)


@pytest.mark.parametrize("options", [None, {"include_usage": True}])
def test_a_streamed_completion_adds_up_to_the_same(options: Any) -> None:
    events = answer("completions", prompt=["a\nb", "c"], stream=True, stream_options=options).events
    chunks = [json.loads(event[6:]) for event in events[:-1]]
    assert events[-1] == b"data: [DONE]\n\n"
    said = ["", ""]
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        said[choice["index"]] += choice["text"]
    assert said == ["a\nb", "c"]
    assert [chunk["usage"]["total_tokens"] for chunk in chunks if "usage" in chunk] == ([6] if options else [])
    reader = provider.stream("completions", ENDPOINT)
    assert b"".join(map(reader.feed, events)) == b"".join(events)
    assert reader.finished


def test_a_text_has_one_vector_of_length_one_and_another_text_another() -> None:
    first, again, other = (read("embeddings", input=text)["data"][0]["embedding"] for text in ("a", "a", "b"))
    assert first == again != other
    assert math.isclose(math.hypot(*first), 1)
    several = read("embeddings", input=["b", "a"], dimensions=8)
    assert [each["embedding"] for each in several["data"]] == [other, first]
    assert several["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert len(read("embeddings", input="a", dimensions=3)["data"][0]["embedding"]) == 3


def test_vectors_come_in_base64_as_the_sdks_ask_for_them() -> None:
    packed = read("embeddings", input="a", encoding_format="base64")["data"][0]["embedding"]
    numbers = struct.unpack("<8f", base64.b64decode(packed))
    plain = read("embeddings", input="a")["data"][0]["embedding"]
    assert all(math.isclose(one, two, abs_tol=1e-6) for one, two in zip(numbers, plain, strict=True))


@pytest.mark.parametrize(
    ("given", "results"),
    [("a", 1), (["a", "b"], 2), ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}], 1)],
)
def test_a_moderation_finds_nothing_wrong(given: Any, results: int) -> None:
    whole = read("moderations", input=given)
    assert [result["flagged"] for result in whole["results"]] == [False] * results
    assert not any(whole["results"][0]["categories"].values())
    assert len(whole["results"][0]["category_scores"]) == 13


def test_a_mocked_model_says_its_line_to_each_prompt() -> None:
    calls = Calls({})
    fields = as_fields({"model": "x", "prompt": ["a", "b"], "input": "a"})
    mocked = deployment(mock_response="fixed")
    call = calls.prepare(mocked, "completions", fields).request
    assert isinstance(call, LocalAnswer)
    assert [choice["text"] for choice in json.loads(call.body)["choices"]] == ["fixed", "fixed"]
    assert call.usage == (10, 20)
    assert isinstance(calls.prepare(mocked, "embeddings", fields).request, LocalAnswer)


def test_an_answer_takes_no_longer_than_others_can_wait() -> None:
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("embeddings", {"input": ["a"] * 500_000}),
        ("embeddings", {"input": "a", "dimensions": 2**40}),
        ("embeddings", {"input": ["a"] * 1000, "dimensions": 4096}),
        ("completions", {"prompt": [1] * 1_000_000}),
        ("moderations", {"input": "a" * 2**21}),
    ]
    begun = time.process_time()
    for operation, body in wanted:
        with pytest.raises(InvalidRequest):
            answer(operation, **body)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("completions", {"prompt": 5}),
        ("embeddings", {"input": {"a": 1}}),
        ("embeddings", {"input": [1.5]}),
        ("embeddings", {"input": "a", "dimensions": "many"}),
        ("moderations", {"input": [None]}),
    ],
)
@pytest.mark.parametrize("mock", [None, "fixed"])
def test_what_is_no_text_is_the_requests_fault(operation: str, body: dict[str, Any], mock: str | None) -> None:
    fields = as_fields({"model": "m", **body})
    with pytest.raises(InvalidRequest) as raised:
        Calls({}).prepare(deployment(model="echo/m", mock_response=mock), operation, fields)
    assert raised.value.param == next(iter(body))
