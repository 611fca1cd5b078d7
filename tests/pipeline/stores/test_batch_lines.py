"""S27 to S32: what a line of a batch's input may be, and the code and field for each way it is wrong."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest

from pipeline.stores.batch_lines import GATEWAY_ONLY, BatchLine, LineError, check_line, duplicate
from pipeline.stores.lines import Line, Splitter

CHAT = "/v1/chat/completions"
BODY = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}


def line(**fields: Any) -> bytes:
    whole = {"custom_id": "a", "method": "POST", "url": CHAT, "body": BODY, **fields}
    return json.dumps({name: value for name, value in whole.items() if value is not ...}).encode()


def check(data: bytes | None) -> BatchLine | LineError:
    return check_line(Line(7, 100, 200, data), CHAT)


def test_a_good_line_is_the_request_in_it() -> None:
    found = check(line())
    assert isinstance(found, BatchLine)
    assert (found.custom_id, found.model) == ("a", "gpt-4")
    assert json.loads(bytes(found.body)) == BODY


def test_the_body_stays_as_the_client_wrote_it() -> None:
    body = b'{ "model":"gpt-4" ,"x":1.50,"y":"\\u00e9", "x":2 }'
    found = check(b'{"body":%s,"url":"%s","custom_id":"a","method":"POST"} \r' % (body, CHAT.encode()))
    assert isinstance(found, BatchLine)
    assert bytes(found.body) == body


@pytest.mark.parametrize(
    "fields",
    [
        {"custom_id": "x" * 64},
        {"custom_id": "日本 🎉"},
        {"custom_id": "👨‍👩‍👧" + "é" * 59},
        {"body": {**BODY, "stream": False}},
        {"body": {**BODY, "stream": None}},
        {"body": {"messages": [], "prompt_id": "p", "prompt_variables": {"api_key": "a word like any other"}}},
        {"note": "of the client's own"},
    ],
)
def test_good_lines(fields: dict[str, Any]) -> None:
    assert isinstance(check(line(**fields)), BatchLine)


WRONG: dict[str, tuple[bytes | None, str, str | None]] = {
    "no JSON": (b"{", "invalid_json_line", None),
    "two values": (b"{} {}", "invalid_json_line", None),
    "an array": (b"[]", "invalid_json_line", None),
    "a text": (b'"x"', "invalid_json_line", None),
    "NaN": (line(body={"n": float("nan")}), "invalid_json_line", None),
    "no UTF-8": (line().replace(b"hi", b"h\xff"), "invalid_json_line", None),
    "UTF-16": (line().decode().encode("utf-16"), "invalid_json_line", None),
    "S35 gzip": (gzip.compress(line()).replace(b"\n", b""), "invalid_json_line", None),
    "S28 a depth bomb": (b'{"body":' + b"[" * 200_000, "invalid_json_line", None),
    "S28 a deep body": (
        line(body=...)[:-1] + b',"body":' + b'{"a":' * 200_000 + b"1" + b"}" * 200_001,
        "invalid_json_line",
        None,
    ),
    "S27 too long": (None, "line_too_long", None),
    "no custom_id": (line(custom_id=...), "missing_required_parameter", "custom_id"),
    "a null custom_id": (line(custom_id=None), "missing_required_parameter", "custom_id"),
    "no method": (line(method=...), "missing_required_parameter", "method"),
    "no url": (line(url=...), "missing_required_parameter", "url"),
    "no body": (line(body=...), "missing_required_parameter", "body"),
    "a null body": (line(body=None), "missing_required_parameter", "body"),
    "nothing": (b"{}", "missing_required_parameter", "custom_id"),
    "a number as custom_id": (line(custom_id=1), "invalid_request", "custom_id"),
    "a body that is an array": (line(body=[]), "invalid_request", "body"),
    "a body that is a text": (line(body="{}"), "invalid_request", "body"),
    "a number as model": (line(body={"model": 1}), "invalid_request", "model"),
    "too many fields": (line(body={f"f{n}": 0 for n in range(10_001)}), "invalid_request", "body"),
    "S29 an empty custom_id": (line(custom_id=""), "invalid_custom_id", "custom_id"),
    "S29 65 characters": (line(custom_id="x" * 65), "invalid_custom_id", "custom_id"),
    "S29 CR LF": (line(custom_id="a\r\nb"), "invalid_custom_id", "custom_id"),
    "S29 NUL": (line(custom_id="a\0"), "invalid_custom_id", "custom_id"),
    "S29 an escape": (line(custom_id="a\x1b[2J"), "invalid_custom_id", "custom_id"),
    "S29 the end of a line": (line(custom_id="a\u2028b"), "invalid_custom_id", "custom_id"),
    "S29 right to left": (line(custom_id="a\u202eb"), "invalid_custom_id", "custom_id"),
    "S29 half a character": (b'{"custom_id":"\\ud800"}', "invalid_json_line", None),
    "S30 GET": (line(method="GET"), "invalid_method", "method"),
    "S30 lower case": (line(method="post"), "invalid_method", "method"),
    "S30 another endpoint": (line(url="/v1/embeddings"), "mismatched_url", "url"),
    "S30 an absolute url": (line(url="https://api.openai.com" + CHAT), "invalid_url", "url"),
    "S30 a path that leads away": (line(url="/v1/../admin"), "mismatched_url", "url"),
    "S30 streaming": (line(body={**BODY, "stream": True}), "streaming_unsupported", "body.stream"),
    "S30 streaming by a number": (line(body={**BODY, "stream": 1}), "streaming_unsupported", "body.stream"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_line_is_told_with_code_field_and_number(name: str) -> None:
    data, code, param = WRONG[name]
    found = check(data)
    assert isinstance(found, LineError)
    assert (found.code, found.param, found.line) == (code, param, 7)
    assert found.message.endswith(".")


@pytest.mark.parametrize("name", sorted(GATEWAY_ONLY))
def test_s32_a_line_sets_nothing_that_is_the_gateways(name: str) -> None:
    for found, param in (
        (check(line(**{name: "x"})), name),
        (check(line(body={**BODY, name: "x"})), f"body.{name}"),
        (check(line(body={**BODY, name: None})), f"body.{name}"),
    ):
        assert isinstance(found, LineError)
        assert (found.code, found.param) == ("invalid_request", param)


def test_of_a_key_that_comes_twice_the_last_is_checked() -> None:
    assert isinstance(check(line()[:-1] + b',"method":"GET"}'), LineError)
    assert isinstance(check(line(method="GET")[:-1] + b',"method":"POST"}'), BatchLine)


def test_a_duplicate_is_told_with_its_line() -> None:
    found = duplicate(Line(9, 0, 0, b""))
    assert (found.code, found.param, found.line) == ("duplicate_custom_id", "custom_id", 9)


def test_messages_never_quote_the_line() -> None:
    secret = "sk-very-secret"
    for data in (
        line(custom_id=secret * 9),
        line(url=secret),
        line(method=secret),
        line(body=[secret]),
        secret.encode(),
    ):
        found = check(data)
        assert isinstance(found, LineError)
        assert secret not in repr(found)


def test_a_line_is_checked_in_microseconds() -> None:
    texts = b"".join(line(custom_id=f"request-{n}", body={**BODY, "user": "x" * 170}) + b"\n" for n in range(20_000))
    assert len(texts) > 300 * 20_000
    begun = time.process_time()
    found = [check_line(each, CHAT) for each in Splitter(2**25).feed(texts)]
    assert (time.process_time() - begun) / 20_000 < 50e-6  # 6 µs, where nobody traces
    assert len(found) == 20_000
    assert all(isinstance(each, BatchLine) for each in found)
