"""Batches over HTTP: OpenAI's object, pages, cancellation, tenants, and what is refused at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fakes.batches import BATCH_KEYS, CHAT
from fakes.edges import MASTER, TEAM, calling
from fakes.openai_shapes import BEFORE, ENDS, check_batch, check_page
from fakes.transport import FakeTransport
from fakes.uploads import OTHER, file_settings, put

from pipeline.stores.batch_lines import LineError
from pipeline.stores.batch_progress import Progress
from pipeline.stores.batch_records import Record
from pipeline.stores.batches import BatchStore
from pipeline.stores.local import LocalBlobs

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with calling(FakeTransport(), file_settings(tmp_path), TEAM) as found:
        yield found


async def wanted(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    file = (await put(client)).json()
    return {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", **fields}


async def create(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/batches", json=await wanted(client, **fields))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_a_new_batch_is_openais_object_with_every_key(client: httpx2.AsyncClient) -> None:
    batch = await create(client, metadata={"of": "mine"})
    assert set(batch) == BATCH_KEYS
    check_batch(batch)
    assert (batch["object"], batch["status"], batch["endpoint"]) == ("batch", "validating", CHAT)
    assert batch["expires_at"] == batch["created_at"] + 24 * 3600
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["metadata"] == {"of": "mine"}
    assert (await client.get(f"/v1/batches/{batch['id']}")).json() == batch


@pytest.mark.parametrize("status", [*BEFORE, "cancelled at once"])
async def test_a_batch_of_each_status_is_openais_object(
    client: httpx2.AsyncClient, tmp_path: Path, status: str
) -> None:
    batch = await create(client)
    store = BatchStore(LocalBlobs(tmp_path / "batches"))
    state = await store.get(batch["id"], None)
    said = status.partition(" ")[0]
    if said.startswith("cancel"):
        state = await store.cancel(state)
    if status != "cancelled at once":
        begun = int(state.request.created) + 1
        reached = [name for name in (*BEFORE[said], f"{said}_at") if not name.startswith(("validating", "cancelling"))]
        done = {"completed": 5, "failed": 2} if said in ENDS and said != "failed" else {"completed": 0, "failed": 0}
        files = {"output_file_id": state.request.output_file_id, "error_file_id": state.request.error_file_id}
        record = Record(
            owner=await store.claim(state),
            status="in_progress" if said == "cancelling" else said,
            times={name: begun + number for number, name in enumerate(reached)},
            total=7 if said != "failed" else 0,
            errors=(LineError("invalid_json_line", "no", line=3), LineError("x", "y")) if said == "failed" else (),
            **done,
            **(files if done["completed"] else {}),
        )
        await store.save(batch["id"], record)
    found = (await client.get(f"/v1/batches/{batch['id']}")).json()
    check_batch(found)
    assert found["status"] == ("cancelling" if status == "cancelled at once" else said)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"a" * 65: ""}}, None),
        ({"metadata": {"a": "b" * 513}}, None),
        ({"metadata": {"a": 1}}, None),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after"),
        ({"input_file_id": None}, None),
    ],
)
async def test_what_no_line_is_needed_for_is_refused_at_once(
    client: httpx2.AsyncClient, fields: dict[str, Any], param: str | None
) -> None:
    answer = await client.post("/v1/batches", json=await wanted(client, **fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await client.get("/v1/batches")).json()["data"] == []


async def test_the_input_must_be_a_file_of_the_right_purpose(client: httpx2.AsyncClient) -> None:
    missing = await client.post("/v1/batches", json=await wanted(client, input_file_id="file-" + "0" * 32))
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "file_not_found")
    other = (await put(client, purpose="user_data")).json()["id"]
    answer = await client.post("/v1/batches", json=await wanted(client, input_file_id=other))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_file_id")


async def test_lists_are_newest_first_and_page_by_page(client: httpx2.AsyncClient) -> None:
    check_page((await client.get("/v1/batches")).json())
    ids = [(await create(client))["id"] for _ in range(5)][::-1]
    first = (await client.get("/v1/batches?limit=3")).json()
    check_page(first)
    assert [batch["id"] for batch in first["data"]] == ids[:3]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[0], ids[2], True)
    rest = (await client.get(f"/v1/batches?limit=3&after={ids[2]}")).json()
    assert [batch["id"] for batch in rest["data"]] == ids[3:]
    assert rest["has_more"] is False
    many = "&".join(f"a{number}=1" for number in range(33))
    for query in ("limit=0", "limit=101", "limit=x", "limit=0000000019999", "limit=000000001" + "9" * 5000, many):
        assert (await client.get(f"/v1/batches?{query}")).status_code == 400
    assert (await client.get("/v1/batches?after=batch_none")).status_code == 404


async def test_a_cancelled_batch_says_so_at_once_and_keeps_its_time(client: httpx2.AsyncClient) -> None:
    batch = await create(client)
    once = (await client.post(f"/v1/batches/{batch['id']}/cancel")).json()
    check_batch(once)
    assert once["status"] == "cancelling"
    assert once["cancelling_at"] >= batch["created_at"]
    assert (await client.post(f"/v1/batches/{batch['id']}/cancel")).json() == once


async def test_what_is_another_keys_is_not_there(tmp_path: Path) -> None:
    settings = file_settings(tmp_path)
    async with calling(FakeTransport(), settings, TEAM) as team, calling(FakeTransport(), settings, OTHER) as other:
        batch = await create(team)
        unknown = (await other.get("/v1/batches/batch_" + "0" * 32)).json()["error"]["message"]
        for answer in (
            await other.get(f"/v1/batches/{batch['id']}"),
            await other.post(f"/v1/batches/{batch['id']}/cancel"),
            await other.get(f"/v1/batches?after={batch['id']}"),
            await other.get("/v1/batches/..%2f..%2fetc"),
        ):
            assert (answer.status_code, answer.json()["error"]["message"]) == (404, unknown)
        assert (await other.get("/v1/batches")).json()["data"] == []
        theirs = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
        assert (await other.post("/v1/batches", json=theirs)).status_code == 404
        async with calling(FakeTransport(), settings, MASTER) as master:
            assert [b["id"] for b in (await master.get("/v1/batches")).json()["data"]] == [batch["id"]]
        assert (await team.get(f"/v1/batches/{batch['id']}")).json()["status"] == "validating"


async def test_the_input_of_an_unfinished_batch_cannot_be_deleted(tmp_path: Path) -> None:
    settings = file_settings(tmp_path)
    async with calling(FakeTransport(), settings, TEAM) as team, calling(FakeTransport(), settings, OTHER) as other:
        batch = await create(team)
        path = f"/v1/files/{batch['input_file_id']}"
        refused = await team.delete(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "file_in_use")
        assert batch["id"] not in refused.json()["error"]["message"]  # it may be another key's
        assert (await other.delete(path)).status_code == 404
        store = BatchStore(LocalBlobs(tmp_path / "batches"))
        state = await store.get(batch["id"], None)
        await store.save(batch["id"], Record(owner=await store.claim(state), status="completed"))
        assert (await team.delete(path)).json()["deleted"] is True


async def test_only_the_master_key_sees_how_many_lines_of_all_keys_wait(tmp_path: Path) -> None:
    settings = file_settings(tmp_path)
    async with calling(FakeTransport(), settings, TEAM) as team, calling(FakeTransport(), settings, MASTER) as master:
        batch = await create(team)
        store = BatchStore(LocalBlobs(tmp_path / "batches"))
        owner = await store.claim(await store.get(batch["id"], None))
        await store.save(batch["id"], Record(owner=owner, progress=Progress(open=3, waiting={"resolve": 5000})))
        for client, waiting in ((team, {}), (master, {"resolve": 5000})):
            one = (await client.get(f"/v1/batches/{batch['id']}")).json()
            assert (one["promptmill"]["open"], one["promptmill"]["waiting"]) == (3, waiting)
            assert (await client.get("/v1/batches")).json()["data"] == [one]
