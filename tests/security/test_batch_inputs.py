"""S1, S5, S27-S32, S35-S37, S40, S42, S43 on a real gateway: hostile batches, and a provider that counts."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fakes.batches import BatchClient, Outcome, line, lines
from fakes.gateways import Gateway, start_gateway
from fakes.upstream import Answer, Received, ScriptedUpstream, completion, raw, reply, run_upstream_in_thread

pytestmark = [pytest.mark.processes, pytest.mark.anyio, pytest.mark.timeout(240)]

TEAM, OTHER, MASTER = "sk-team-of-batches", "sk-other-of-batches", "sk-master-of-batches"
UPSTREAM_KEY = "sk-upstream-canary"
MOST_LINES = 10_000
"""More than are read at a time."""

MANAGER = """
from litellm.integrations.custom_prompt_management import CustomPromptManagement

class Mine(CustomPromptManagement):
    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        if prompt_id == "who":
            messages = [{"role": "user", "content": non_default_params["metadata"]["user_api_key_alias"]}]
        return "dear" if prompt_id == "dear" else model, messages, non_default_params

mine = Mine()
"""


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    (directory / "mine.py").write_text(MANAGER)
    params = f"{{model: openai/gpt-4, api_base: '{upstream.url}', api_key: {UPSTREAM_KEY}}}"
    config = (
        f"model_list:\n  - {{model_name: gpt-4, litellm_params: {params}}}\n"
        f"  - {{model_name: dear, litellm_params: {params}}}\n"
        f"litellm_settings: {{callbacks: mine.mine}}\n"
        f"general_settings: {{master_key: {MASTER}}}\n"
        "promptmill_settings:\n"
        f"  max_batch_lines: {MOST_LINES}\n"
        "  max_line_bytes: 1MB\n"
        f"  keys: {{team: {{key: {TEAM}, models: [gpt-4]}}, other: {OTHER}}}\n"
    )
    with start_gateway(directory, "--detailed_debug", config=config) as running:
        yield running


@asynccontextmanager
async def asking(gateway: Gateway, key: str) -> AsyncIterator[BatchClient]:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=60, headers=headers) as http:
        yield BatchClient(http)


@pytest.fixture
async def client(gateway: Gateway, upstream: ScriptedUpstream) -> AsyncIterator[BatchClient]:
    upstream.default = echo
    upstream.requests.clear()
    async with asking(gateway, TEAM) as found:
        yield found


def echo(received: Received) -> Answer:
    return reply(completion(str(received.json["messages"][-1]["content"])))


async def ended(client: BatchClient, contents: bytes, **fields: Any) -> Outcome:
    return await client.end((await client.create(contents, **fields))["id"])


async def failed(client: BatchClient, upstream: ScriptedUpstream, contents: bytes) -> list[tuple[int, str]]:
    """Return lines and codes of the errors of a batch that must fail, with nothing run and no file made."""
    batch = (await ended(client, contents)).batch
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("failed", None, None)
    assert batch["request_counts"]["completed"] == 0
    assert not upstream.requests
    return [(error["line"], error["code"]) for error in batch["errors"]["data"]]


async def test_s27_ends_of_lines_of_every_kind_are_those_of_lines(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    one, two, three, four = (line(name).rstrip() for name in "abcd")
    contents = b"\xef\xbb\xbf" + one + b"\r\n\n  \r\n" + two + b"  \n\t" + three + b"\n\n" + four
    outcome = await ended(client, contents)
    outcome.check("abcd")
    assert [entry["promptmill"]["line"] for entry in sorted(outcome.output, key=lambda e: e["custom_id"])] == [
        1, 4, 5, 7
    ]  # fmt: skip
    assert len(upstream.requests) == 4


async def test_s27_a_line_that_is_too_long_is_told_and_those_beside_it_are_lines(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    contents = line("a") + b"x" * 3_000_000 + b"\n" + line("b") + b"y" * 2_000_000
    assert await failed(client, upstream, contents) == [(2, "line_too_long"), (4, "line_too_long")]


async def test_s27_a_line_more_than_there_may_be_and_none_of_them_runs(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    assert await failed(client, upstream, lines(MOST_LINES + 1)) == [(None, "too_many_tasks")]


async def test_s28_one_bad_line_among_many_is_found_and_none_runs(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    bomb = b'{"custom_id":"bomb","method":"POST","url":"/v1/chat/completions","body":' + b'{"a":' * 100_000
    assert await failed(client, upstream, lines(MOST_LINES - 1) + bomb + b"\n") == [(MOST_LINES, "invalid_json_line")]


async def test_s29_s30_s32_what_a_line_may_not_be_is_told_line_by_line(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    def with_(**fields: Any) -> bytes:
        return json.dumps({**json.loads(line("x")), **fields}).encode() + b"\n"

    wrong = [
        (line("x" * 65), "invalid_custom_id"),
        (line("a\r\nb"), "invalid_custom_id"),
        (line("a\0"), "invalid_custom_id"),
        (with_(method="GET"), "invalid_method"),
        (with_(url="/v1/embeddings"), "mismatched_url"),
        (with_(url="https://evil.example/v1/chat/completions"), "invalid_url"),
        (line("s", stream=True), "streaming_unsupported"),
        (with_(tenant="other"), "invalid_request"),
        (with_(priority=9), "invalid_request"),
        (line("k", api_key="sk-x"), "invalid_request"),
        (line("o", user_api_key="sk-x"), "invalid_request"),
        (line("d", deadline=1), "invalid_request"),
        (line("e", timeout=1), "invalid_request"),
        (line("b", api_base="https://evil.example"), "invalid_request"),
        (line("👍") + line("👍"), "duplicate_custom_id"),
    ]
    found = await failed(client, upstream, b"".join(text for text, _ in wrong))
    expected = [(number, code) for number, (_, code) in enumerate(wrong, 1)]
    expected[-1] = (len(wrong) + 1, "duplicate_custom_id")
    assert found == expected


async def test_s31_a_line_uses_no_model_that_its_key_may_not(client: BatchClient, upstream: ScriptedUpstream) -> None:
    assert await failed(client, upstream, line("a") + line("b", model="dear")) == [(2, "model_not_allowed")]
    outcome = await ended(client, line("a", prompt_id="dear") + line("b"))  # chosen by the prompt manager, later
    outcome.check("ab")
    (refused,) = outcome.errors
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("a", 403)
    assert len(upstream.requests) == 1


async def test_s32_a_line_poses_as_nobody_else(client: BatchClient, upstream: ScriptedUpstream) -> None:
    spoof = {"user_api_key_alias": "master", "headers": {"authorization": "x"}, "endpoint": "/evil"}
    outcome = await ended(
        client, line("a", prompt_id="who", metadata=spoof), owner="master", id="batch_x", allowed_models=[]
    )
    assert outcome.texts() == {"a": "team"}
    assert "metadata" not in upstream.requests[0].json
    assert outcome.batch["id"] != "batch_x"


async def test_s1_a_line_decides_nothing_about_where_it_is_sent(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    nested = {"extra_body": {"api_base": "https://evil.example"}, "metadata": {"api_key": "sk-x"}}
    outcome = await ended(client, line("a", litellm_params={"api_key": "sk-x"}, **nested))
    outcome.check("a")
    (received,) = upstream.requests
    assert received.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert set(received.json) == {"model", "messages"}


async def test_s35_an_archive_is_no_batch_and_is_refused_quickly(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("in.jsonl", lines(20_000))
    found = await failed(client, upstream, archive.getvalue())
    assert 0 < len(found) <= 100
    assert {code for _, code in found} == {"invalid_json_line"}


async def test_s37_nothing_of_a_batch_is_there_for_another_key(
    client: BatchClient, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    upstream.default = lambda _: reply(completion("<script>secret</script>"))
    batch = (await ended(client, line("a") + line("b", prompt_id="dear"))).batch
    assert batch["output_file_id"]
    assert batch["error_file_id"]
    async with asking(gateway, OTHER) as other:
        unknown = (await other.http.get("/v1/batches/batch_" + "0" * 32)).json()["error"]["message"]
        for path in (f"batches/{batch['id']}", f"batches/{batch['id']}/cancel"):
            answer = await other.http.request("POST" if path.endswith("cancel") else "GET", f"/v1/{path}")
            assert (answer.status_code, answer.json()["error"]["message"]) == (404, unknown)
        for file in (batch["input_file_id"], batch["output_file_id"], batch["error_file_id"]):
            for method, path in (("GET", file), ("GET", f"{file}/content"), ("DELETE", file)):
                assert (await other.http.request(method, f"/v1/files/{path}")).status_code == 404
            wanted = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            assert (await other.http.post("/v1/batches", json=wanted)).status_code == 404
        assert (await other.http.get("/v1/batches")).json()["data"] == []
        assert (await other.http.get("/v1/files")).json()["data"] == []
    headers = (await client.http.get(f"/v1/files/{batch['output_file_id']}/content")).headers  # S43
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "application/octet-stream"
    assert re.fullmatch(r"attachment; filename=\"batch_[0-9a-f]{32}_output.jsonl\".*", headers["content-disposition"])


async def test_s40_an_input_stays_while_its_batch_runs_and_then_may_go(
    client: BatchClient, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    upstream.default = lambda received: raw(1.0, *echo(received).steps)
    batch = await client.create(line("a"))
    path = f"/v1/files/{batch['input_file_id']}"
    refused = await client.http.delete(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "file_in_use")
    async with asking(gateway, OTHER) as other:
        assert (await other.http.delete(path)).status_code == 404
    outcome = await client.end(batch["id"])
    outcome.check("a")
    assert (await client.http.delete(path)).json()["deleted"] is True
    assert (await client.get(batch["id"]))["status"] == "completed"


async def test_s42_results_are_nowhere_before_they_are_told_and_ids_say_nothing(
    client: BatchClient, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    outcomes = [await ended(client, line("a")) for _ in range(3)]
    ids = [outcome.batch[name] for outcome in outcomes for name in ("id", "output_file_id")]
    assert len({found[-32:] for found in ids}) == len(ids), "one id is no way to another"
    assert all(re.fullmatch(r"(batch_|file-)[0-9a-f]{32}", found) for found in ids)
    (entry,) = outcomes[0].output
    job = entry["response"]["request_id"].removeprefix("req_")
    for path in (f"/v1/responses/{job}", f"/v1/chat/completions/{job}", f"/v1/files/{job}", f"/v1/batches/{job}"):
        assert (await client.http.get(path)).status_code in (404, 405)


WITNESSES = [
    "http://127.0.0.1:{port}/s5",
    "http://localhost:{port}/s5",
    "http://2130706433:{port}/s5",
    "http://0x7f.1:{port}/s5",
    "http://[::ffff:127.0.0.1]:{port}/s5",
    "http://user:pass@127.0.0.1:{port}/s5",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]:{port}/s5",
]


async def test_s5_no_address_in_a_request_or_a_batch_is_ever_called(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    with run_upstream_in_thread() as witness:
        port = witness.url.split(":")[2].partition("/")[0]
        texts = []
        for number, template in enumerate(WITNESSES):
            url = template.format(port=port)
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "input_image", "image_url": url}]
            fields = {"webhook": url, "webhook_url": url, "callback_url": url, "audio": {"url": url}}
            asked = {"model": "gpt-4", "messages": [{"role": "user", "content": content}], **fields}
            assert (await client.http.post("/v1/chat/completions", json=asked)).status_code == 200
            texts.append(json.dumps({**json.loads(line(f"r{number}")), "body": asked}).encode() + b"\n")
        url = WITNESSES[0].format(port=port)
        outcome = await ended(client, b"".join(texts), metadata={"webhook": url}, webhook=url, callback_url=url)
        outcome.check([f"r{number}" for number in range(len(WITNESSES))])
        assert len(upstream.requests) == 2 * len(WITNESSES)
        assert not witness.requests
        assert witness.connections == 0


async def test_s36_paths_as_ids_of_batches_are_the_same_404(client: BatchClient) -> None:
    names = ["..%2f..%2fetc%2fpasswd", "x" * 10_000, "%00", "batch_" + "g" * 32, "batch_" + "A" * 32, "*", "%e2%80%ae"]
    said = set()
    for name in names:
        for method, path in (("GET", name), ("POST", f"{name}/cancel")):
            answer = await client.http.request(method, f"/v1/batches/{path}")
            error = answer.json()["error"]
            said.add((answer.status_code, error["code"], error["message"]))
    assert len(said) == 1
    assert next(iter(said))[0] == 404


async def test_nothing_of_all_this_is_in_the_log(client: BatchClient, gateway: Gateway) -> None:
    secret = "the-secret-of-a-line"
    await ended(client, line(secret, secret) + b'{"custom_id":"' + secret.encode())
    await ended(client, line("a", secret))
    log = gateway.log
    for unwanted in (secret, UPSTREAM_KEY, TEAM, OTHER, MASTER, "evil.example"):
        assert unwanted not in log
    assert "Traceback" not in log
