"""Uploads that their client wants to have validated, and inputs that are larger than a batch's may be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from fakes.batches import CHAT, line, lines
from fakes.edges import TEAM, calling
from fakes.transport import FakeTransport
from fakes.uploads import field, file_part, file_settings, form, kept

from pipeline.settings import BatchSettings, Settings

pytestmark = pytest.mark.anyio

EMBED = b'{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{"model":"gpt-4","input":%s}}\n'


def batch_settings(directory: Path, **limits: Any) -> Settings:
    return msgspec.structs.replace(file_settings(directory), batches=BatchSettings(**limits))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with calling(FakeTransport(), file_settings(tmp_path), TEAM) as found:
        yield found


async def put(
    client: httpx2.AsyncClient, contents: bytes, query: str = "?validate=1", purpose: str = "batch", **headers: str
) -> httpx2.Response:
    form: dict[str, Any] = {"data": {"purpose": purpose}, "files": {"file": ("in.jsonl", contents)}}
    return await client.post(f"/v1/files{query}", headers=headers, **form)


@pytest.mark.parametrize("asked", [{"query": "?validate=1"}, {"query": "", "x-promptmill-validate": "1"}])
async def test_a_wrong_file_is_refused_with_every_error_and_not_stored(
    client: httpx2.AsyncClient, tmp_path: Path, asked: dict[str, str]
) -> None:
    contents = line("a") + b"\n{\n" + line("a") + line("b", model="nobody") + line("c", stream=True)
    answer = await put(client, contents, **asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_batch_file", "file")
    assert "line 3: This line is not parseable as valid JSON.; line 4: " in error["message"]
    assert error["message"].endswith("; and 1 more")
    found = answer.json()["errors"]
    assert found["object"] == "list"
    assert [(each["line"], each["code"], each["param"]) for each in found["data"]] == [
        (3, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "model_not_found", "body.model"),
        (6, "streaming_unsupported", "body.stream"),
    ]
    assert kept(tmp_path) == []


async def test_errors_are_collected_up_to_a_hundred(client: httpx2.AsyncClient) -> None:
    found = (await put(client, b"{\n" * 150)).json()["errors"]["data"]
    assert [each["line"] for each in found] == list(range(1, 101))


async def test_a_good_file_is_stored_whatever_its_endpoint(client: httpx2.AsyncClient) -> None:
    for contents in (lines(3), EMBED % (1, b'"hi"'), b"\xef\xbb\xbf" + line("a")):
        assert (await put(client, contents)).status_code == 200


async def test_who_does_not_ask_gets_openais_behaviour(client: httpx2.AsyncClient) -> None:
    for query in ("", "?validate=0", "?x=1"):
        assert (await put(client, b"{\n", query)).status_code == 200


async def test_few_uploads_at_a_time_are_taken_in_to_be_validated(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    client.edge.validations = 4  # type: ignore[attr-defined]
    answer = await put(client, lines(1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "backlog_full")
    assert (await put(client, lines(1), "")).status_code == 200
    client.edge.validations = 3  # type: ignore[attr-defined]
    assert (await put(client, lines(1))).status_code == 200
    assert client.edge.validations == 3  # type: ignore[attr-defined]
    assert len(kept(tmp_path)) == 4


async def test_only_inputs_of_batches_are_validated(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    answer = await put(client, lines(1), purpose="user_data")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "purpose")
    assert kept(tmp_path) == []


async def test_lines_of_several_endpoints_are_those_of_no_batch(client: httpx2.AsyncClient) -> None:
    found = (await put(client, EMBED % (1, b'"hi"') + line("a"))).json()["errors"]["data"]
    assert [(each["line"], each["code"]) for each in found] == [(2, "mismatched_url")]


async def test_a_key_is_told_of_models_it_may_not_use(client: httpx2.AsyncClient) -> None:
    found = (await put(client, line("a", model="dear-one"))).json()["errors"]["data"]
    assert [each["code"] for each in found] == ["model_not_found"]


async def test_a_file_of_blank_lines_is_empty(client: httpx2.AsyncClient) -> None:
    answer = await put(client, b"\n \n\r\n")
    assert answer.json()["errors"]["data"][0]["code"] == "empty_file"
    assert "The file has no lines." in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("inputs", "good"),
    [(b'["a","b","c"]', True), (b'["a","b","c","d"]', False), (b"[1,2,3,4,5]", True), (b"[[1],[2],[3],[4]]", False)],
)
async def test_texts_to_embed_are_counted_and_tokens_are_one_text(tmp_path: Path, inputs: bytes, good: bool) -> None:
    settings = batch_settings(tmp_path, max_embedding_inputs=4)
    async with calling(FakeTransport(), settings, TEAM) as client:
        answer = await put(client, EMBED % (1, b'"one"') + EMBED % (2, inputs))
        assert answer.status_code == (200 if good else 400)
        if not good:
            assert [each["code"] for each in answer.json()["errors"]["data"]] == ["too_many_tasks"]


async def test_an_input_over_the_batches_limit_is_refused_and_other_files_are_not(tmp_path: Path) -> None:
    settings = batch_settings(tmp_path, max_batch_bytes=1000)
    async with calling(FakeTransport(), settings, TEAM) as client:
        assert (await put(client, b"x" * 1000, "")).status_code == 200
        answer = await put(client, b"x" * 1001, "")
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert (await put(client, b"x" * 5000, "", "user_data")).status_code == 200
        told_late = form(file_part(b"x" * 1001), field("purpose", "batch"))
        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert (await client.post("/v1/files", content=told_late, headers=headers)).status_code == 413
    async with calling(FakeTransport(), file_settings(tmp_path), TEAM) as client:
        large = (await put(client, b"x" * 1001, "")).json()["id"]
    async with calling(FakeTransport(), settings, TEAM) as client:
        wanted = {"input_file_id": large, "endpoint": CHAT, "completion_window": "24h"}
        answer = await client.post("/v1/batches", json=wanted)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_file_id")


async def test_a_key_with_too_many_batches_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with calling(FakeTransport(), batch_settings(tmp_path, max_open_batches=2), TEAM) as client:
        file = (await put(client, lines(1), "")).json()["id"]
        wanted = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        answers = [await client.post("/v1/batches", json=wanted) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json()["error"]["code"] == "batch_limit_reached"
        assert 1 <= int(answers[2].headers["retry-after"]) <= 60
        assert len((await client.get("/v1/batches")).json()["data"]) == 2
