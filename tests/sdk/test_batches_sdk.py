"""Batches with the real openai-python, in the steps of OpenAI's own guide."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fakes.batches import BATCH_KEYS, line, lines
from fakes.environments import Environments
from fakes.gateways import CONFIG, Gateway, start_gateway

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(400)]

KEY = "sk-a-long-and-random-one"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    config = f"{CONFIG}general_settings: {{master_key: {KEY}}}\n"
    with start_gateway(tmp_path_factory.mktemp("batches"), config=config) as found:
        yield found


@pytest.mark.parametrize("sdk", ["openai-2", "openai-3"])
def test_the_sdks_own_batch_flow_works_unchanged(gateway: Gateway, environments: Environments, sdk: str) -> None:
    task = {"api_key": KEY, "base_url": f"{gateway.url}/v1", "contents": lines(50).decode()}
    saw = environments.run(sdk, "openai_batches.py", task)
    assert set(saw["made"]) == set(saw["ended"]) == BATCH_KEYS
    assert saw["made"]["status"] == "validating"
    assert saw["ended"]["status"] == "completed"
    assert saw["ended"]["request_counts"] == {"total": 50, "completed": 50, "failed": 0}
    assert saw["listed"][0] == saw["ended"]["id"]
    assert {json.loads(text)["custom_id"] for text in saw["contents"].splitlines()} == {f"r{n}" for n in range(50)}
    assert saw["cancelled"] == saw["ended"]


@pytest.mark.parametrize("sdk", ["openai-2", "openai-3"])
def test_the_sdk_reads_what_is_wrong_with_a_batch(gateway: Gateway, environments: Environments, sdk: str) -> None:
    task = {"api_key": KEY, "base_url": f"{gateway.url}/v1", "contents": (line("a") + line("a")).decode()}
    ended = environments.run(sdk, "openai_batches.py", task)["ended"]
    assert ended["status"] == "failed"
    assert [(error["line"], error["code"]) for error in ended["errors"]["data"]] == [(2, "duplicate_custom_id")]
