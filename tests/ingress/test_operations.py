"""What is asked under the other paths of OpenAI's dialect: whose model, which prompt, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fakes.configs import deployment, settings
from fakes.edges import calling
from fakes.transport import FakeTransport

pytestmark = pytest.mark.anyio

BOTH = settings(deployment(), deployment("omni-moderation-latest", "openai/omni-moderation-latest"))


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
async def client(transport: FakeTransport) -> AsyncIterator[httpx2.AsyncClient]:
    async with calling(transport, BOTH) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/openai/deployments/gpt-4/chat/completions", "chat.completions"),
        ("/engines/gpt-4/chat/completions", "chat.completions"),
        ("/openai/deployments/gpt-4/completions", "completions"),
        ("/v1/engines/gpt-4/completions", "completions"),
        ("/openai/deployments/gpt-4/embeddings", "embeddings"),
        ("/engines/gpt-4/embeddings", "embeddings"),
    ],
)
async def test_the_older_paths_carry_the_model(
    client: httpx2.AsyncClient, transport: FakeTransport, path: str, operation: str
) -> None:
    await client.post(path, json={"messages": [], "prompt": "hi", "input": "hi"})
    assert (transport.job.operation, transport.job.model) == (operation, "gpt-4")


async def test_a_moderation_without_a_model_goes_to_openais_default(
    client: httpx2.AsyncClient, transport: FakeTransport
) -> None:
    await client.post("/v1/moderations", json={"input": "hi"})
    assert transport.job.model == "omni-moderation-latest"
    async with calling(transport, settings()) as without:
        answer = await without.post("/v1/moderations", json={"input": "hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/completions", "/embeddings", "/moderations"])
async def test_a_prompt_id_leads_through_resolve_and_content_may_be_absent(
    client: httpx2.AsyncClient, transport: FakeTransport, path: str
) -> None:
    assert (await client.post(path, json={"model": "gpt-4", "prompt_id": "p"})).status_code == 200
    assert transport.job.stages_left == ("resolve", "dispatch")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/completions", {"prompt": {"id": "p"}}, "prompt"),
        ("/completions", {}, "prompt"),
        ("/embeddings", {"input": None}, "input"),
        ("/embeddings", {"input": "hi", "stream": True}, "stream"),
        ("/moderations", {"input": "hi", "stream": True, "prompt_id": "p"}, "stream"),
    ],
)
async def test_what_cannot_be_served_is_refused_before_it_is_a_job(
    client: httpx2.AsyncClient, transport: FakeTransport, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await client.post(path, json={"model": "gpt-4", **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not transport.jobs


async def test_the_prompt_object_is_one_for_embeddings(client: httpx2.AsyncClient, transport: FakeTransport) -> None:
    await client.post("/embeddings", json={"model": "gpt-4", "prompt": {"id": "p"}})
    assert transport.job.prompt is not None
    assert transport.job.prompt.id == "p"
