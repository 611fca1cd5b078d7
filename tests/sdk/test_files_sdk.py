"""Files with the real openai-python: its own calls, its own types, its own exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.environments import Environments
from fakes.gateways import CONFIG, Gateway, start_gateway
from fakes.uploads import FILE_KEYS, JSONL

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(400)]

KEY = "sk-a-long-and-random-one"
KEYS = f"general_settings: {{master_key: {KEY}}}\npromptmill_settings: {{max_upload_bytes: 1000000}}\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with start_gateway(tmp_path_factory.mktemp("files"), config=CONFIG + KEYS) as found:
        yield found


@pytest.mark.parametrize("sdk", ["openai-2", "openai-3"])
def test_a_file_lives_as_the_sdk_expects(
    gateway: Gateway, environments: Environments, tmp_path: Path, sdk: str
) -> None:
    path, large = tmp_path / "one.jsonl", tmp_path / "large.jsonl"
    path.write_bytes(JSONL * 3)
    large.write_bytes(b"x" * 4_000_000)
    wrong = [
        {"purpose": "fine-tune"},
        {"expires_after": {"anchor": "created_at", "seconds": 60}},
        {"file": str(large)},
    ]
    task = {"api_key": KEY, "base_url": f"{gateway.url}/v1", "path": str(path), "wrong": wrong}
    saw = environments.run(sdk, "openai_files.py", task)
    assert saw["version"].partition(".")[0] == sdk[-1]
    assert [set(file) for file in saw["made"]] == [FILE_KEYS] * 3
    assert [file["filename"] for file in saw["made"]] == ["one.jsonl", "two.jsonl", "upload"]
    assert {file["bytes"] for file in saw["made"]} == {3 * len(JSONL)}
    assert saw["made"][2]["expires_at"] == saw["made"][2]["created_at"] + 3600
    assert saw["listed"] == [file["id"] for file in saw["made"]]
    assert saw["found"] == saw["made"][0]
    assert saw["contents"].encode() == JSONL * 3
    assert saw["deleted"] == [{"id": file["id"], "object": "file", "deleted": True} for file in saw["made"]]
    assert saw["code"] == "file_not_found"
    assert saw["refused"] == [
        ["BadRequestError", 400, "invalid_request", "purpose"],
        ["BadRequestError", 400, "invalid_request", "expires_after[seconds]"],
        ["APIStatusError", 413, "request_too_large", "file"],
    ]
