"""Batches with the real openai-python and openai-node, in the steps of OpenAI's own guide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.batches import line, lines
from fakes.environments import Environments
from fakes.gateways import CONFIG, Gateway, start_gateway
from fakes.openai_shapes import check_batch, check_file, check_line

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(400)]

KEY = "sk-a-long-and-random-one"
SCRIPTS = {"openai-2": "openai_batches.py", "openai-3": "openai_batches.py", "openai-node-7": "openai_batches.cjs"}
MODERATION = "  - model_name: omni-moderation-latest\n    litellm_params: {model: echo/moderation}\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    config = f"{CONFIG}{MODERATION}general_settings: {{master_key: {KEY}}}\n"
    with start_gateway(tmp_path_factory.mktemp("batches"), config=config) as found:
        yield found


def flow(gateway: Gateway, environments: Environments, sdk: str, contents: bytes) -> Any:
    """Return what an SDK saw of a batch's life, every object of it checked."""
    task = {"api_key": KEY, "base_url": f"{gateway.url}/v1", "contents": contents.decode()}
    saw = environments.run(sdk, SCRIPTS[sdk], task)
    check_file(saw["file"])
    for batch in (saw["made"], saw["ended"], saw["cancelled"], *saw["stopped"]):
        check_batch(batch)
    return saw


@pytest.mark.parametrize("sdk", SCRIPTS)
def test_the_sdks_own_batch_flow_works_unchanged(gateway: Gateway, environments: Environments, sdk: str) -> None:
    saw = flow(gateway, environments, sdk, lines(50))
    assert (saw["made"]["status"], saw["made"]["metadata"]) == ("validating", {"of": "mine"})
    assert saw["missing"] == [["NotFoundError", 404, "not_found"], ["NotFoundError", 404, "file_not_found"]]
    assert saw["ended"]["status"] == "completed"
    assert saw["ended"]["request_counts"] == {"total": 50, "completed": 50, "failed": 0}
    assert saw["listed"][0] == saw["ended"]["id"]
    answers = [json.loads(text) for text in saw["contents"].splitlines()]
    assert {answer["custom_id"] for answer in answers} == {f"r{n}" for n in range(50)}
    for answer in answers:
        check_line(answer, failed=False)
    assert saw["cancelled"] == saw["ended"]
    assert [batch["status"] for batch in saw["stopped"]] == ["cancelling", "cancelled"]


@pytest.mark.parametrize("sdk", SCRIPTS)
def test_the_sdk_reads_what_is_wrong_with_a_batch(gateway: Gateway, environments: Environments, sdk: str) -> None:
    ended = flow(gateway, environments, sdk, line("a") + line("a"))["ended"]
    assert ended["status"] == "failed"
    assert [(error["line"], error["code"]) for error in ended["errors"]["data"]] == [(2, "duplicate_custom_id")]


@pytest.mark.parametrize("sdk", ["openai-2", "openai-3"])
def test_the_sdk_reads_completions_vectors_and_moderations(
    gateway: Gateway, environments: Environments, sdk: str
) -> None:
    client = {"api_key": KEY, "base_url": f"{gateway.url}/v1"}
    calls = [
        ("completions.create", {"model": "gpt-4", "prompt": "a\nb"}),
        ("completions.create", {"model": "gpt-4", "prompt": "a\nb", "stream": True}),
        ("embeddings.create", {"model": "gpt-4", "input": ["a", "b"]}),  # in base64, which the SDK unpacks
        ("embeddings.create", {"model": "gpt-4", "input": ["a", "b"], "encoding_format": "float"}),
        ("moderations.create", {"input": "a"}),
    ]
    wanted = [{"client": client, "method": method, "arguments": arguments} for method, arguments in calls]
    whole, streamed, packed, plain, moderation = environments.run(sdk, "openai_calls.py", wanted)
    assert whole["text"] == streamed["text"] == "a\nb"
    assert len(plain["vectors"]) == 2
    for one, two in zip(packed["vectors"], plain["vectors"], strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    assert moderation["flagged"] == [False]
